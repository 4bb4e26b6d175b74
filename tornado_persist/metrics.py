"""Every counter of the service, in one place. Rows, seconds; counted since the process started."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime

from tornado_persist.models import KINDS, Kind


def _zeros() -> dict[Kind, int]:
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class Metrics:
    """What happened so far."""

    started: datetime
    #: Rows that clients were told are accepted.
    accepted: dict[Kind, int] = field(default_factory=_zeros)
    #: Rows that the sink has committed.
    written: dict[Kind, int] = field(default_factory=_zeros)
    #: Rows that were merged into a waiting one of the same key, and so were not written on their own.
    merged: int = 0
    #: Flushes that wrote at least one row, and the time they took together.
    flush_count: int = 0
    flush_seconds: float = 0.0
    last_flush: datetime | None = None
    _today: date | None = None
    _today_count: int = 0

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
        return round(sum(self.written.values()) / self.flush_count) if self.flush_count else 0
