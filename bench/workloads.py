"""What is measured while the service takes rows: how many, and how soon it answers.

Each workload takes a :class:`Field`, a :class:`Scale` and returns series. Every contender gets the same numbers in the
same round, in turn, and the one that begins changes from round to round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from bench.contenders import Contender, Field, in_turn
from bench.load import SPACE, Load, Sample
from bench.series import CPU, SERVICE, UNSYNCED, Series, notes, ratio

#: Nothing is flushed before the end.
HOLD = {"capacity": 10_000_000, "max_rows": 10_000_000, "flush_interval": 3600.0}
Samples = dict[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    rounds: int
    rows: int  #: of the runs for throughput
    requests: int  #: of one row
    seconds: float  #: at a fixed rate
    rate_rounds: int
    size_rounds: int
    buffered: tuple[int, ...]
    backlog: int  #: rows in an outage and for a replay
    memory: tuple[int, ...]


FULL = Scale(5, 100_000, 20_000, 10.0, 3, 3, (1000, 10_000, 100_000, 1_000_000), 200_000, (50_000, 100_000, 200_000))
QUICK = Scale(3, 20_000, 4000, 3.0, 1, 1, (1000, 10_000, 100_000), 40_000, (20_000, 40_000))


def rounds(contenders: list[Contender], count: int, load: Callable[[int], Load]) -> Samples:
    """Run every contender ``count`` times, on ``load(round)``."""
    samples: Samples = {contender.name: [] for contender in contenders}
    for number in range(count):
        for contender in in_turn(contenders, number):
            samples[contender.name].append(contender.run(load(number)))
    return samples


def present(*contenders: Any) -> list[Contender]:
    """Those that there are for this sink."""
    return [contender for contender in contenders if contender is not None]


def throughput(field: Field, workload: str, samples: Samples, unit: str = "rows/s") -> list[Series]:
    """Rows a second until all were in the sink."""
    return [
        Series(field.sink, workload, "end to end", name, unit, [s.rows_per_second for s in some], notes(some))
        for name, some in samples.items()
    ]


def rows(field: Field, scale: Scale) -> list[Series]:
    """Rows that are new, and then the same rows with new values."""
    unsynced = field.persistd(UNSYNCED, journal={"sync": "off"})
    contenders = present(field.persistd(), unsynced, field.peer(), field.limit())
    new: Samples = {contender.name: [] for contender in contenders}
    again: Samples = {contender.name: [] for contender in contenders}
    for number in range(scale.rounds):
        for revision, samples in enumerate((new, again)):
            for contender in in_turn(contenders, number):
                samples[contender.name].append(contender.run(Load(0, scale.rows, revision).moved(number)))
    return [*throughput(field, "distinct rows", new), *throughput(field, "updates", again)]


def lives(field: Field, scale: Scale) -> list[Series]:
    """Three updates of each task, all before the flush."""
    contenders = present(field.persistd(buffer=HOLD), field.peer())
    count = scale.rows * 3 // 5
    samples = rounds(contenders, scale.rounds, Load(0, count, lives=True).moved)
    return throughput(field, "whole lives", samples, "updates/s")


def single(field: Field, scale: Scale) -> list[Series]:
    """Requests of one row."""
    unsynced = field.persistd(UNSYNCED, journal={"sync": "off"})
    contenders = present(field.persistd(), unsynced, field.bare())
    samples = rounds(contenders, scale.rounds, Load(0, scale.requests, batch=1).moved)
    return [
        Series(
            *(field.sink, "single rows", "answered", name, "requests/s"),
            [sample.requests_per_second for sample in some],
            notes(some),
        )
        for name, some in samples.items()
    ]


def rates(field: Field, scale: Scale) -> list[Series]:
    """Answer times while rows come at a fixed rate; the bare handler's tell what the machine itself takes."""
    contenders = present(field.persistd(), field.peer(), field.bare())
    series = []
    for step, rate in enumerate((20_000, 40_000)):
        load = Load(step * 100 * SPACE, int(rate * scale.seconds), rate=rate)
        samples = rounds(contenders, scale.rate_rounds, load.moved)
        for name, some in samples.items():
            beside = {note: value for note, value in notes(some).items() if not note.startswith("p")}
            for measure in ("p50", "p99"):
                values = [sample.latencies[measure] * 1000 for sample in some]
                series.append(Series(field.sink, f"at {rate:,} rows/s", measure, name, "ms", values, beside))
    return series


