"""When rows are flushed, in what portions, and what becomes of them when the sink fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from tests import rows
from tornado_persist import flusher as flusher_module
from tornado_persist.buffer import Buffer
from tornado_persist.errors import BatchRejected, FlushFailed, SinkUnavailable
from tornado_persist.flusher import Flusher
from tornado_persist.metrics import Metrics
from tornado_persist.models import Kind
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.testing import FlakySink


class Rig:
    """A flusher with its buffer and a sink in memory."""

    def __init__(self, *, interval: float = 3600, capacity: int = 1000) -> None:
        self.sink = FlakySink()
        self.buffer = Buffer()
        self.metrics = Metrics(datetime.now(UTC))
        self.runner = SinkRunner(self.sink)
        self.flusher = Flusher(self.buffer, self.runner, self.metrics, interval=interval, capacity=capacity)

    def add(self, *keys: str, kind: Kind = "task", **fields: object) -> None:
        at = datetime.now(UTC)
        self.metrics.merged += self.buffer.add(kind, [rows.row(kind, key, **fields) for key in keys], at)
        self.metrics.accepted[kind] += len(keys)
        self.flusher.poke()

    def stored(self, kind: Kind = "task") -> list[str]:
        return list(self.sink.stored[kind])

    def assert_conserved(self) -> None:
        written = sum(self.metrics.written.values())
        assert sum(self.metrics.accepted.values()) == written + self.metrics.merged + len(self.buffer)


@asynccontextmanager
async def rig(*, interval: float = 3600, capacity: int = 1000) -> AsyncIterator[Rig]:
    it = Rig(interval=interval, capacity=capacity)
    try:
        yield it
        it.assert_conserved()
    finally:
        it.sink.release()
        it.flusher._stop_timer()
        await it.runner.close(5)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.gen_test
async def test_a_flush_writes_all_that_waits_and_tells_how_much() -> None:
    async with rig() as it:
        it.add("s1", kind="session")
        it.add("a", "b", "a")
        flushed = await it.flusher.flush_once()
        assert (flushed.sessions, flushed.tasks, flushed.error) == (1, 2, None)
        assert (it.stored("session"), it.stored()) == (["s1"], ["a", "b"])
        assert len(it.buffer) == 0


@pytest.mark.gen_test
async def test_a_flush_of_nothing_asks_nothing_of_the_sink_and_is_not_counted() -> None:
    async with rig() as it:
        assert await it.flusher.flush_once() == flusher_module.Flushed()
        assert it.sink.calls == []
        assert (it.metrics.flush_count, it.metrics.last_flush) == (0, None)


@pytest.mark.gen_test
async def test_chunks_are_bounded_and_sessions_go_before_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "CHUNK_ROWS", 4)
    async with rig() as it:
        it.add(*"abcdefg")
        it.add(*"vwxyz", kind="session")
        await it.flusher.flush_once()
        written = [
            "".join([row["session_id"] for row in batch.sessions] + [row["task_id"] for row in batch.tasks])
            for batch in it.sink.batches
        ]
        assert written == ["vwxy", "zabc", "defg"]
        assert it.metrics.flush_count == 1


@pytest.mark.gen_test
async def test_reaching_the_capacity_starts_a_flush() -> None:
    async with rig(capacity=3) as it:
        it.add("a", "b")
        assert it.flusher._background is None
        it.add("c")
        await wait_until(lambda: it.stored() == ["a", "b", "c"])


@pytest.mark.gen_test
async def test_what_reaches_the_capacity_during_a_flush_is_flushed_after_it() -> None:
    async with rig(capacity=2) as it:
        it.sink.hold()
        it.add("a", "b")
        await wait_until(it.sink.holding.is_set)
        it.add("c", "d")
        it.sink.release()
        await wait_until(lambda: it.stored() == ["a", "b", "c", "d"])
        assert len(it.sink.batches) == 2


@pytest.mark.gen_test
async def test_the_timer_flushes_what_is_below_the_capacity() -> None:
    async with rig(interval=0.05) as it:
        it.add("a")
        await wait_until(lambda: it.stored() == ["a"])


@pytest.mark.gen_test
async def test_the_next_flush_is_an_interval_after_the_last_whatever_caused_that() -> None:
    async with rig(interval=3600) as it:
        assert it.flusher.next_flush - datetime.now(UTC) <= timedelta(hours=1)
        it.add("a")
        await it.flusher.flush(5)
        assert it.metrics.last_flush is not None
        assert it.flusher.next_flush == it.metrics.last_flush + timedelta(hours=1)
        it.flusher.set_interval(60)
        assert it.flusher.next_flush - datetime.now(UTC) <= timedelta(minutes=1)


@pytest.mark.gen_test
async def test_one_flush_at_a_time_and_what_arrives_meanwhile_waits_for_the_next() -> None:
    async with rig() as it:
        it.sink.hold()
        it.add("a", status="pending")
        first = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        it.add("a", "b", status="completed")
        assert it.flusher.waiting("task") == 3
        second = asyncio.ensure_future(it.flusher.flush_once())
        it.sink.release()
        assert [(await first).tasks, (await second).tasks] == [1, 2]
        assert [batch.tasks[0]["status"] for batch in it.sink.batches] == ["pending", "completed"]


@pytest.mark.gen_test
async def test_a_failed_write_keeps_its_rows_under_newer_updates() -> None:
    async with rig() as it:
        it.add("a", status="pending", context="kept")
        it.add("b")
        it.sink.fail_next()
        it.sink.hold()
        flush = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        it.add("a", "c", status="completed")
        it.sink.release()
        flushed = await flush
        assert isinstance(flushed.error, SinkUnavailable)
        assert (flushed.tasks, it.flusher.waiting("task"), it.metrics.flush_count) == (0, 3, 0)
        it.assert_conserved()
        assert (await it.flusher.flush_once()).tasks == 3
        stored = it.sink.stored["task"]
        assert list(stored) == ["a", "b", "c"]
        assert (stored["a"]["status"], stored["a"]["context"]) == ("completed", "kept")


@pytest.mark.gen_test
async def test_chunks_written_before_a_failure_are_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "CHUNK_ROWS", 2)
    async with rig() as it:
        it.add(*"abcd")
        it.sink.refused.add("c")
        flushed = await it.flusher.flush_once()
        assert isinstance(flushed.error, BatchRejected)
        assert (flushed.tasks, it.stored(), it.flusher.waiting("task")) == (2, ["a", "b"], 2)
        it.sink.refused.clear()
        await it.flusher.flush_once()
        assert [len(batch) for batch in it.sink.batches] == [2, 2]


@pytest.mark.gen_test
async def test_after_a_failure_only_the_timer_tries_again_not_each_arriving_batch() -> None:
    async with rig(capacity=1, interval=0.2) as it:
        it.sink.down = True
        it.add("a")
        await wait_until(lambda: it.sink.calls.count("open") == 1)
        await wait_until(lambda: it.flusher._failing)
        for key in "bcdefgh":
            it.add(key)
        assert it.sink.calls.count("open") == 1
        it.sink.down = False
        await wait_until(lambda: it.stored() == list("abcdefgh"))


@pytest.mark.gen_test
async def test_a_bug_during_a_write_puts_the_rows_back() -> None:
    async with rig() as it:
        it.add("a")
        it.sink.fail_next(error=ZeroDivisionError)
        with capture_logs():
            flushed = await it.flusher.flush_once()
        assert isinstance(flushed.error, SinkUnavailable)
        assert it.flusher.waiting("task") == 1


@pytest.mark.gen_test
async def test_flush_is_a_barrier_behind_a_flush_in_progress() -> None:
    async with rig() as it:
        it.sink.hold()
        it.add("a")
        running = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        it.add("b")
        barrier = asyncio.ensure_future(it.flusher.flush(10))
        await asyncio.sleep(0)
        assert not barrier.done()
        it.sink.release()
        flushed = await barrier
        assert it.stored() == ["a", "b"]
        assert (flushed.tasks, flushed.error) == (2, None), "rows of the flush in progress were committed in the call"
        await running


@pytest.mark.gen_test
async def test_flush_gives_up_waiting_but_the_flush_goes_on() -> None:
    async with rig() as it:
        it.sink.hold()
        it.add("a")
        flushed = await it.flusher.flush(0.02)
        assert isinstance(flushed.error, FlushFailed)
        assert (flushed.tasks, it.flusher.waiting("task")) == (0, 1)
        it.sink.release()
        await wait_until(lambda: it.stored() == ["a"])


@pytest.mark.gen_test
async def test_calls_that_wait_for_the_same_flush_share_it() -> None:
    async with rig() as it:
        it.sink.hold()
        it.add("a")
        running = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        it.add("b")
        flushes = [asyncio.ensure_future(it.flusher.flush(10)) for _ in range(50)]
        await asyncio.sleep(0)
        it.sink.release()
        results = await asyncio.gather(*flushes)
        assert {result.error for result in results} == {None}
        await running
        assert len(it.sink.batches) == 2


@pytest.mark.gen_test
async def test_flush_tells_why_it_failed() -> None:
    async with rig() as it:
        it.sink.down = True
        it.add("a")
        flushed = await it.flusher.flush(5)
        assert str(flushed.error) == "the flaky sink is down"


@pytest.mark.gen_test
async def test_each_flush_is_one_line_with_rows_merged_and_milliseconds() -> None:
    async with rig() as it:
        it.add("a", "a", "b", source_text="secret text")
        with capture_logs() as logs:
            await it.flusher.flush_once()
            it.add("c")
            it.sink.down = True
            await it.flusher.flush_once()
        flushes = [log for log in logs if log["event"].startswith("flush")]
        assert [(log["event"], log["rows"], log.get("merged")) for log in flushes] == [
            ("flush", 2, 1),
            ("flush failed", 0, None),
        ]
        assert all(isinstance(log["ms"], int) for log in flushes)
        assert "secret text" not in str(logs)


@pytest.mark.gen_test
async def test_drain_tries_until_all_is_written_or_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "DRAIN_PAUSE", 0.01)
    async with rig() as it:
        it.add("a")
        it.sink.fail_next(3)
        await it.flusher.drain(10)
        assert it.stored() == ["a"]
        it.sink.down = True
        it.add("b")
        await it.flusher.drain(0.05)
        assert it.flusher.waiting("task") == 1


@pytest.mark.gen_test
async def test_switching_writes_what_waits_to_the_old_sink_and_the_rest_to_the_new() -> None:
    async with rig() as it:
        it.add("a")
        new = FlakySink()
        runner = SinkRunner(new)
        await it.flusher.switch(runner, 5)
        it.add("b")
        await it.flusher.flush(5)
        assert (it.stored(), list(new.stored["task"])) == (["a"], ["b"])
        assert it.sink.calls[-1] == "close"
        await runner.close(5)


@pytest.mark.gen_test
async def test_switching_carries_over_what_the_old_sink_does_not_take() -> None:
    async with rig() as it:
        it.sink.down = True
        it.add("a")
        new = FlakySink()
        runner = SinkRunner(new)
        await it.flusher.switch(runner, 5)
        await it.flusher.flush(5)
        assert list(new.stored["task"]) == ["a"]
        await runner.close(5)


@pytest.mark.gen_test
async def test_switching_gives_up_a_write_that_hangs_in_the_old_sink() -> None:
    async with rig() as it:
        it.sink.hold()
        it.add("a")
        flush = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        new = FlakySink()
        runner = SinkRunner(new)
        await it.flusher.switch(runner, 0.02)
        assert isinstance((await flush).error, SinkUnavailable)
        await it.flusher.flush(5)
        assert list(new.stored["task"]) == ["a"]
        await runner.close(5)
