"""Whether this machine's clock agrees with the sink's. Accept times come from the one, and are read beside the other.

Each instance takes accept times from its own clock. Where several write the same rows, the later time wins, so a clock
that is ahead wins too often.
"""

from __future__ import annotations

from typing import Literal

from tornado_persist.sinks.base import Skew

#: Seconds after which a clock is read again although the sink is busy.
OLD = 60.0
#: Seconds between two warnings while a clock stays wrong.
REPEAT = 3600.0


class ClockWatch:
    """The last measurement, and when to warn. No I/O; times are of the clock that is never set."""

    def __init__(self, now: float) -> None:
        self._skew: Skew | None = None
        self._measured_at = now
        self._warned_at: float | None = None

    def is_due(self, now: float) -> bool:
        """Whether the last measurement is old."""
        return now - self._measured_at > OLD

    def note(self, skew: Skew | None, now: float) -> Literal["off", "right", ""]:
        """Keep a measurement. Returns what is worth a line in the log: that the clock is off, or right again."""
        self._skew, self._measured_at = skew, now
        if skew is None:
            return ""
        if skew.problem:
            if self._warned_at is not None and now - self._warned_at < REPEAT:
                return ""
            self._warned_at = now
            return "off"
        was_off, self._warned_at = self._warned_at is not None, None
        return "right" if was_off else ""

    @property
    def seconds(self) -> float | None:
        """How far this machine's clock is ahead; None: not known."""
        return None if self._skew is None else self._skew.seconds

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; empty: nothing is."""
        return "" if self._skew is None else self._skew.problem
