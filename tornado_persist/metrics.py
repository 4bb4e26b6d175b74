"""Every counter of the service, in one place. Rows, seconds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from tornado_persist.models import KINDS, Kind


def _zeros() -> dict[Kind, int]:
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class Totals:
    """Rows by kind since the data directory was made; what each term means stands in docs/accounting.rst."""

    accepted: dict[Kind, int] = field(default_factory=_zeros)
    written: dict[Kind, int] = field(default_factory=_zeros)
    merged: dict[Kind, int] = field(default_factory=_zeros)
    rejected: dict[Kind, int] = field(default_factory=_zeros)

    def settled(self, accepted: Mapping[Kind, int]) -> dict[str, dict[Kind, int]]:
        """The totals at a moment when of these ``accepted`` rows none is pending, as the journal's cursor keeps them.

        ``merged`` is what is left: whatever was accepted, and is neither written nor rejected nor pending.
        """
        written, rejected = dict(self.written), dict(self.rejected)
        merged = {kind: accepted[kind] - written[kind] - rejected[kind] for kind in KINDS}
        return {"accepted": dict(accepted), "written": written, "merged": merged, "rejected": rejected}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Totals:
        """From what :meth:`settled` gave; what is not there is 0."""
        return cls(
            **{
                name: {kind: int(kept.get(name, {}).get(kind, 0)) for kind in KINDS}
                for name in ("accepted", "written", "merged", "rejected")
            }
        )


@dataclass(slots=True)
class Metrics:
    """What happened: to rows, since the data directory was made; to flushes, since the process started."""

    started: datetime
    totals: Totals = field(default_factory=Totals)
    #: Flushes that wrote at least one row, and the time they took together.
    flush_count: int = 0
    flush_seconds: float = 0.0
    last_flush: datetime | None = None
    _at_start: Totals = field(default_factory=Totals)
    _today: date | None = None
    _today_count: int = 0

    def resume(self, totals: Totals) -> None:
        """Count on from where the last process got."""
        self.totals = totals
        self._at_start = copy.deepcopy(totals)

    def written(self, kind: Kind) -> int:
        """Rows that the sink has committed since the process started."""
        return self.totals.written[kind] - self._at_start.written[kind]

    def flushed(self, seconds: float, at: datetime) -> None:
        """Count one flush that wrote rows and ended at ``at`` (UTC)."""
        self.flush_count += 1
        self.flush_seconds += seconds
        self._today_count = self.flush_count_today(at) + 1
        self._today = at.date()
        self.last_flush = at

    def flush_count_today(self, now: datetime) -> int:
        """Flushes since the UTC day of ``now`` began."""
        return self._today_count if self._today == now.date() else 0

    def average_flush_ms(self) -> int:
        """Mean duration of a flush; 0 before the first."""
        return round(self.flush_seconds * 1000 / self.flush_count) if self.flush_count else 0

    def average_batch_size(self) -> int:
        """Mean number of rows written by a flush; 0 before the first."""
        return round(sum(map(self.written, KINDS)) / self.flush_count) if self.flush_count else 0
