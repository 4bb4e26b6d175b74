"""When rows are flushed, in what chunks, and what happens to them when the sink fails."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.rig import BreakingSink, rig, wait_until
from tornado_persist.errors import FlushFailed, SinkUnavailable
from tornado_persist.pipeline import flusher as flusher_module
from tornado_persist.pipeline.backoff import Backoff
from tornado_persist.records.models import Batch, Kind
from tornado_persist.records.rules import Parsed
from tornado_persist.sinks.base import SinkSettings
from tornado_persist.testing import FlakySink


@pytest.mark.gen_test
async def test_a_flush_writes_all_that_waits_and_tells_how_much(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("s1", kind="session")
        await it.add("a", "b", "a")
        flushed = await it.flusher.flush_once()
        assert (flushed.sessions, flushed.tasks, flushed.error) == (1, 2, None)
        assert (it.stored("session"), it.stored()) == (["s1"], ["a", "b"])
        assert len(it.buffer) == 0


@pytest.mark.gen_test
async def test_a_flush_of_nothing_asks_nothing_of_the_sink_and_is_not_counted(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        flushed = await it.flusher.flush_once()
        assert (flushed.sessions, flushed.tasks, flushed.rejected, flushed.error) == (0, 0, 0, None)
        assert it.sink.calls == []
        assert (it.metrics.flush_count, it.metrics.last_flush) == (0, None)


@pytest.mark.gen_test
async def test_chunks_are_bounded_and_sessions_go_before_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, FlakySink(SinkSettings(max_chunk_rows=4))) as it:
        await it.add(*"abcdefg")
        await it.add(*"vwxyz", kind="session")
        await it.flusher.flush_once()
        written = [
            "".join([row["session_id"] for row in batch.sessions] + [row["task_id"] for row in batch.tasks])
            for batch in it.sink.batches
        ]
        assert written == ["vwxy", "zabc", "defg"]
        assert it.metrics.flush_count == 1


class Note:
    """A value of a row, by which one can tell whether the row is still there."""


@pytest.mark.gen_test
async def test_written_rows_are_let_go_chunk_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "FREE_ROWS", 3)
    async with rig(tmp_path, FlakySink(SinkSettings(max_chunk_rows=4))) as it:
        known: dict[str, weakref.ref[Note]] = {}
        parse = it.ingest._parser.parse

        def noting(kind: Kind, body: bytes) -> Parsed:
            parsed = parse(kind, body)
            for row in parsed.rows:
                note = Note()
                setattr(row, "status", note)  # noqa: B010
                known[row["task_id"]] = weakref.ref(note)
            return parsed

        def there() -> str:
            return "".join(key for key, row in known.items() if row() is not None)

        found: list[str] = []

        def patient(batch: Batch) -> None:
            deadline = time.monotonic() + 5
            while len(there()) > 10 - 4 * len(found) and time.monotonic() < deadline:
                time.sleep(0.001)
            found.append(there())  # and keeps nothing itself

        monkeypatch.setattr(it.sink, "write", patient)
        monkeypatch.setattr(it.ingest._parser, "parse", noting)
        await it.add(*"abcdefghij")
        await it.flusher.flush_once()
        assert found == ["abcdefghij", "efghij", "ij"]
        await wait_until(lambda: not there())


@pytest.mark.gen_test
async def test_reaching_the_capacity_starts_a_flush(tmp_path: Path) -> None:
    async with rig(tmp_path, capacity=3) as it:
        await it.add("a", "b")
        assert it.flusher._background is None
        await it.add("c")
        await wait_until(lambda: it.stored() == ["a", "b", "c"])


@pytest.mark.parametrize(("enough", "batches"), [(100, ["ab", "cdef"]), (2, ["ab", "cd", "ef"])])
@pytest.mark.gen_test
async def test_after_a_flush_rows_gather_for_a_moment_unless_there_are_many(
    enough: int, batches: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher_module, "GATHER", 1.0)  # in which a batch has to be accepted
    monkeypatch.setattr(flusher_module, "ENOUGH_ROWS", enough)
    async with rig(tmp_path, capacity=2) as it:
        it.sink.hold()
        await it.add("a", "b")
        await wait_until(it.sink.holding.is_set)
        await it.add("c", "d")
        it.sink.release()
        await wait_until(lambda: len(it.sink.batches) >= len(batches) - 1)
        await it.add("e", "f")
        await wait_until(lambda: it.stored() == list("abcdef"))
        assert ["".join(row["task_id"] for row in batch.tasks) for batch in it.sink.batches] == batches


@pytest.mark.gen_test
async def test_what_reaches_the_capacity_during_a_flush_is_flushed_after_it(tmp_path: Path) -> None:
    async with rig(tmp_path, capacity=2) as it:
        it.sink.hold()
        await it.add("a", "b")
        await wait_until(it.sink.holding.is_set)
        await it.add("c", "d")
        it.sink.release()
        await wait_until(lambda: it.stored() == ["a", "b", "c", "d"])
        assert len(it.sink.batches) == 2


@pytest.mark.gen_test
async def test_the_timer_flushes_what_is_below_the_capacity(tmp_path: Path) -> None:
    async with rig(tmp_path, interval=0.05) as it:
        await it.add("a")
        await wait_until(lambda: it.stored() == ["a"])


@pytest.mark.gen_test
async def test_the_next_flush_is_an_interval_after_the_last_of_any_cause(tmp_path: Path) -> None:
    async with rig(tmp_path, interval=3600) as it:
        assert it.flusher.next_flush - datetime.now(UTC) <= timedelta(hours=1)
        await it.add("a")
        await it.flusher.flush(5)
        assert it.metrics.last_flush is not None
        assert it.flusher.next_flush == it.metrics.last_flush + timedelta(hours=1)
        it.flusher.set_interval(60)
        assert it.flusher.next_flush - datetime.now(UTC) <= timedelta(minutes=1)


@pytest.mark.gen_test
async def test_one_flush_at_a_time_and_what_arrives_meanwhile_waits_for_the_next(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a", status="pending")
        first = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        await it.add("a", "b", status="completed")
        assert it.pending() == 3
        joined = asyncio.ensure_future(it.flusher.flush_once())
        it.sink.release()
        assert (await first) == (await joined)
        assert (await it.flusher.flush_once()).tasks == 2
        assert [batch.tasks[0]["status"] for batch in it.sink.batches] == ["pending", "completed"]


@pytest.mark.gen_test
async def test_a_failed_write_keeps_its_rows_under_newer_updates(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a", status="pending", context="kept")
        await it.add("b")
        it.sink.fail_next()
        it.sink.hold()
        flush = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        await it.add("a", "c", status="completed")
        it.sink.release()
        flushed = await flush
        assert isinstance(flushed.error, SinkUnavailable)
        assert (flushed.tasks, it.pending(), it.metrics.flush_count) == (0, 3, 0)
        it.assert_conserved()
        assert (await it.flusher.flush_once()).tasks == 3
        stored = it.sink.stored["task"]
        assert list(stored) == [("s1", "a"), ("s1", "b"), ("s1", "c")]
        assert (stored["s1", "a"]["status"], stored["s1", "a"]["context"]) == ("completed", "kept")


@pytest.mark.gen_test
async def test_chunks_written_before_a_failure_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, BreakingSink(2, SinkSettings(max_chunk_rows=2))) as it:
        await it.add(*"abcd")
        flushed = await it.flusher.flush_once()
        assert isinstance(flushed.error, SinkUnavailable)
        assert (flushed.tasks, it.stored(), it.pending()) == (2, ["a", "b"], 2)
        assert it.journal.released == 0, "the journal holds what is half written"
        await it.flusher.flush(5)
        assert [len(batch) for batch in it.sink.batches] == [2, 1, 1], "after a failure it goes on in small steps"
        assert it.journal.released == 1


@pytest.mark.gen_test
async def test_in_an_outage_few_rows_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    async with rig(tmp_path, capacity=10_000) as it:
        write = it.sink.write

        def noting(batch: Batch) -> None:
            sizes.append(len(batch))
            write(batch)

        monkeypatch.setattr(it.sink, "write", noting)
        it.sink.fail_next(3)
        await it.add(*(f"t{number:04}" for number in range(1000)))
        for _ in range(3):
            assert (await it.flusher.flush_once()).error is not None
        assert (await it.flusher.flush_once()).error is None
        assert sizes[:3] == [1000, 100, 50]
        assert sum(sizes[3:]) == 1000


@pytest.mark.gen_test
async def test_in_an_outage_only_the_backoff_tries_again_not_each_arriving_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, capacity=1, interval=0.05) as it:
        monkeypatch.setattr(it.flusher, "_backoff", Backoff(first=3600, most=3600, spread=lambda low, high: high))
        it.sink.down = True
        await it.add("a")
        await wait_until(lambda: it.sink.calls.count("open") == 1)
        for key in "bcdefgh":
            await it.add(key)
        assert it.sink.calls.count("open") == 1
        it.sink.down = False
        it.flusher.try_now()
        await wait_until(lambda: it.stored() == list("abcdefgh"))


@pytest.mark.gen_test
async def test_a_bug_during_a_write_puts_the_rows_back(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        it.sink.fail_next(error=ZeroDivisionError)
        with capture_logs():
            flushed = await it.flusher.flush_once()
        assert isinstance(flushed.error, SinkUnavailable)
        assert it.pending() == 1


@pytest.mark.gen_test
async def test_flush_is_a_barrier_behind_a_flush_in_progress(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a")
        running = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        await it.add("b")
        barrier = asyncio.ensure_future(it.flusher.flush(10))
        await asyncio.sleep(0)
        assert not barrier.done()
        it.sink.release()
        flushed = await barrier
        assert it.stored() == ["a", "b"]
        assert (flushed.tasks, flushed.error) == (2, None), "rows of the flush in progress were committed in the call"
        await running


@pytest.mark.gen_test
async def test_flush_gives_up_waiting_but_the_flush_goes_on(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a")
        flushed = await it.flusher.flush(0.02)
        assert isinstance(flushed.error, FlushFailed)
        assert (flushed.tasks, it.pending()) == (0, 1)
        it.sink.release()
        await wait_until(lambda: it.stored() == ["a"])


@pytest.mark.gen_test
async def test_calls_that_wait_for_the_same_flush_share_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a")
        running = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        await it.add("b")
        flushes = [asyncio.ensure_future(it.flusher.flush(10)) for _ in range(50)]
        await asyncio.sleep(0)
        it.sink.release()
        results = await asyncio.gather(*flushes)
        assert {result.error for result in results} == {None}
        await running
        assert len(it.sink.batches) == 2


@pytest.mark.gen_test
async def test_flush_tells_why_it_failed(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.down = True
        await it.add("a")
        flushed = await it.flusher.flush(5)
        assert str(flushed.error) == "the flaky sink is down"


@pytest.mark.gen_test
async def test_a_bug_while_rows_are_read_ahead_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, max_rows=2) as it:
        it.sink.hold()
        for key in "abcdef":
            await it.add(key)
        refill, calls = it.backlog.refill, itertools.count()

        async def fail_once() -> None:
            if asyncio.current_task() is it.flusher._refilling and next(calls) == 0:
                raise ZeroDivisionError
            await refill()

        monkeypatch.setattr(it.backlog, "refill", fail_once)
        with capture_logs() as logs:
            it.sink.release()
            await wait_until(lambda: it.pending() == 0)
        bugs = [log for log in logs if log["event"].startswith("a bug")]
        assert [(log["event"], log["exc_info"]) for log in bugs] == [("a bug in the flusher", True)]


@pytest.mark.gen_test
async def test_each_flush_is_one_line_with_rows_merged_and_milliseconds(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a", "a", "b", source_text="secret text")
        with capture_logs() as logs:
            await it.flusher.flush_once()
            await it.add("c")
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
async def test_many_flushes_of_a_second_share_a_line_and_none_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher_module, "LINE_EVERY", 2.0)  # on a busy machine
    with capture_logs() as logs:
        async with rig(tmp_path) as it:
            for n in range(20):
                await it.add(f"t{n}", f"t{n}")
                await it.flusher.flush(5)
            await wait_until(lambda: len([log for log in logs if log["event"] == "flush"]) == 2)
            await it.add("last")
            await it.flusher.flush(5)
            it.sink.down = True
            await it.add("failing")
            for _ in range(5):
                await it.flusher.flush(5)
            it.sink.down = False
            await it.flusher.flush(5)
    flushes = [log for log in logs if log["event"] == "flush"]
    assert [(log["rows"], log["merged"], log.get("flushes")) for log in flushes] == [
        (1, 1, None),
        (19, 19, 19),
        (1, 0, None),
        (1, 0, None),  # at the end
    ]
    assert len([log for log in logs if log["event"] == "flush failed"]) == 1


@pytest.mark.gen_test
async def test_drain_tries_until_all_is_written_or_the_time_is_over(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        it.sink.fail_next(3)
        await it.flusher.drain(10)
        assert it.stored() == ["a"]
        it.sink.down = True
        await it.add("b")
        await it.flusher.drain(0.05)
        assert it.pending() == 1


@pytest.mark.gen_test
async def test_switching_writes_what_waits_to_the_old_sink_and_the_rest_to_the_new(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        new = FlakySink()
        await it.switch(new)
        await it.add("b")
        await it.flusher.flush(5)
        assert (it.stored(), list(new.stored["task"])) == (["a"], [("s1", "b")])
        assert it.sink.calls[-1] == "close"


@pytest.mark.gen_test
async def test_switching_carries_over_what_the_old_sink_does_not_take(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.down = True
        await it.add("a")
        new = FlakySink()
        await it.switch(new)
        await it.flusher.flush(5)
        assert list(new.stored["task"]) == [("s1", "a")]


@pytest.mark.gen_test
async def test_switching_gives_up_a_write_that_hangs_in_the_old_sink(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a")
        flush = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        new = FlakySink()
        await it.switch(new, 0.02)
        assert isinstance((await flush).error, SinkUnavailable)
        await it.flusher.flush(5)
        assert list(new.stored["task"]) == [("s1", "a")]


@pytest.mark.gen_test
async def test_an_outage_is_one_line_among_the_last_flushes_and_counts_each_failure(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        await it.flusher.flush_once()
        assert it.flusher.retry_in == 0
        await it.add("b")
        it.sink.fail_next(3)
        for _ in range(3):
            await it.flusher.flush_once()
        assert 0 <= it.flusher.retry_in <= 0.4, "the bound of the third wait"
        failures = it.metrics.registry.get_sample_value("persistd_flush_failures_total", {"error": "SinkUnavailable"})
        assert failures == 3
        assert [(flush.rows, bool(flush.error)) for flush in it.metrics.flushes] == [(1, False), (0, True)]
        assert [incident.count for incident in it.metrics.incidents] == [3]
        await it.flusher.flush_once()
        assert it.flusher.retry_in == 0
        assert [(flush.rows, bool(flush.error)) for flush in it.metrics.flushes] == [(1, False), (0, True), (1, False)]
