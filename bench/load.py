"""What a contender is told to do, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Between the numbers of one round and the next; no run has more rows.
SPACE = 2_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """Rows to send, and how."""

    first: int  #: the number of the first row
    count: int  #: rows, or tasks whose life is sent
    revision: int = 0  #: how often the rows were written before
    lives: bool = False  #: three updates of each task
    batch: int = 500  #: rows in a request
    connections: int = 8
    rate: float | None = None  #: rows a second to send at, whatever the answers do; None: as fast as answers come
    flush: bool = True  #: have it all written at the end, which belongs to the time
    fill: int | None = None  #: rows, a multiple of batch, after which all is written too; not for lives

    @property
    def rows(self) -> int:
        """Rows that are sent."""
        return self.count * 3 if self.lives else self.count

    @property
    def final(self) -> int:
        """The revision that every row has in the end."""
        return 2 if self.lives else self.revision

    def moved(self, round_: int) -> Load:
        """The same with rows of other numbers, for the round ``round_``."""
        return replace(self, first=self.first + round_ * SPACE)

    def to_job(self, **more: Any) -> dict[str, Any]:
        """For a worker."""
        return {"load": asdict(self), **more}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. Times are in seconds."""

    rows: int
    requests: int
    accepting: float  #: from the first byte sent until the last answer
    flushing: float  #: from there until everything was in the sink
    latencies: dict[str, float] = field(default_factory=dict)  #: p50, p99 and max of the answers
    refused: int = 0  #: requests with an answer other than 2xx
    answer: str = ""  #: the first of those
    own_cpu: float = 0.0  #: of the load generator
    cpu: float | None = None  #: of the service

    @property
    def seconds(self) -> float:
        return self.accepting + self.flushing

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.accepting

    @property
    def cpu_per_row(self) -> float | None:
        """Microseconds of the service's processor time."""
        return None if self.cpu is None else self.cpu / self.rows * 1e6


def percentiles(latencies: list[float]) -> dict[str, float]:
    """p50, p99 and max."""
    ordered = sorted(latencies)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {"p50": ordered[round(last * 0.5)], "p99": ordered[round(last * 0.99)], "max": ordered[last]}
