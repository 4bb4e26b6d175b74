"""A sink on its own thread: opened when needed, reopened after an outage, abandoned when it hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from tests.rig import wait_until
from tornado_persist.errors import BatchRejected, SinkConflict, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import clock
from tornado_persist.sinks import runner as runner_module
from tornado_persist.sinks.base import Skew
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.testing import FlakySink, task


@asynccontextmanager
async def running(sink: FlakySink) -> AsyncIterator[SinkRunner]:
    runner = SinkRunner(sink)
    try:
        yield runner
    finally:
        sink.release()
        await runner.close(5)


BATCH = Batch(tasks=[task("a")])


@pytest.mark.gen_test
async def test_the_first_call_opens_the_sink_and_later_ones_find_it_open() -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        await runner.write(BATCH)
        await runner.write(BATCH)
    assert sink.calls == ["open", "write", "write", "close"]


@pytest.mark.gen_test
async def test_after_an_outage_the_sink_is_closed_and_opened_again() -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        await runner.write(BATCH)
        sink.fail_next()
        with pytest.raises(SinkUnavailable):
            await runner.write(BATCH)
        assert sink.calls[-1] == "close"
        await runner.write(BATCH)
    assert runner.up
    assert sink.calls == ["open", "write", "write", "close", "open", "write", "close"]


@pytest.mark.gen_test
async def test_a_rejected_batch_leaves_the_sink_open_and_up() -> None:
    sink = FlakySink()
    sink.refused.add("a")
    async with running(sink) as runner:
        with pytest.raises(BatchRejected):
            await runner.write(BATCH)
        assert runner.up
    assert sink.calls == ["open", "write", "close"]


@pytest.mark.gen_test
async def test_a_bug_in_the_sink_is_logged_with_its_traceback_and_counts_as_an_outage() -> None:
    sink = FlakySink()
    sink.fail_next(error=ZeroDivisionError("secret row"))
    async with running(sink) as runner:
        with capture_logs() as logs, pytest.raises(SinkUnavailable, match="ZeroDivisionError") as caught:
            await runner.write(BATCH)
        assert "secret row" not in str(caught.value)
        await runner.write(BATCH)
    assert [log["event"] for log in logs if log.get("exc_info")] == ["a bug in the sink"]


@pytest.mark.gen_test
async def test_going_down_and_coming_up_is_said_once_each() -> None:
    sink = FlakySink()
    sink.down = True
    async with running(sink) as runner:
        with capture_logs() as logs:
            for down in (True, True, False, False, True):
                sink.down = down
                assert await runner.healthy(wait=5, max_age=-1) is not down
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("warning", "sink down"),
        ("info", "sink up"),
        ("warning", "sink down"),
    ]


@pytest.mark.gen_test
async def test_what_was_just_heard_of_is_not_asked_again() -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        await runner.write(BATCH)
        assert await runner.healthy(max_age=60)
        assert "ping" not in sink.calls


@pytest.mark.gen_test
async def test_a_ping_that_hangs_does_not_hold_the_answer_up() -> None:
    go = threading.Event()

    class Silent(FlakySink):
        def ping(self) -> None:
            go.wait(60)

    sink = Silent()
    async with running(sink) as runner:
        assert not await runner.healthy(wait=0.01)
        assert not await runner.healthy(wait=0.01), "the second must not queue behind the first"
        go.set()
        await wait_until(lambda: runner.up)


@pytest.mark.gen_test
async def test_a_long_write_is_well_until_it_counts_as_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        await runner.write(BATCH)
        sink.hold()
        write = asyncio.ensure_future(runner.write(BATCH))
        await wait_until(sink.holding.is_set)
        assert await runner.healthy(max_age=-1)
        monkeypatch.setattr(runner_module, "STALLED_AFTER", -1.0)
        assert not await runner.healthy(max_age=-1)
        monkeypatch.undo()
        sink.release()
        await write
        assert "ping" not in sink.calls, "a ping would have waited behind the write"


@pytest.mark.gen_test
async def test_closing_gives_up_a_call_that_hangs_and_those_behind_it() -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        sink.hold()
        first = asyncio.ensure_future(runner.write(BATCH))
        second = asyncio.ensure_future(runner.write(BATCH))
        await wait_until(sink.holding.is_set)
        await runner.close(0.01)
        for write in (first, second):
            with pytest.raises(SinkUnavailable, match="was closed"):
                await write
        with pytest.raises(SinkUnavailable, match="is closed"):
            await runner.write(BATCH)
    await wait_until(lambda: sink.calls[-1] == "close")
    assert sink.calls.count("write") == 1


@pytest.mark.gen_test
async def test_a_sink_that_cannot_be_opened_is_tried_again_by_the_next_call() -> None:
    sink = FlakySink()
    sink.down = True
    async with running(sink) as runner:
        with pytest.raises(SinkUnavailable, match="flaky sink is down"):
            await runner.open()
        sink.down = False
        await runner.open()
        assert runner.description == "memory"


@pytest.mark.gen_test
async def test_the_state_tells_since_when_without_a_call() -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        unknown = runner.state
        assert (unknown.name, unknown.up, unknown.since) == ("flaky", False, None)
        assert sink.calls == []
        await runner.write(BATCH)
        up = runner.state
        await runner.write(BATCH)
        assert up.up
        assert up.since is not None
        assert runner.state == up, "it is up since it came up, not since the last call"
        sink.fail_next(2)
        for _ in range(2):
            with pytest.raises(SinkUnavailable):
                await runner.write(BATCH)
        down = runner.state
        assert not down.up
        assert down.error
        assert down.since is not None
        assert down.since >= up.since


class _Clocked(FlakySink):
    """Behind a database whose clock is 5 seconds ahead."""

    def clock_skew(self) -> Skew:
        return Skew(-5.0, 0.001)


@pytest.mark.gen_test
async def test_a_busy_sinks_clock_is_read_after_a_minute_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = _Clocked()
    async with running(sink) as runner:
        await runner.write(BATCH)
        assert runner.state.clock_skew is None
        sink.hold()
        write = asyncio.create_task(runner.write(BATCH))
        await asyncio.to_thread(sink.holding.wait, 5)
        monkeypatch.setattr(clock, "OLD", 0.0)
        async with asyncio.timeout(2):
            assert await runner.healthy(wait=60)
        with capture_logs() as logs:
            sink.release()
            await write
            await wait_until(lambda: runner.state.clock_skew == -5.0)
        assert [line["event"] for line in logs] == ["clock off"]
    assert sink.calls == ["open", "write", "write", "ping", "close"]


class _Clockless(FlakySink):
    def clock_skew(self) -> Skew:
        raise SinkUnavailable("function clock_timestamp() does not exist")


@pytest.mark.gen_test
async def test_a_place_that_cannot_tell_the_time_is_up_all_the_same() -> None:
    async with running(_Clockless()) as runner:
        assert await runner.healthy()
        assert runner.state.clock_skew is None


@pytest.mark.gen_test
async def test_after_conflicts_without_end_the_sink_is_opened_anew() -> None:
    sink = FlakySink()
    async with running(sink) as runner:
        await runner.write(BATCH)
        runner.gave_up(SinkConflict("another writer won"))
        assert runner.state.error == "another writer won"
        await runner.write(BATCH)
        assert runner.up
    assert sink.calls == ["open", "write", "close", "open", "write", "close"]
