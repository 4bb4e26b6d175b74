"""Cursors are few, and none is late when a caller waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, rig, wait_until
from tornado_persist.errors import NotAccepting
from tornado_persist.pipeline import checkpoint
from tornado_persist.testing import AppendSink

pytestmark = pytest.mark.gen_test


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rig], list[int]]:
    """Notes the sequence numbers that cursors are written for."""

    def counting(it: Rig) -> list[int]:
        written: list[int] = []
        release = it.journal.release

        def noting(seq: int, state: dict[str, Any]) -> bool:
            written.append(seq)
            return release(seq, state)

        monkeypatch.setattr(it.journal, "release", noting)
        return written

    return counting


async def flush_each(it: Rig, keys: str) -> None:
    """A flush of its own for each key."""
    for key in keys:
        await it.add(key)
        await it.flusher.flush_once()


async def test_many_flushes_share_a_cursor_which_is_the_last_ones(
    tmp_path: Path, count: Callable[[Rig], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 3600.0)
    async with rig(tmp_path) as it:
        written = count(it)
        await flush_each(it, "a")
        await wait_until(lambda: written == [1])  # the first of a life goes at once
        await flush_each(it, "bcdef")
        assert written == [1]
        await it.flusher.finish(5)
        assert (written, it.journal.released) == ([1, 6], 6)
        await it.flusher.finish(5)
        assert written == [1, 6]


async def test_a_cursor_comes_by_itself_when_it_is_time(
    tmp_path: Path, count: Callable[[Rig], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.1)
    async with rig(tmp_path) as it:
        written = count(it)
        await flush_each(it, "abc")
        await wait_until(lambda: it.journal.released == 3)
        assert written[-1] == 3


async def test_a_flush_that_was_asked_for_waits_for_its_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 3600.0)
    async with rig(tmp_path) as it:
        for key in "abc":
            await it.add(key)
            await it.flusher.flush(5)
        assert it.journal.released == 3


async def test_a_full_journal_is_given_room_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 3600.0)
    async with rig(tmp_path, max_bytes=8192, segment_bytes=4096) as it:
        await it.add("first")
        await it.flusher.flush_once()
        while not it.journal.problem:
            with contextlib.suppress(NotAccepting):
                await it.add("t")
        await it.flusher.flush_once()
        await wait_until(lambda: not it.journal.problem)


def hide_cursor(tmp_path: Path) -> None:
    """Put something in its place that cannot be written to."""
    cursor = tmp_path / "journal" / "cursor"
    cursor.rename(tmp_path / "hidden")
    cursor.mkdir()


def restore_cursor(tmp_path: Path) -> None:
    cursor = tmp_path / "journal" / "cursor"
    cursor.rmdir()
    (tmp_path / "hidden").rename(cursor)


async def test_what_is_done_is_released_from_the_journal(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a", "a")
        await it.add("b")
        await it.flusher.flush(5)
        await it.add("c")
        assert (it.journal.released, it.flusher.flushed_through, it.journal.last) == (2, 2, 3)
    async with rig(tmp_path, it.sink) as again:
        assert (again.pending(), again.buffer.count("task")) == (1, 1)
        assert (again.metrics.totals.accepted["task"], again.metrics.totals.written["task"]) == (4, 2)
        assert again.metrics.written("task") == 0, "performance counts since the process started"
        with capture_logs() as logs:
            await again.flusher.flush(5)
        assert [log["merged"] for log in logs if log["event"] == "flush"] == [0]
        assert again.stored() == ["a", "b", "c"]


async def test_a_cursor_that_cannot_be_written_holds_nothing_up(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        await it.flusher.flush(5)
        hide_cursor(tmp_path)
        await it.add("b")
        with capture_logs() as logs:
            assert (await it.flusher.flush(5)).error is None
        assert (it.journal.released, it.stored()) == (1, ["a", "b"])
        assert "journal cursor cannot be written" in [log["event"] for log in logs]
        restore_cursor(tmp_path)
        await it.add("c")
        await it.flusher.flush(5)
        assert (it.journal.released, it.stored()) == (3, ["a", "b", "c"])


async def test_a_disk_that_hangs_under_the_cursor_holds_neither_a_flush_nor_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        answers, release = threading.Event(), it.journal.release
        monkeypatch.setattr(it.journal, "release", lambda *args: answers.wait(60) and release(*args))
        await it.add("a")
        async with asyncio.timeout(30):
            assert (await it.flusher.flush(0.2)).error is None
            await it.flusher.finish(0.1)
        assert (it.stored(), it.journal.released, answers.is_set()) == (["a"], 0, False)
        answers.set()
        await it.flusher.finish(5)
        assert it.journal.released == 1


async def test_a_sink_that_appends_has_each_row_once_after_a_crash_between_commit_and_cursor(tmp_path: Path) -> None:
    sink = AppendSink()
    async with rig(tmp_path, sink) as it:
        await it.add("a")
        await it.flusher.flush(5)
        hide_cursor(tmp_path)
        await it.add("b")
        with capture_logs():
            await it.flusher.flush(5)
        assert it.stored() == ["a", "b"]
    restore_cursor(tmp_path)
    async with rig(tmp_path, sink) as again:
        await again.flusher.flush(5)
        assert [row["task_id"] for batch in sink.batches for row in batch.tasks] == ["a", "b"]
        assert again.metrics.totals.written["task"] == 2
