"""Deleting in the writer's turn: between flushes, after a barrier, and not against rows that wait."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import rig, wait_until
from tornado_persist.errors import (
    CannotDelete,
    FlushFailed,
    InvalidBatch,
    NotAccepting,
    NothingThere,
    RowsWait,
    SinkUnavailable,
)
from tornado_persist.pipeline import removal
from tornado_persist.records.models import Batch
from tornado_persist.sinks.base import Expiry, Removed
from tornado_persist.testing import AppendSink, FlakySink
from tornado_persist.testing.samples import task as sample


@pytest.mark.gen_test
async def test_what_waits_is_written_first_and_then_goes_with_the_session(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("s1", "s2", kind="session")
        await it.add("a", "b")
        await it.add("c", session_id="s2")
        with capture_logs() as logs:
            deleted = await it.remover.delete_session("s1", 5)
        assert (deleted.sessions, deleted.tasks) == (1, 2)
        (line,) = [log for log in logs if log["event"] == "deleted"]
        assert line.items() >= {"by": "request", "session_id": "s1", "tasks": 2, "log_level": "info"}.items()
        assert it.stored() == ["c"]
        assert it.stored("session") == ["s2"]
        assert it.journal.released == 3, "no replay brings it back"
        with pytest.raises(NothingThere, match="There is no session s1"):
            await it.remover.delete_session("s1", 5)
        rows = it.metrics.deletions.rows
        assert (rows["request", "session"], rows["request", "task"]) == (1, 2)


@pytest.mark.gen_test
async def test_one_task_goes(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a", "b")
        assert (await it.remover.delete_task("s1", "a", 5)).tasks == 1
        assert it.stored() == ["b"]
        with pytest.raises(NothingThere, match="There is no task a in session s1"):
            await it.remover.delete_task("s1", "a", 5)


@pytest.mark.gen_test
async def test_flushes_go_between_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "PIECE", 10)
    began, go = threading.Event(), threading.Event()

    class Slow(FlakySink):
        def delete_sessions(self, *args: Any, **options: Any) -> Removed:
            began.set()
            assert go.wait(10)
            return super().delete_sessions(*args, **options)

    async with rig(tmp_path, Slow()) as it:
        await it.add("s1", kind="session")
        await it.add(*(f"t{i:02}" for i in range(35)))
        await it.flusher.flush(5)
        deleting = asyncio.create_task(it.remover.delete_session("s1", 5))
        await wait_until(began.is_set)
        await it.add("u", session_id="s2")
        flushing = asyncio.create_task(it.flusher.flush_once())
        await asyncio.sleep(0)
        go.set()
        assert (await flushing).tasks == 1
        deleted = await deleting
        assert (deleted.sessions, deleted.tasks) == (1, 35)
        calls = [call for call in it.sink.calls if call in ("write", "delete_sessions")]
        assert calls == ["write", "delete_sessions", "write", *["delete_sessions"] * 3]
        assert it.stored() == ["u"]


@pytest.mark.gen_test
async def test_a_session_that_is_still_written_to_is_not_deleted(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.refused = {"r"}
        await it.add("a", "b", "r")
        await it.flusher.flush(5)
        flush = it.flusher.flush

        async def then_another(timeout: float) -> object:
            flushed = await flush(timeout)
            await it.add("a")
            return flushed

        it.flusher.flush = then_another  # type: ignore[method-assign,assignment]
        with pytest.raises(RowsWait, match="Newer rows of session s1 were accepted"):
            await it.remover.delete_session("s1", 5)
        with pytest.raises(RowsWait, match="Newer rows of task a were accepted"):
            await it.remover.delete_task("s1", "a", 5)
        assert not (tmp_path / "rejected.settled.jsonl").exists(), "the rejected row stays open"
        assert (await it.remover.delete_task("s1", "b", 5)).tasks == 1
        assert it.stored() == ["a"]


@pytest.mark.gen_test
async def test_rows_in_the_journal_alone_are_written_first(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=2) as it:
        it.sink.hold()
        for key in "abcdef":
            await it.add(key)
        await it.add("a", session_id="other")
        assert it.backlog.left_out()
        asyncio.get_running_loop().call_later(0.05, it.sink.release)
        assert (await it.remover.delete_session("s1", 5)).tasks == 6
        assert it.stored() == ["a"]


class Between(FlakySink):
    """Calls ``then`` after the first piece, in the sink's thread."""

    then: Callable[[], object]

    def delete_sessions(self, *args: Any, **options: Any) -> Removed:
        removed = super().delete_sessions(*args, **options)
        if self.calls.count("delete_sessions") == 1:
            self.then()
        return removed


