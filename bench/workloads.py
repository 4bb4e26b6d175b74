"""The workloads. All contenders get the same rows in each round, in turn, and another one begins each round."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from bench.field import Contender, Field
from bench.load import SPACE, Load, Sample, send
from bench.reads import READS, fill, read_one, reading, walk
from bench.rows import task
from bench.services import Persistd
from tornado_persist.records.models import SHAPES, Batch
from tornado_persist.records.times import stamp

#: Rows of a write for ``guard``.
UPDATES = 5000
C = TypeVar("C")
T = TypeVar("T")

#: Rows a second during an outage.
RATE = 10_000
#: Nothing is flushed before the end.
HOLD = {"capacity": 10_000_000, "max_rows": 10_000_000, "flush_interval": 3600.0}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    rounds: int
    batches: tuple[int, ...]  #: rows in a request
    rows: int
    requests: int  #: of one row
    seconds: float  #: at a fixed rate
    backlog: int  #: rows in an outage and for a replay
    reads: int  #: of one row


@dataclass(frozen=True, slots=True)
class Figures:
    """One measure of a workload: for each contender the values of all rounds."""

    workload: str
    measure: str
    values: dict[str, list[float]]


def take_turns(contenders: list[C], rounds: int, turn: Callable[[C, int], T]) -> list[list[T]]:
    """``turn(contender, round)`` for each; the samples by contender."""
    samples: list[list[T]] = [[] for _ in contenders]
    for number in range(rounds):
        for place in range(len(contenders)):
            which = (place + number) % len(contenders)
            samples[which].append(turn(contenders[which], number))
    return samples


def run(workload: str, contenders: list[Contender], scale: Scale, load: Load, *measures: str) -> list[Figures]:
    """Run ``load`` on each contender in each round."""
    samples = take_turns(contenders, scale.rounds, lambda contender, number: contender.run(load.moved(number)))
    return figures(workload, [one.name for one in contenders], samples, *measures)


def figures(workload: str, names: list[str], samples: list[list[Sample]], *measures: str) -> list[Figures]:
    """The measures of samples. Processor time is left out where it is unknown."""
    found = []
    for measure in measures:
        value = MEASURES[measure]
        values = {name: [value(sample) for sample in some] for name, some in zip(names, samples, strict=True)}
        known = {name: [value for value in some if value is not None] for name, some in values.items()}
        if all(known.values()):
            found.append(Figures(workload, measure, known))
    return found


MEASURES: dict[str, Callable[[Sample], float | None]] = {
    "rows/s": lambda sample: sample.rows_per_second,
    "requests/s": lambda sample: sample.requests / sample.accepting,
    "p50 ms": lambda sample: sample.p50 * 1000,
    "p99 ms": lambda sample: sample.p99 * 1000,
    "CPU µs/row": lambda sample: None if sample.cpu is None else sample.cpu / sample.rows * 1e6,
}


def rows(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """Distinct rows, until all are in the sink."""
    contenders = [*field.checkouts(), *field.peer()]
    for step, batch in enumerate(scale.batches):
        load = Load(step * 100 * SPACE, scale.rows, batch)
        yield run(f"rows, {batch} a request", contenders, scale, load, "rows/s", "p50 ms", "p99 ms", "CPU µs/row")


def lives(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """Three updates of each task, all before the flush."""
    contenders = [*field.checkouts(**HOLD), *field.peer()]
    load = Load(0, scale.rows // 2, lives=True)
    yield run("lives", contenders, scale, load, "rows/s", "p50 ms", "p99 ms", "CPU µs/row")


def single(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """Requests of one row."""
    contenders = [*field.checkouts(), *field.bare()]
    load = Load(0, scale.requests, batch=1)
    yield run("single", contenders, scale, load, "requests/s", "p50 ms", "p99 ms", "CPU µs/row")


def rates(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """Answer times while rows come at a fixed rate; the bare handler's show what the machine itself takes."""
    contenders = [*field.checkouts(), *field.peer(), *field.bare()]
    for step, rate in enumerate((10_000, 20_000)):
        load = Load(step * 100 * SPACE, int(rate * scale.seconds), rate=rate)
        yield run(f"rates, {rate:,} rows/s", contenders, scale, load, "p50 ms", "p99 ms", "CPU µs/row")


