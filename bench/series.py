"""What a workload measured: for each contender the values of all rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.load import Sample

#: The one whose figures have goals, and whose ratios to the others are shown.
SERVICE = "persistd"
#: The service with a journal that is not synced, to show what the sync costs.
UNSYNCED = "persistd, sync off"
#: The note of what a row costs the service in processor time, which waits for no disk and no database.
CPU = "service CPU µs/row"


@dataclass(slots=True)
class Series:
    """One figure of one contender, round by round."""

    sink: str
    workload: str
    measure: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)  #: medians of what was seen beside it

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.sink, self.workload, self.measure


def ratio(subject: Series, other: Series) -> float:
    """Median of the ratios within each round, so that a slow minute of the machine counts for both."""
    return statistics.median(mine / theirs for mine, theirs in zip(subject.values, other.values, strict=True) if theirs)


def figure(value: float) -> str:
    """For people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def notes(samples: Sequence[Sample]) -> dict[str, float]:
    """Medians of the samples' answer times (ms) and processor times (µs a row)."""
    seen: dict[str, list[float]] = {}
    for sample in samples:
        for name, seconds in sample.latencies.items():
            seen.setdefault(f"{name} ms", []).append(seconds * 1000)
        if sample.cpu_per_row is not None:
            seen.setdefault(CPU, []).append(sample.cpu_per_row)
        seen.setdefault("generator CPU µs/row", []).append(sample.own_cpu / sample.rows * 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}
