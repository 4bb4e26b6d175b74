"""One answer to the question how the service is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.rig import rig, wait_until
from tornado_persist.errors import NotAccepting
from tornado_persist.pipeline.backoff import Backoff
from tornado_persist.pipeline.deadletters import OpenRows
from tornado_persist.pipeline.health import Growth

pytestmark = pytest.mark.gen_test


async def test_a_snapshot_tells_what_waits_and_where(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=3, capacity=7, max_bytes=1 << 20) as it:
        await it.add("s", kind="session")
        await it.add("a", "b")
        await it.add("c")
        snapshot = it.health.snapshot()
        waiting = snapshot.waiting
        assert (waiting.sessions, waiting.tasks, waiting.rows) == (1, 3, 4)
        assert (waiting.in_memory, waiting.max_rows, waiting.capacity) == (3, 3, 7)
        assert 0 < waiting.memory_bytes < waiting.journal_bytes < waiting.memory_max_bytes
        assert (waiting.journal_records, waiting.journal_max_bytes) == (3, 1 << 20)
        assert waiting.journal_bytes == it.journal.stats().bytes > 0
        assert 0 <= waiting.oldest_seconds < 60
        assert (snapshot.accepting, snapshot.problem, snapshot.sync) == (True, "", "always")
        assert (snapshot.disk_free, snapshot.open_rows) == (None, None), "not looked at yet"
        snapshot = await it.health.look()
        assert snapshot.disk_free is not None
        assert abs(snapshot.disk_free - shutil.disk_usage(tmp_path).free) < 1 << 30
        assert (snapshot.open_rows, snapshot.first_open) == (0, ())
        assert abs((datetime.now(UTC) - snapshot.at).total_seconds()) < 60
        await it.flusher.flush(5)
        waiting = it.health.snapshot().waiting
        assert (waiting.rows, waiting.in_memory, waiting.journal_records, waiting.oldest_seconds) == (0, 0, 0, 0)


async def test_a_sink_that_is_down_is_named_with_the_error_since_when_and_the_next_try(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        assert (it.health.snapshot().sink.up, it.health.snapshot().sink.since) == (False, None), "it was never asked"
        await it.add("a")
        it.sink.down = True
        await it.flusher.flush_once()
        snapshot = it.health.snapshot()
        assert (snapshot.sink.name, snapshot.sink.up, snapshot.sink.error) == ("flaky", False, "the flaky sink is down")
        assert snapshot.sink.since is not None
        assert 0 <= snapshot.retry_in <= 0.1
        assert (snapshot.accepting, snapshot.healthy) == (True, False), "batches are still accepted"
        assert snapshot.reason == "The sink flaky is down: the flaky sink is down"
        it.sink.down = False
        await wait_until(lambda: it.health.snapshot().healthy)
        assert (it.health.snapshot().retry_in, it.health.snapshot().sink.error) == (0, "")
        assert it.health.snapshot().reason == ""


@pytest.mark.alone
async def test_a_ping_of_a_sink_that_hangs_takes_half_a_second_at_most(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a")
        flush = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        began = time.monotonic()
        await it.health.ping()
        assert time.monotonic() - began < 0.5
        assert not flush.done()
        it.sink.release()
        await flush
        assert (await it.health.ping()).sink.up


async def test_a_full_journal_is_the_reason_why_nothing_is_accepted(tmp_path: Path) -> None:
    async with rig(tmp_path, max_bytes=8192, segment_bytes=4096) as it:
        assert (await it.health.ping()).healthy
        while it.health.snapshot().accepting:
            with contextlib.suppress(NotAccepting):
                await it.add("t")
        snapshot = it.health.snapshot()
        assert "full" in snapshot.problem
        assert snapshot.reason == snapshot.problem
        assert snapshot.waiting.journal_full_in == 0
        assert (snapshot.sink.up, snapshot.healthy) == (True, False)
        await it.flusher.flush(5)
        assert it.health.snapshot().healthy


async def test_a_sink_that_is_found_up_again_is_not_kept_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        monkeypatch.setattr(it.flusher, "_backoff", Backoff(first=3600, most=3600, spread=lambda low, high: high))
        it.sink.down = True
        await it.add("a")
        await it.flusher.flush_once()
        assert not await it.runner.healthy(max_age=0)
        it.sink.down = False
        monkeypatch.setattr(it.runner, "_checked_at", float("-inf"))
        assert not (await it.health.ping()).healthy, "no write has gone through"
        await wait_until(lambda: it.stored() == ["a"])
        assert it.health.snapshot().healthy


async def test_a_sink_that_takes_no_write_is_not_well_and_not_tried_with_each_ping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        monkeypatch.setattr(it.flusher, "_backoff", Backoff(first=3600, most=3600, spread=lambda low, high: high))
        it.sink.fail_next()
        await it.add("a")
        await it.flusher.flush_once()
        for _ in range(3):
            monkeypatch.setattr(it.runner, "_checked_at", float("-inf"))
            assert not (await it.health.ping()).healthy
        assert it.sink.calls.count("ping") == 3
        assert it.flusher.retry_in > 3000
        assert it.sink.calls.count("write") == 1
        assert (await it.flusher.flush_once()).error is None
        assert it.health.snapshot().healthy


async def test_refused_rows_are_open_and_the_first_of_them_are_known(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.refused = {"bad"}
        await it.add("good", "bad")
        await it.flusher.flush(5)
        snapshot = await it.health.look(max_age=0)
        assert snapshot.healthy
        assert snapshot.open_rows == 1
        assert [row.task_id for row in snapshot.first_open] == ["bad"]


async def test_what_cannot_be_counted_is_not_known(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.health.look()
        (tmp_path / "rejected.jsonl").mkdir()
        snapshot = await it.health.look(max_age=0)
        assert (snapshot.open_rows, snapshot.healthy) == (None, False)
        (tmp_path / "rejected.jsonl").rmdir()
        assert (await it.health.look(max_age=0)).open_rows == 0


async def test_a_bug_in_the_look_at_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path) as it:
        monkeypatch.setattr(OpenRows, "read_on", lambda rows: 1 / 0)
        with capture_logs() as logs:
            assert (await it.health.look(max_age=0)).open_rows is None
        (line,) = logs
        assert (line["event"], line["exc_info"]) == ("a bug in the look at the disk", True)


async def test_a_journal_that_flushes_empty_does_not_grow() -> None:
    growth = Growth()
    for second in range(0, 300, 5):
        growth.add(second, second % 30 * 1000)
        assert growth.full_in(1_000_000) is None


async def test_a_journal_that_grows_is_full_in_time() -> None:
    growth = Growth()
    growth.add(0, 500)
    for second in range(5, 65, 5):
        growth.add(second, 500 + second * 100)
        assert growth.full_in(1000) == (None if second < 30 else 10), "a rate needs half a minute"
    assert growth.full_in(-5) == 0
    assert growth.full_in(10**9) is None, "not this week"
    for second in range(65, 130, 5):
        growth.add(second, 500 + 60 * 100)
    assert growth.full_in(1000) is None, "the outage is over"
