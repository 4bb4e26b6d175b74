"""A distribution in a handful of counters: cheap to add to, and enough to tell a median from a bad day."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """A histogram at one moment, or what came to it between two of them.

    ``counts[i]`` observations were at most ``bounds[i]`` and above the bound before it; the last count is of those
    above every bound. ``sum`` is of the observed values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """None where nothing was observed."""
        count = self.count
        return self.sum / count if count else None

    def __add__(self, other: Reading) -> Reading:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Reading(self.bounds, counts, self.sum + other.sum)

    def __sub__(self, earlier: Reading) -> Reading:
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Reading(self.bounds, counts, self.sum - earlier.sum)

    def quantile(self, q: float) -> float | None:
        """The value that a share of ``q`` of the observations does not pass; None where nothing was observed.

        As exact as the bounds are close: within a bucket the values are taken to be spread evenly, and a value above
        the last bound shows as that bound.
        """
        rank = q * self.count
        if not self.count:
            return None
        below = 0
        for index, count in enumerate(self.counts[:-1]):
            if count and below + count >= rank:
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * max(0.0, rank - below) / count
            below += count
        return self.bounds[-1]


class Histogram:
    """Counts observations by upper bound.

    One thread at a time may observe, any may read: the counts are copied in one step of the interpreter, so a reading
    is a state that was; its ``sum`` may lack the observation that is just being made.
    """

    __slots__ = ("_counts", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: ascending."""
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value. Costs a fraction of a microsecond."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def read(self) -> Reading:
        """How it stands."""
        return Reading(self.bounds, tuple(self._counts), self._sum)