@pytest.mark.gen_test
async def test_a_row_that_a_flush_between_two_pieces_has_written_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor may not be durable past that row, so a replay could bring it back."""
    monkeypatch.setattr(removal, "PIECE", 10)
    async with rig(tmp_path, Between()) as it:
        await it.add(*(f"t{i:02}" for i in range(35)))
        loop = asyncio.get_running_loop()

        async def add_and_flush() -> None:
            await it.add("u")
            flushing = asyncio.create_task(it.flusher.flush_once())
            await asyncio.sleep(0)  # it waits for its turn
            flushed.append(flushing)

        flushed: list[asyncio.Task[Any]] = []
        it.sink.then = lambda: asyncio.run_coroutine_threadsafe(add_and_flush(), loop).result(5)  # type: ignore[attr-defined]
        with pytest.raises(RowsWait, match="Newer rows of session s1 were accepted"):
            await it.remover.delete_session("s1", 5)
        assert (await flushed[0]).tasks == 1
        assert it.stored() == [*(f"t{i:02}" for i in range(10, 35)), "u"]
        assert (await it.remover.delete_session("s1", 5)).tasks == 26


@pytest.mark.gen_test
async def test_a_delete_does_not_go_on_in_another_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "PIECE", 10)
    other = FlakySink()
    async with rig(tmp_path, Between()) as it:
        loop = asyncio.get_running_loop()
        await it.add(*(f"t{i:02}" for i in range(35)))
        await it.flusher.flush(5)
        other.open()
        other.write(Batch([], [sample(f"t{i:02}", session_id="s1") for i in range(35)]))
        switching: list[asyncio.Task[None]] = []
        it.sink.then = lambda: loop.call_soon_threadsafe(  # type: ignore[attr-defined]
            lambda: switching.append(asyncio.create_task(it.switch(other)))
        )
        with pytest.raises(SinkUnavailable, match="changed meanwhile"):
            await it.remover.delete_session("s1", 5)
        await switching[0]
        assert len(other.stored["task"]) == 35


@pytest.mark.gen_test
async def test_without_the_sink_nothing_is_deleted(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        await it.flusher.flush(5)
        it.sink.down = True
        with pytest.raises(SinkUnavailable):
            await it.remover.delete_session("s1", 5)
        await it.add("b")
        with pytest.raises(SinkUnavailable):
            await it.remover.delete_session("s1", 5)
        it.sink.down = False
        assert (await it.remover.delete_session("s1", 5)).tasks == 2


@pytest.mark.gen_test
async def test_without_a_durable_cursor_nothing_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        monkeypatch.setattr(it.journal, "release", lambda seq, state: False)
        with pytest.raises(FlushFailed, match="a crash might bring deleted rows back"):
            await it.remover.delete_session("s1", 5)
        assert it.stored() == ["a"]
        monkeypatch.undo()
        assert (await it.remover.delete_session("s1", 5)).tasks == 1


@pytest.mark.gen_test
async def test_a_sink_that_only_appends_cannot_delete(tmp_path: Path) -> None:
    async with rig(tmp_path, AppendSink()) as it:
        with pytest.raises(CannotDelete, match="The sink append cannot delete rows"):
            await it.remover.delete_session("s1", 5)


@pytest.mark.gen_test
async def test_a_shutdown_ends_a_delete_with_its_present_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "PIECE", 10)

    class Closing(FlakySink):
        def delete_sessions(self, *args: Any, **options: Any) -> Removed:
            it.remover.close()
            return super().delete_sessions(*args, **options)

    async with rig(tmp_path, Closing()) as it:
        await it.add(*(f"t{i:02}" for i in range(35)))
        with pytest.raises(NotAccepting, match="shutting down"):
            await it.remover.delete_session("s1", 5)
        assert len(it.stored()) == 25


@pytest.mark.gen_test
async def test_rejected_rows_of_it_are_closed_and_others_stay_open(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.sink.refused = {"a", "c", "x"}
        await it.add("a", "b")
        await it.add("c", session_id="s2")
        await it.add("x", 'q"1', session_id='say "你好"')
        assert (await it.remover.delete_session("s1", 5)).rejected == 1
        assert (await it.remover.delete_task('say "你好"', "x", 5)).rejected == 1
        notes = [json.loads(line) for line in (tmp_path / "rejected.settled.jsonl").read_text().splitlines()]
        assert [(note["state"], note["key"]) for note in notes] == [("dropped", "s1/a"), ("dropped", 'say "你好"/x')]
        with pytest.raises(NothingThere):
            await it.remover.delete_session("s1", 5)
        await wait_until(lambda: it.pending() == 0)
        await it.health.look(max_age=0)
        assert it.health.snapshot().open_rows == 1


@pytest.mark.gen_test
async def test_a_session_that_was_deleted_is_no_longer_known(tmp_path: Path) -> None:
    async def find(ids: Collection[str]) -> set[str]:
        return set()

    async with rig(tmp_path, find_sessions=find) as it:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        for expiry in (None, Expiry("completed", tomorrow)):
            await it.add("s1", kind="session", status="completed")
            await it.add("a")
            if expiry is None:
                await it.remover.delete_session("s1", 5)
            else:
                assert (await it.remover.clean(expiry, "cleanup", 5)).sessions == 1
            with pytest.raises(InvalidBatch, match="Session ID not found"):
                await it.add("a")