def protected(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """The same rows with tokens, with TLS, and with both: what these cost."""
    contenders = field.protected()
    for step, batch in enumerate(scale.batches):
        load = Load(step * 100 * SPACE, scale.rows, batch)
        yield run(f"protected, {batch} a request", contenders, scale, load, "rows/s", "p50 ms", "CPU µs/row")
    load = Load(len(scale.batches) * 100 * SPACE, scale.requests, batch=1)
    yield run("protected, 1 a request", contenders, scale, load, "requests/s", "p50 ms", "CPU µs/row")


def outage(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """The sink goes away while twice as many rows come as memory may hold, and comes back."""
    contenders = field.checkouts(max_rows=scale.backlog // 2)
    load = Load(0, scale.backlog, rate=RATE, flush=False)
    catch_up: dict[str, list[float]] = {contender.name: [] for contender in contenders}

    def turn(contender: Contender, number: int) -> Sample:
        service = contender.service
        assert isinstance(service, Persistd)
        assert contender.store is not None
        with away(field, service):
            sample = send(service, load.moved(number))
        began = time.perf_counter()
        service.flush()
        catch_up[contender.name].append(load.count / (time.perf_counter() - began))
        contender.store.check(load.moved(number))
        return sample

    samples = take_turns(contenders, min(scale.rounds, 3), turn)
    names = [one.name for one in contenders]
    yield [*figures("outage", names, samples, "p50 ms", "p99 ms"), Figures("outage", "catch-up rows/s", catch_up)]


@contextmanager
def away(field: Field, service: Persistd) -> Iterator[None]:
    """The sink cannot be written to; at the end it can again."""
    match field.sink:
        case "sqlite":
            connection = sqlite3.connect(service.place, isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                connection.execute("ROLLBACK")
                connection.close()
        case "jsonl":
            directory = Path(service.place)
            aside = directory.rename(directory.with_name("aside"))
            directory.touch()
            try:
                yield
            finally:
                directory.unlink()
                aside.rename(directory)
        case _:
            field.server.stop()
            try:
                yield
            finally:
                field.server.start()


def replay(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """The start after a crash, with a journal full of unwritten rows; the time of an empty start is subtracted."""
    contenders = field.checkouts(**HOLD)
    load = Load(0, scale.backlog, flush=False)
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}

    def turn(contender: Contender, number: int) -> Sample:
        service, store = contender.service, contender.store
        service.flush()
        service.kill()
        empty = service.start()
        sample = send(service, load.moved(number))
        service.kill()
        speeds[contender.name].append(load.count / max(service.start() - empty, 0.001))
        service.flush()
        assert store is not None
        store.check(load.moved(number))
        return sample

    take_turns(contenders, min(scale.rounds, 3), turn)
    yield [Figures("replay", "rows/s", speeds)]


def guard(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """Updates of stored rows, written by the sink alone: ``writers = "several"`` beside ``"one"``."""
    sinks = {"this": field.ours("several"), "one writer": field.ours("one")}
    times: dict[str, dict[str, list[float]]] = {"ms": {}, "client's CPU ms": {}}
    for sink in sinks.values():
        sink.write(_updates(0))
    for number in range(1, 4 * scale.rounds + 1):
        for name, sink in [*sinks.items()][:: 1 if number % 2 else -1]:
            batch = _updates(number)
            began, cpu = time.perf_counter(), time.process_time()
            sink.write(batch)
            times["ms"].setdefault(name, []).append((time.perf_counter() - began) * 1000)
            times["client's CPU ms"].setdefault(name, []).append((time.process_time() - cpu) * 1000)
    yield [Figures(f"guard, {UPDATES:,} updates", measure, values) for measure, values in times.items()]


def instances(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """One, two and three instances over one database. They share this machine: only the processor time a row tells."""
    if field.sink not in ("postgres", "mysql"):
        return
    groups = {name: field.instances(count) for count, name in enumerate(("this", "2 instances", "3 instances"), 1)}
    values: dict[str, dict[str, list[float]]] = {}

    def turn(name: str, number: int) -> None:
        group, rows = groups[name], scale.rows
        before = field.server_cpu()
        loads = [Load((3 * number + place) * SPACE, rows // len(group)) for place in range(len(group))]
        with ThreadPoolExecutor(len(group)) as pool:
            samples = [*pool.map(send, group, loads)]
        cpu = sum(sample.cpu or 0.0 for sample in samples)
        measures = {
            "rows/s": rows / max(sample.accepting + sample.flushing for sample in samples),
            "instances' CPU µs/row": cpu / rows * 1e6,
            "server's CPU µs/row": (field.server_cpu() - before) / rows * 1e6,
        }
        for measure, value in measures.items():
            values.setdefault(measure, {}).setdefault(name, []).append(value)

    take_turns([*groups], scale.rounds, turn)
    yield [Figures(f"instances, {scale.rows:,} rows", measure, found) for measure, found in values.items()]


def _updates(number: int) -> Batch:
    """Whole rows with the same keys each time, and as times the days of one year."""
    made = []
    for row in map(task, range(UPDATES)):
        update = SHAPES["task"].row({**row, "retry_count": number})
        at = stamp(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number))
        update.created_at = update.updated_at = at  # type: ignore[assignment]
        made.append(update)
    return Batch(tasks=made)


def reads(field: Field, scale: Scale) -> Iterator[list[Figures]]:
    """Pages of a session of many tasks, fresh reads, and what reads do to writing."""
    if field.sink == "jsonl":  # it offers no reads
        return
    this = field.checkouts()[0]
    assert isinstance(this.service, Persistd)
    fill(this.service, scale.rows)
    this.service.flush()
    readers = [this, *field.reader(this.service.place)]
    pages = take_turns(readers, scale.rounds, lambda reader, _: walk(reader.service, scale.rows))
    yield timed(f"reads, pages of 100 of {scale.rows:,} tasks", [reader.name for reader in readers], pages)
    for waiting in (1, 900):
        rounds = [read_one(this.service, waiting, scale.reads) for _ in range(scale.rounds)]
        yield timed(f"reads, a row with {waiting} waiting", ["this", "not fresh"], [*zip(*rounds, strict=True)])

    def turn(name: str, number: int) -> Sample:
        with reading(this.service) if name == "this" else nullcontext():
            return this.run(load.moved(2 * number + (name == "this")))

    names = ["this", "without reads"]
    for step, rate, measures in ((0, None, ["rows/s"]), (100, RATE, ["p50 ms", "p99 ms", "CPU µs/row"])):
        load = Load(step * SPACE, int(rate * scale.seconds) if rate else scale.rows, rate=rate)
        beside = f"reads, {READS} a second beside {f'{rate:,} rows/s' if rate else 'writing'}"
        yield figures(beside, names, take_turns(names, scale.rounds, turn), *measures)


def timed(workload: str, names: list[str], times: Sequence[Sequence[list[float]]]) -> list[Figures]:
    """Percentiles of the seconds of each round, by name."""
    found = []
    for measure, part in (("p50 ms", 0.5), ("p99 ms", 0.99)):
        values = [[sorted(some)[round((len(some) - 1) * part)] * 1000 for some in rounds] for rounds in times]
        found.append(Figures(workload, measure, dict(zip(names, values, strict=True))))
    return found


WORKLOADS: dict[str, Callable[[Field, Scale], Iterator[list[Figures]]]] = {
    "rows": rows,
    "lives": lives,
    "single": single,
    "rates": rates,
    "outage": outage,
    "replay": replay,
    "reads": reads,
    "guard": guard,
    "instances": instances,
    "protected": protected,
}
