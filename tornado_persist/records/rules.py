"""The configured rules for bodies, and the result of parsing one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Literal, TypeAlias

from tornado_persist.errors import FieldError
from tornado_persist.records.models import STATUSES, Row

#: The code of a row that is set aside.
INVALID = "invalid"
#: Names of dropped fields that are shown, and characters of each.
MAX_IGNORED = 20
MAX_NAME = 64


#: A field that is not in the specification is dropped, refuses the batch, or goes into ``extra``.
UnknownFields: TypeAlias = Literal["ignore", "reject", "keep"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for a body."""

    max_batch: int | None = None  #: rows in one body at most
    unknown_fields: UnknownFields = "ignore"
    statuses: tuple[str, ...] | None = STATUSES  #: None: any text of its length
    timezone: tzinfo = UTC  #: of times without an offset
    invalid_rows: Literal["refuse", "set_aside"] = "refuse"
    #: A body that was accepted before, perhaps under other rules: what is dropped from it is not looked at.
    replay: bool = False


@dataclass(frozen=True, slots=True)
class Wrong:
    """A row that is set aside: its place in the list, its JSON as it was sent, and what is wrong with it."""

    index: int
    text: bytes
    errors: list[FieldError]


@dataclass(slots=True)
class Parsed:
    """A body that was taken."""

    #: Each holds just the fields that were sent, times in UTC.
    rows: list[Row]
    #: What the journal keeps: read again under any rules, it gives the same rows.
    body: bytes = b""
    #: Names of fields that were dropped, sorted: the first ``MAX_IGNORED``, each cut to ``MAX_NAME`` characters.
    ignored: list[str] = field(default_factory=list)
    #: Rows that had such fields.
    ignored_rows: int = 0
    #: Rows that are set aside; always empty with ``invalid_rows = "refuse"``.
    wrong: list[Wrong] = field(default_factory=list)
    #: Only at a replay: when the rows count as accepted, if not when they came.
    at: str = ""

    def places(self) -> list[int]:
        """Where in the body's list each of ``rows`` was."""
        wrong = {row.index for row in self.wrong}
        return [place for place in range(len(self.rows) + len(wrong)) if place not in wrong]


def shown_names(names: set[str]) -> list[str]:
    """Names of dropped fields, for answers and log."""
    return sorted({name[:MAX_NAME] for name in names})[:MAX_IGNORED]