def sizes(field: Field, scale: Scale) -> list[Series]:
    """Batches of 1 to 1000 rows."""
    service = field.persistd()
    batches = (1, 10, 100, 500, 1000)
    samples: dict[int, list[Sample]] = {batch: [] for batch in batches}
    for number in range(scale.size_rounds):
        for place, batch in enumerate(batches):
            count = min(scale.rows, scale.requests // 4 * batch)
            samples[batch].append(service.run(Load((place * 100 + number) * SPACE // 10, count, batch=batch)))
    series = [
        _cost(field, "batch size", f"{batch:,} in a batch", [sample.seconds for sample in some], some)
        for batch, some in samples.items()
    ]
    return [*series, *flatness(field, "batch size", "100 to 1,000 in a batch", series[2:])]


def _cost(field: Field, workload: str, measure: str, seconds: list[float], samples: list[Sample]) -> Series:
    values = [time / sample.rows * 1e6 for time, sample in zip(seconds, samples, strict=True)]
    return Series(field.sink, workload, measure, SERVICE, "µs/row", values, notes(samples))


def flatness(field: Field, workload: str, span: str, series: list[Series]) -> list[Series]:
    """How much dearer a row is in one of ``series`` than in another, at most: in time, and in processor time.

    Of two series the rounds decide, and not which medians are the furthest apart: when the machine changes its speed in
    between, those may be of different rounds.
    """
    found = [(f"dearest / cheapest, {span}", max(ratio(*pair) for pair in permutations(series, 2)))]
    work = [one.notes[CPU] for one in series if CPU in one.notes]
    if work:
        found.append((f"of the processor time, {span}", max(work) / min(work)))
    return [Series(field.sink, workload, measure, SERVICE, "×", [value]) for measure, value in found]


def buffered(field: Field, scale: Scale) -> list[Series]:
    """Rows that wait in memory: until so many are there, while others come; and until a flush on demand, over and over.

    As many rows at every level, unless that is less than three fills, or one. Each run has a place and a service of its
    own, that go after it, or the later ones would pay for memory that a virtual machine is given only as it is first
    used: the files of those before stay in the system's cache. For the same reason there are three fills: the first two
    pay for the memory that a million rows take.
    """
    steady: dict[int, list[Sample]] = {count: [] for count in scale.buffered}
    on_demand: dict[int, list[Sample]] = {count: [] for count in scale.buffered}
    for _ in range(scale.size_rounds):
        for count in scale.buffered:
            steady[count].append(_alone(field, Load(0, max(3 * count, scale.rows)), HOLD | {"capacity": count}))
            on_demand[count].append(_alone(field, Load(0, max(count, scale.rows), fill=count), HOLD))
    return [*_levels(field, "buffered", steady), *_levels(field, "flushed on demand", on_demand)]


def _alone(field: Field, load: Load, buffer: dict[str, Any]) -> Sample:
    with Field(field.sink, field.databases) as alone:
        return alone.persistd(buffer=buffer).run(load)


def _levels(field: Field, workload: str, samples: dict[int, list[Sample]]) -> list[Series]:
    series = [
        _cost(field, workload, f"{count:,} rows", [sample.seconds for sample in some], some)
        for count, some in samples.items()
    ]
    first, *_, last = samples
    return [*series, *flatness(field, workload, f"{first:,} to {last:,} rows", series)]
