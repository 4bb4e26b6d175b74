"""Cursors are few, and none is late when somebody waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Rig, rig, wait_until
from tornado_persist.errors import NotAccepting
from tornado_persist.pipeline import checkpoint

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
