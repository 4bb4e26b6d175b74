"""What the service has deleted since the process started, and how the runs of the retention went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias, get_args

from tornado_persist.records.models import KINDS, Kind

#: What deleted rows: a ``DELETE`` request, the retention, or a cleanup that somebody asked for.
DeletedBy: TypeAlias = Literal["request", "retention", "cleanup"]
#: How a run of the retention ended; ``waited``: the clock is in doubt.
Result: TypeAlias = Literal["done", "failed", "waited"]


@dataclass(slots=True)
class Deletions:
    """Counted from the start at 0, so that the first one shows as a rise."""

    rows: dict[tuple[DeletedBy, Kind], int] = field(
        default_factory=lambda: {(by, kind): 0 for by in get_args(DeletedBy) for kind in KINDS}
    )
    runs: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(get_args(Result), 0))
    #: When the retention ran last (UTC), and why it did not do its work then; empty if it did.
    last_run: datetime | None = None
    problem: str = ""

    def add(self, by: DeletedBy, rows: Mapping[Kind, int]) -> None:
        """Count deleted rows."""
        for kind, count in rows.items():
            self.rows[by, kind] += count

    def ran(self, at: datetime, result: Result, problem: str = "") -> None:
        """Count a run of the retention."""
        self.runs[result] += 1
        self.last_run, self.problem = at, problem

    def total(self, kind: Kind) -> int:
        """Rows of a kind, whatever deleted them."""
        return sum(count for (_, its), count in self.rows.items() if its == kind)
