"""One answer to the question how the service is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.rig import rig, wait_until
from tornado_persist.errors import NotAccepting
from tornado_persist.pipeline import flusher
from tornado_persist.pipeline.backoff import Backoff

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
        assert (waiting.journal_records, waiting.journal_max_bytes) == (3, 1 << 20)
        assert waiting.journal_bytes == it.journal.stats().bytes > 0
        assert 0 <= waiting.oldest_seconds < 60
        assert (snapshot.accepting, snapshot.problem, snapshot.sync) == (True, "", "always")
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
        assert (snapshot.accepting, snapshot.healthy) == (True, False), "batches are accepted all the same"
        it.sink.down = False
        await wait_until(lambda: it.health.snapshot().healthy)
        assert (it.health.snapshot().retry_in, it.health.snapshot().sink.error) == (0, "")


async def test_a_ping_of_a_sink_that_hangs_takes_half_a_second_at_most(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.hold()
        await it.add("a")
        flush = asyncio.ensure_future(it.flusher.flush_once())
        await wait_until(it.sink.holding.is_set)
        began = time.monotonic()
        await it.health.ping()
        assert time.monotonic() - began < 0.5
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
        it.sink.down = False
        await it.runner.healthy(max_age=0)
        assert (await it.health.ping()).healthy
        await asyncio.sleep(0)
        assert it.stored() == [], "it failed a moment ago: the backoff holds"
        monkeypatch.setattr(flusher, "TRY_AGAIN_AFTER", 0.0)
        assert (await it.health.ping()).healthy
        await wait_until(lambda: it.stored() == ["a"])
