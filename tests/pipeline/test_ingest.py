"""A batch is taken whole, in order, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.rig import rig
from tests.rows import body, session, task
from tornado_persist.errors import InvalidBatch, NotAccepting, NotJSON, PersistError, SinkUnavailable
from tornado_persist.pipeline import ingest as ingest_module
from tornado_persist.records.models import Kind
from tornado_persist.records.rules import Parsed
from tornado_persist.records.times import stamp


class Finder:
    """A sink that has some sessions, and says how often it was asked for which."""

    def __init__(self, *ids: str) -> None:
        self.ids = set(ids)
        self.asked: list[list[str]] = []
        self.down = False

    async def __call__(self, ids: Collection[str]) -> set[str]:
        if self.down:
            raise SinkUnavailable("connection refused")
        self.asked.append(sorted(ids))
        return self.ids & set(ids)


@pytest.mark.gen_test
async def test_accepted_rows_wait_in_the_buffer_with_their_accept_time(tmp_path: Path) -> None:
    async with rig(tmp_path, max_batch=10) as it:
        accepted = await it.ingest.accept("task", body("task", task("a"), task("a"), task("b")))
        assert (accepted.count, it.buffer.count("task"), it.journal.last) == (3, 2, 1)
        assert it.metrics.totals.accepted == {"session": 0, "task": 3}
        row = it.buffer.take().tasks[0]
        assert row["created_at"] == row["updated_at"] == accepted.at
        assert accepted.at == stamp(datetime.fromisoformat(accepted.at))


@pytest.mark.gen_test
async def test_a_refused_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    async with rig(tmp_path, max_batch=10) as it:
        for raw, error in ((b"[", NotJSON), (body("task", task("a"), task(status="x")), InvalidBatch)):
            with pytest.raises(error):
                await it.ingest.accept("task", raw)
        assert (len(it.buffer), it.metrics.totals.accepted["task"], it.journal.last) == (0, 0, 0)


@pytest.mark.gen_test
async def test_a_refused_batch_does_not_move_the_clock(tmp_path: Path) -> None:
    ahead = datetime.now(UTC) + timedelta(seconds=50)
    async with rig(tmp_path, find_sessions=Finder("s1"), max_bytes=100_000) as it:

        async def fails(kind: Kind, raw: bytes) -> None:
            with pytest.raises(PersistError):
                await it.ingest.accept(kind, raw, after=stamp(ahead))

        wrong = [b"[", body("task", task(status="x")), body("task", task(session_id="who"))]
        for raw in wrong:
            await fails("task", raw)
        await fails("task", body("task", task("large", source_text="x" * 200_000)))  # more than the journal may be
        # Two at a time, of which the later one has a later time.
        full = body("task", task("full", source_text="x" * 90_000))
        await it.ingest.accept("task", full)
        await asyncio.gather(fails("task", full), fails("task", full))
        await it.flusher.flush(5)
        accepted = await it.ingest.accept("task", body("task", task("a")))
        assert datetime.fromisoformat(accepted.at) < ahead - timedelta(seconds=20)
        for raw in (body("task"), body("task", task("b"))):  # an empty batch is accepted, too
            accepted = await it.ingest.accept("task", raw, after=stamp(ahead))
            assert datetime.fromisoformat(accepted.at) > ahead


@pytest.mark.gen_test
async def test_when_it_is_closed_it_says_so_and_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        assert it.ingest.problem == ""
        it.ingest.close("closing time")
        assert it.ingest.problem == "closing time"
        await it.add("let in before")
        await asyncio.to_thread(it.journal.close, 5)
        with pytest.raises(NotAccepting, match="closed"):
            await it.add("too late")
        assert it.metrics.totals.accepted["task"] == 1


@pytest.mark.gen_test
async def test_a_task_may_come_before_its_session_by_default(tmp_path: Path) -> None:
    async with rig(tmp_path, max_batch=10) as it:
        await it.ingest.accept("task", body("task", task(session_id="nobody")))
        assert len(it.buffer) == 1


@pytest.mark.gen_test
async def test_a_required_session_may_be_in_the_buffer_the_memory_or_the_sink(tmp_path: Path) -> None:
    finder = Finder("in-sink")
    async with rig(tmp_path, find_sessions=finder) as it:
        await it.ingest.accept("session", body("session", session("accepted")))
        it.buffer.take()
        await it.ingest.accept("task", body("task", task(session_id="accepted"), task(session_id="in-sink")))
        await it.ingest.accept("task", body("task", task(session_id="in-sink")))
        assert finder.asked == [["in-sink"]], "what is known is not asked for again"


@pytest.mark.gen_test
async def test_tasks_of_an_unknown_session_are_refused_in_the_documented_words(tmp_path: Path) -> None:
    async with rig(tmp_path, find_sessions=Finder("s1")) as it:
        with pytest.raises(InvalidBatch) as caught:
            await it.ingest.accept("task", body("task", task(), task(session_id="who")))
        assert str(caught.value) == "Session ID not found or invalid task data"
        assert [error["loc"] for error in caught.value.errors] == [["tasks", 1, "session_id"]]
        assert len(it.buffer) == 0


@pytest.mark.gen_test
async def test_a_session_that_was_refused_is_no_session(tmp_path: Path) -> None:
    async with rig(tmp_path, find_sessions=Finder(), max_bytes=100_000) as it:
        with pytest.raises(NotAccepting, match="larger than the journal"):
            await it.ingest.accept("session", body("session", session("s", metadata={"x": "x" * 200_000})))
        with pytest.raises(InvalidBatch, match="Session ID not found"):
            await it.ingest.accept("task", body("task", task(session_id="s")))


@pytest.mark.gen_test
async def test_while_the_sink_cannot_be_asked_for_a_session_its_tasks_are_not_accepted(tmp_path: Path) -> None:
    finder = Finder("s1")
    finder.down = True
    async with rig(tmp_path, find_sessions=finder) as it:
        with pytest.raises(NotAccepting, match="connection refused"):
            await it.ingest.accept("task", body("task", task()))
        finder.down = False
        await it.ingest.accept("task", body("task", task()))
        assert len(it.buffer) == 1


@pytest.mark.gen_test
async def test_the_memory_of_sessions_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "KNOWN_SESSIONS", 2)
    finder = Finder("a", "b", "c")
    async with rig(tmp_path, find_sessions=finder) as it:
        for session_id in ("a", "b", "a", "c", "a", "b"):
            await it.ingest.accept("task", body("task", task(session_id=session_id)))
        assert finder.asked == [["a"], ["b"], ["c"], ["b"]]


@pytest.mark.gen_test
async def test_batches_that_share_an_fsync_are_merged_in_the_journals_order(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        updates = [it.add("a", source_text=f"version {n}") for n in range(200)]
        await asyncio.gather(*updates)
        (row,) = it.buffer.take().tasks
        last = it.journal.read(it.journal.last - 1, 1 << 20)[-1]
        assert row["source_text"].encode() in last.body
        assert row["updated_at"] == stamp(last.at)
        it.buffer.restore()


@pytest.mark.gen_test
async def test_a_mark_is_later_than_what_is_merged_and_earlier_than_what_is_on_its_way_or_comes(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        merged = await it.ingest.accept("task", body("task", task("a")))
        assert merged.at < stamp(it.ingest.mark())
        before = it.ingest.mark()
        on_its_way = asyncio.ensure_future(it.ingest.accept("task", body("task", task("b"))))
        await asyncio.sleep(0)  # the journal has it
        mark = it.ingest.mark()
        assert (mark, it.buffer.count("task")) == (before, 1)
        assert stamp(mark) < (await on_its_way).at
        last = it.ingest.mark()
        assert stamp(last) < (await it.ingest.accept("task", body("task", task("c")))).at


@pytest.mark.gen_test
async def test_an_empty_batch_takes_no_room_in_the_journal(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        assert (await it.ingest.accept("task", b'{"tasks": []}')).count == 0
        assert it.journal.last == 0


@pytest.mark.gen_test
async def test_a_full_journal_refuses_and_takes_nothing_until_there_is_room(tmp_path: Path) -> None:
    async with rig(tmp_path, max_bytes=8192, segment_bytes=4096) as it:
        accepted = 0
        while not it.journal.problem:
            with contextlib.suppress(NotAccepting):
                await it.add(f"t{accepted}")
                accepted += 1
        assert "full" in it.ingest.problem
        assert it.metrics.totals.accepted["task"] == accepted
        await it.flusher.flush(5)
        assert it.ingest.problem == ""
        await it.add("more")
        await it.flusher.flush(5)
        assert it.stored() == [*(f"t{n}" for n in range(accepted)), "more"]


@pytest.mark.gen_test
async def test_large_bodies_are_parsed_one_in_each_round_of_the_loop_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        rounds, seen = 0, list[tuple[str, int]]()
        parse = it.ingest._parser.parse

        def count() -> None:
            nonlocal rounds
            rounds += 1
            if len(seen) < 7:
                asyncio.get_running_loop().call_soon(count)

        def noting(kind: Kind, raw: bytes) -> Parsed:
            parsed = parse(kind, raw)
            seen.append((parsed.rows[0]["task_id"], rounds))
            return parsed

        monkeypatch.setattr(it.ingest._parser, "parse", noting)
        text = "x" * ingest_module.LARGE
        batches = [asyncio.ensure_future(it.add(key, source_text=text)) for key in "abcdefgh"]
        await asyncio.sleep(0)
        batches[1].cancel()
        count()
        await asyncio.gather(*batches, return_exceptions=True)
        assert [key for key, _ in seen] == list("acdefgh")
        assert len({round_ for _, round_ in seen}) == 7, "two of them shared a round"
