"""The last quarter of an hour: rates, limits, and what is worth remembering."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tests.rig import Rig
from tornado_persist.errors import NotAccepting
from tornado_persist.testing import FlakySink
from tornado_persist.web.history import COLUMNS, INTERVAL, SPAN, Sampler


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def parts(io_loop: IOLoop, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, FlakySink())
    io_loop.run_sync(lambda: rig.start(max_bytes=10_000))
    yield rig
    io_loop.run_sync(rig.stop)


@pytest.fixture
def sampler(parts: Rig, clock: Clock) -> Sampler:
    return Sampler(parts.health, parts.metrics, clock=clock)


@pytest.mark.gen_test
async def test_a_sample_has_the_rates_since_the_one_before(parts: Rig, sampler: Sampler, clock: Clock) -> None:
    await parts.add("a", "b", "c")
    await parts.add("a", kind="session")
    await parts.add("a")
    clock.now += 2
    sampler.sample()
    await parts.flusher.flush_once()
    clock.now += 4
    sampler.sample()
    columns = sampler.columns()
    assert tuple(columns) == COLUMNS
    assert columns["accepted"] == [2.5, 0]
    assert columns["merged"] == [0.5, 0]
    assert columns["written"] == [0, 1]
    assert columns["pending"] == columns["in_memory"] == [4, 0]
    assert columns["journal_bytes"][0]
    flush_ms = columns["flush_ms"]
    assert flush_ms[0] is None, "no flush in that time"
    assert flush_ms[1] is not None
    assert columns["sink_up"] == [False, True], "known by the flush alone: a sample makes no call"


@pytest.mark.gen_test
async def test_answer_times_are_those_of_the_batches_in_the_interval(
    parts: Rig, sampler: Sampler, clock: Clock
) -> None:
    for _ in range(99):
        parts.metrics.answered("TasksBatch", "POST", 200, 0.0009)
    parts.metrics.answered("SessionsBatch", "POST", 200, 0.04)
    parts.metrics.answered("Flush", "POST", 200, 8)
    clock.now += INTERVAL
    sampler.sample()
    clock.now += INTERVAL
    sampler.sample()
    p50, p99 = sampler.columns()["answer_p50_ms"], sampler.columns()["answer_p99_ms"]
    assert p50[0] is not None
    assert p99[0] is not None
    assert p50[0] == p99[0] == 1, "the upper bound of their bucket"
    assert p50[1] is None, "no request was answered in the second interval"


@pytest.mark.gen_test
async def test_answers_by_status_and_their_times_in_the_last_minute(parts: Rig, sampler: Sampler, clock: Clock) -> None:
    for seconds in (0.0009, 0.0009, 11):
        parts.metrics.answered("TasksBatch", "POST", 200, seconds)
    parts.metrics.answered("SessionsBatch", "POST", 422, 0.0009)
    parts.metrics.answered("Stats", "GET", 200, 0.0009)
    answers = sampler.answers()
    assert answers["statuses"] == [{"status": 200, "total": 3, "recent": 3}, {"status": 422, "total": 1, "recent": 1}]
    assert (answers["p50_ms"], answers["p99_ms"]) == (1, 2 * answers["limit_ms"]), "over the last bound"
    for _ in range(int(SPAN / INTERVAL) + 1):
        clock.now += INTERVAL
        sampler.sample()
    parts.metrics.answered("TasksBatch", "POST", 200, 0.04)
    answers = sampler.answers()
    assert answers["statuses"] == [{"status": 200, "total": 4, "recent": 1}, {"status": 422, "total": 1, "recent": 0}]
    assert answers["p50_ms"] == answers["p99_ms"] == 50


@pytest.mark.gen_test
async def test_memory_is_bounded(sampler: Sampler, clock: Clock) -> None:
    for _ in range(500):
        clock.now += INTERVAL
        sampler.sample()
    columns: dict[str, Any] = {**sampler.columns()}
    assert {len(column) for column in columns.values()} == {SPAN / INTERVAL}


@pytest.mark.gen_test
async def test_a_full_journal_is_remembered_once(parts: Rig, sampler: Sampler, clock: Clock) -> None:
    await parts.add("a", source_text="x" * 9000)
    with pytest.raises(NotAccepting):
        await parts.add("b", source_text="x" * 9000)
    for _ in range(3):
        clock.now += INTERVAL
        sampler.sample()
    (incident,) = parts.metrics.incidents
    assert (incident.what, incident.count) == ("intake", 1)
    assert "full" in incident.message
