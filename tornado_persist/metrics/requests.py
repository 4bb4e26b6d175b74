"""Answers given over HTTP: how many of which kind, and how long each took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tornado_persist.metrics.histogram import Histogram, Reading

#: Upper bounds in seconds: one row takes a third of a millisecond, and a flush may wait for 8 seconds.
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: A client can make up methods, and each would be a series for ever; all others count as one.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"


@dataclass(slots=True)
class _Series:
    count: int
    seconds: Histogram


class Requests:
    """By handler class, method and status: never by URL, of which there is no end."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], _Series] = {}
        self._seconds: dict[tuple[str, str], Histogram] = {}

    def observe(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answer. This is on the way of every request: one look-up, and it costs about a microsecond."""
        series = self._series.get((handler, method, status))
        if series is None:
            series = self._find(handler, method if method in METHODS else OTHER, status)
        series.count += 1
        series.seconds.observe(seconds)

    def _find(self, handler: str, method: str, status: int) -> _Series:
        key = handler, method, status
        if key not in self._series:
            seconds = self._seconds.setdefault((handler, method), Histogram(SECONDS))
            self._series[key] = _Series(0, seconds)
        return self._series[key]

    def counts(self) -> Iterator[tuple[str, str, int, int]]:
        """Handler, method, status and the answers so far."""
        for (handler, method, status), series in self._series.items():
            yield handler, method, status, series.count

    def seconds(self) -> Iterator[tuple[str, str, Reading]]:
        """Handler, method, and the seconds from the request's first line to the answer's end."""
        for (handler, method), histogram in self._seconds.items():
            yield handler, method, histogram.read()

    def seconds_of(self, *handlers: str) -> Reading:
        """The answer times of these handlers together."""
        together = Histogram(SECONDS).read()
        for handler, _method, reading in self.seconds():
            if handler in handlers:
                together += reading
        return together
