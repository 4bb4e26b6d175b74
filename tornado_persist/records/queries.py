"""What can be asked of stored rows: which of them, in which order, and how many at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tornado_persist.records.models import EXTRA, FIELDS, KEYS, KINDS, Kind

#: Every field that an answer may hold.
SHOWN: Mapping[Kind, tuple[str, ...]] = {kind: (*FIELDS[kind], EXTRA, "created_at", "updated_at") for kind in KINDS}
#: A session or task with one of these is done with; any other is unfinished.
FINISHED = ("completed", "failed")


@dataclass(frozen=True, slots=True)
class Query:
    """Rows of one kind that meet every condition."""

    kind: Kind
    #: A field, and the values that it may have. Texts are compared exactly.
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: A field, and the values that it must not have.
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: ``created_at`` or ``updated_at``, and the earliest time, as rows hold times.
    since: Mapping[str, str] = field(default_factory=dict)
    #: The key (see ``models.KEYS``) after which the rows begin; None: from the first one on.
    after: tuple[str, ...] | None = None
    limit: int = 100
    #: The fields wanted, beside the key; empty: all of them.
    fields: tuple[str, ...] = ()
    #: Tasks in the order of sheet and row, and not of the key; not with ``after``.
    by_row: bool = False

    def shown(self) -> tuple[str, ...]:
        """The fields of the rows in an answer, in their order."""
        names, keys = SHOWN[self.kind], KEYS[self.kind]
        return tuple(name for name in names if not self.fields or name in self.fields or name in keys)
