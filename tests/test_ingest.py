"""A batch is taken whole, in order, or not at all."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import pytest

from tests.rows import body, session, task
from tornado_persist import ingest as ingest_module
from tornado_persist.buffer import Buffer
from tornado_persist.errors import InvalidBatch, NotAccepting, NotJSON, SinkUnavailable
from tornado_persist.ingest import FindSessions, Ingest
from tornado_persist.metrics import Metrics
from tornado_persist.models import Parser


class Rig:
    def __init__(self, find_sessions: FindSessions | None = None) -> None:
        self.buffer = Buffer()
        self.metrics = Metrics(datetime.now(UTC))
        self.added = 0
        self.ingest = Ingest(
            Parser(max_batch=10), self.buffer, self.metrics, added=self._note, find_sessions=find_sessions
        )

    def _note(self) -> None:
        self.added += 1


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
async def test_accepted_rows_wait_in_the_buffer_with_their_accept_time() -> None:
    rig = Rig()
    accepted = await rig.ingest.accept("task", body("task", task("a"), task("a"), task("b")))
    assert (accepted.count, rig.buffer.count("task"), rig.metrics.merged, rig.added) == (3, 2, 1, 1)
    assert rig.metrics.accepted == {"session": 0, "task": 3}
    row = rig.buffer.take().tasks[0]
    assert row["created_at"] == row["updated_at"] == accepted.at
    assert accepted.at.tzinfo is UTC


@pytest.mark.gen_test
async def test_a_refused_batch_leaves_nothing_behind() -> None:
    rig = Rig()
    for raw, error in ((b"[", NotJSON), (body("task", task("a"), task(status="x")), InvalidBatch)):
        with pytest.raises(error):
            await rig.ingest.accept("task", raw)
    rig.ingest.close("closing time")
    with pytest.raises(NotAccepting, match="closing time"):
        await rig.ingest.accept("task", body("task", task()))
    assert (len(rig.buffer), rig.metrics.accepted["task"], rig.added) == (0, 0, 0)


@pytest.mark.gen_test
async def test_a_task_may_come_before_its_session_by_default() -> None:
    rig = Rig()
    await rig.ingest.accept("task", body("task", task(session_id="nobody")))
    assert len(rig.buffer) == 1


@pytest.mark.gen_test
async def test_a_required_session_may_be_in_the_buffer_the_memory_or_the_sink() -> None:
    finder = Finder("in-sink")
    rig = Rig(finder)
    await rig.ingest.accept("session", body("session", session("accepted")))
    rig.buffer.take()
    await rig.ingest.accept("task", body("task", task(session_id="accepted"), task(session_id="in-sink")))
    await rig.ingest.accept("task", body("task", task(session_id="in-sink")))
    assert finder.asked == [["in-sink"]], "what is known is not asked for again"


@pytest.mark.gen_test
async def test_tasks_of_an_unknown_session_are_refused_in_the_documented_words() -> None:
    rig = Rig(Finder("s1"))
    with pytest.raises(InvalidBatch) as caught:
        await rig.ingest.accept("task", body("task", task(), task(session_id="who")))
    assert str(caught.value) == "Session ID not found or invalid task data"
    assert [error["loc"] for error in caught.value.errors] == [["tasks", 1, "session_id"]]
    assert len(rig.buffer) == 0


@pytest.mark.gen_test
async def test_while_the_sink_cannot_be_asked_for_a_session_its_tasks_are_not_accepted() -> None:
    finder = Finder("s1")
    finder.down = True
    rig = Rig(finder)
    with pytest.raises(NotAccepting, match="connection refused"):
        await rig.ingest.accept("task", body("task", task()))
    finder.down = False
    await rig.ingest.accept("task", body("task", task()))
    assert len(rig.buffer) == 1


@pytest.mark.gen_test
async def test_the_memory_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "KNOWN_SESSIONS", 2)
    finder = Finder("a", "b", "c")
    rig = Rig(finder)
    for session_id in ("a", "b", "a", "c", "a", "b"):
        await rig.ingest.accept("task", body("task", task(session_id=session_id)))
    assert finder.asked == [["a"], ["b"], ["c"], ["b"]]
