"""The last flushes and the last things that went wrong, for people who look."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

#: Of each, so many are remembered.
KEPT = 20

#: What went wrong: a flush failed, rows were refused by the sink, rows were lost to damage, batches are turned away.
What: TypeAlias = Literal["flush", "rejected", "lost", "intake"]


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush that ended at ``at`` (UTC): rows written and refused, seconds, and what stopped it, if anything did."""

    at: datetime
    rows: int
    rejected: int
    seconds: float
    error: str = ""


@dataclass(slots=True)
class Incident:
    """Something that went wrong ``count`` times in a row, first and last at these times (UTC)."""

    first: datetime
    last: datetime
    what: What
    message: str
    code: str = ""
    count: int = 1


class Incidents:
    """The last ``KEPT`` incidents. One that repeats itself stays one, or an outage would push out all else."""

    def __init__(self) -> None:
        self._kept: deque[Incident] = deque(maxlen=KEPT)

    def add(self, what: What, message: str, at: datetime, *, code: str = "", count: int = 1) -> None:
        """``count``: how often at once; rows, where it is about rows."""
        for incident in self._kept:
            if (incident.what, incident.message, incident.code) == (what, message, code):
                incident.last, incident.count = at, incident.count + count
                self._kept.remove(incident)
                self._kept.append(incident)
                return
        self._kept.append(Incident(at, at, what, message, code, count))

    def __iter__(self) -> Iterator[Incident]:
        """The latest first."""
        return reversed(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
