"""What is measured besides the way of a row: an outage, a restart, and the memory."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from bench.contenders import Field, ServiceContender
from bench.load import Load
from bench.series import SERVICE, Series
from bench.services import Persistd
from bench.worker import Worker
from bench.workloads import HOLD, Scale

#: Rows a second that come during the outage.
RATE = 10_000


def outage(field: Field, scale: Scale) -> list[Series]:
    """The sink goes away while rows come, more than the memory may hold, and comes back."""
    contender = field.persistd(buffer={"max_rows": scale.backlog // 2})
    service = cast(Persistd, contender.service)
    load = Load(0, scale.backlog, rate=RATE, flush=False)
    with Worker("bench.generator", load.to_job(**service.job())) as worker:
        with _away(field, service):
            worker.go()
            sample = worker.result()
            behind = service.stats()["buffer"]["total_count"]
        began = time.perf_counter()
        service.flush()
        seconds = time.perf_counter() - began
    if sample.refused:
        raise AssertionError(f"{sample.refused} requests were refused during an outage: {sample.answer}")
    assert contender.store is not None
    contender.store.check(load)
    peak = service.memory("VmHWM")

    def series(measure: str, unit: str, value: float) -> Series:
        return Series(field.sink, "outage", measure, SERVICE, unit, [value])

    found = [
        series(f"answer p50 at {RATE:,} rows/s", "ms", sample.latencies["p50"] * 1000),
        series(f"answer p99 at {RATE:,} rows/s", "ms", sample.latencies["p99"] * 1000),
        series("catch-up", "rows/s", behind / seconds),
    ]
    return found if peak is None else [*found, series(f"most memory, max_rows {scale.backlog // 2:,}", "MB", peak)]


@contextmanager
def _away(field: Field, service: Persistd) -> Iterator[None]:
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
            server = field.databases.server(field.sink)
            server.stop()
            try:
                yield
            finally:
                server.start()


def replay(field: Field, scale: Scale) -> list[Series]:
    """The start after a crash, with a journal full of rows that no sink has."""
    contender = field.persistd(buffer=HOLD)
    service = contender.service
    values = []
    for number in range(scale.size_rounds):
        empty = _restart(contender)
        load = Load(0, scale.backlog, flush=False).moved(number)
        contender.send(load)
        full = _restart(contender)
        values.append(load.count / (full - empty))
        cast(Persistd, service).flush()
        assert contender.store is not None
        contender.store.check(load)
    return [Series(field.sink, "replay", "start after a crash", SERVICE, "rows/s", values)]


def _restart(contender: ServiceContender) -> float:
    contender.service.kill()
    return contender.service.start()


def memory(field: Field, scale: Scale) -> list[Series]:
    """Resident memory: idle, and with rows that wait."""
    contender = field.persistd(buffer=HOLD)
    service = contender.service
    contender.service.stop()
    contender.service.start()
    idle = service.memory()
    if idle is None:
        return []
    found = [("idle", "MB", idle)]
    sent = 0
    for count in scale.memory:
        contender.send(Load(sent, count - sent, flush=False))
        sent = count
        found.append((f"{count:,} rows wait", "MB", service.memory() or 0.0))
    bytes_a_row = (found[-1][2] - found[1][2]) * 2**20 / (scale.memory[-1] - scale.memory[0])
    found.append((f"a row more, from {scale.memory[0]:,} on", "bytes", bytes_a_row))
    return [Series(field.sink, "memory", measure, SERVICE, unit, [value]) for measure, unit, value in found]
