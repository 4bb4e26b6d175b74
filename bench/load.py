"""The load sent to a service, and the result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.services import ROOT, Service

#: Between the row numbers of one round and the next; no run has more rows.
SPACE = 2_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """The rows to send, and how to send them."""

    first: int  #: the number of the first row
    count: int  #: rows, or tasks whose three updates are sent
    batch: int = 500  #: rows in a request
    lives: bool = False  #: three updates of each task
    connections: int = 8
    rate: float | None = None  #: rows a second to send at, regardless of the answers; None: as fast as answers come
    flush: bool = True  #: POST a flush at the end, which belongs to the time

    @property
    def rows(self) -> int:
        """Rows that are sent."""
        return self.count * 3 if self.lives else self.count

    def moved(self, round_: int) -> Load:
        """The same with other rows, for the round ``round_``."""
        return replace(self, first=self.first + round_ * SPACE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. Times are in seconds."""

    rows: int
    requests: int
    accepting: float  #: from the first byte sent until the last answer
    flushing: float  #: from there until everything was in the sink
    p50: float  #: of the answers
    p99: float
    refused: int  #: requests with an answer other than 2xx
    answer: str  #: the first of those
    cpu: float | None = None  #: processor time of the service

    @property
    def rows_per_second(self) -> float:
        return self.rows / (self.accepting + self.flushing)


class RequestsRefused(Exception):
    """The service refused requests of a workload."""


def send(service: Service, load: Load, before: Callable[[], None] = lambda: None) -> Sample:
    """Send ``load`` from a process of its own, which encodes every request before the clock starts.

    ``before`` runs between the two.

    Raises:
        RequestsRefused: an answer was not 2xx.
    """
    job = json.dumps({"load": asdict(load), **service.job()})
    generator = [sys.executable, "-m", "bench.generator"]
    with subprocess.Popen(generator, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            process.stdout.readline()  # it is ready
            before()
            began = service.cpu()
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
            ended = service.cpu()
        finally:
            if sys.exc_info()[0] is not None:
                process.kill()
    result: dict[str, Any] = json.loads(line or "null") or {}
    if not result:
        raise RequestsRefused(f"the load generator failed with {process.returncode}; is the service alive?")
    sample = Sample(**result)
    if sample.refused:
        raise RequestsRefused(f"{sample.refused} requests of {sample.requests} were refused: {sample.answer}")
    return sample if began is None or ended is None else replace(sample, cpu=ended - began)
