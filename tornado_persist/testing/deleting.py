"""The contract of sinks that can delete: a part of :class:`tornado_persist.testing.SinkContract`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tornado_persist.records.models import Batch, Row
from tornado_persist.sinks.base import Expiry, Removed, Sink
from tornado_persist.testing.comparison import same, skip
from tornado_persist.testing.samples import KEYS_ALIKE, SECOND, T0, session, task
from tornado_persist.testing.sinks import Stored

T = TypeVar("T")

DAY = timedelta(days=1)


class DeletingContract:
    """What a sink keeps that has ``delete_sessions``, ``delete_task`` and ``find_expired``."""

    def read(self, sink: Any) -> Stored:
        """Everything that the sink has stored; see :mod:`tornado_persist.testing`."""
        raise NotImplementedError

    def test_a_session_is_deleted_with_its_tasks_and_nothing_else(self, sink: Any) -> None:
        others = [task("t", session_id="b"), task("t", session_id="a2"), task("t", session_id="A")]
        sink.write(Batch([session("a"), session("b")], [*_tasks("a", 20), *others]))
        same(ask(sink.delete_sessions, ["a"], 5000), Removed(1, 20, 1))
        self._holds(sink, {"b"}, {("b", "t"), ("a2", "t"), ("A", "t")})
        same(ask(sink.delete_sessions, ["a"], 5000), Removed(0, 0, 1))

    def test_it_is_deleted_in_pieces_and_its_own_row_goes_last(self, sink: Any) -> None:
        sink.write(Batch([session("a"), session("b")], [*_tasks("a", 25), *_tasks("b", 3)]))
        same(ask(sink.delete_sessions, ["a", "b"], 10), Removed(0, 10, 0))
        same(sink.delete_sessions(["a", "b"], 10), Removed(0, 10, 0))
        self._holds(sink, {"a", "b"}, {*_keys("a", range(20, 25)), *_keys("b", range(3))})
        same(sink.delete_sessions(["a", "b"], 9), Removed(1, 5 + 3, 1))
        same(sink.delete_sessions(["b"], 10), Removed(1, 0, 1))
        self._holds(sink, set(), set())

    def test_tasks_without_a_session_are_deleted_too(self, sink: Any) -> None:
        sink.write(Batch([], _tasks("a", 3)))
        same(ask(sink.delete_sessions, ["none", "a"], 10), Removed(0, 3, 2))
        self._holds(sink, set(), set())

    def test_what_comes_after_a_delete_is_new(self, sink: Any) -> None:
        sink.write(Batch([session("a", total_tasks=9)], [task("t", session_id="a", target_text="x")]))
        ask(sink.delete_sessions, ["a"], 10)
        later = T0 + DAY
        sink.write(Batch([session("a", at=later)], [task("t", session_id="a", at=later)]))
        stored = self.read(sink)
        same(stored["session"][("a",)]["total_tasks"], 0)
        same(stored["task"]["a", "t"]["target_text"], None)
        same(stored["task"]["a", "t"]["created_at"], stored["task"]["a", "t"]["updated_at"])

    def test_one_task_is_deleted(self, sink: Any) -> None:
        sink.write(Batch([session("a")], [*_tasks("a", 2), *_tasks("b", 2)]))
        same(ask(sink.delete_task, "a", "t000"), True)
        same(sink.delete_task("a", "t000"), False)
        same(sink.delete_task("none", "t001"), False)
        self._holds(sink, {"a"}, {("a", "t001"), *_keys("b", range(2))})

    def test_keys_of_deletes_are_compared_exactly(self, sink: Any) -> None:
        tasks = [task(key, session_id=key) for key in KEYS_ALIKE]
        sink.write(Batch([session(key) for key in KEYS_ALIKE], tasks))
        for gone in range(0, len(KEYS_ALIKE), 7):
            same(ask(sink.delete_sessions, [KEYS_ALIKE[gone]], 10), Removed(1, 1, 1))
        kept = {key for at, key in enumerate(KEYS_ALIKE) if at % 7}
        self._holds(sink, kept, {(key, key) for key in kept})

    def test_expired_sessions_are_found_page_by_page(self, sink: Any) -> None:
        old = {f"s{i:02}": "completed" if i % 2 else "failed" for i in range(20)}
        sessions = [session(id, status=status) for id, status in old.items()]
        sessions += [session("s30", status="completed", at=T0 + DAY), session("s31", status="processing")]
        sink.write(Batch(sessions, [task("t", session_id="none")]))
        for status in ("completed", "failed"):
            expected = [id for id, its in old.items() if its == status]
            same(_walk(sink, Expiry(status, T0), 3), expected)
            same(_walk(sink, Expiry(status, T0), 22), expected)
        same(_walk(sink, Expiry("completed", T0 - SECOND), 100), [])
        same(_walk(sink, Expiry("completed", T0 + DAY), 100), [*(f"s{i:02}" for i in range(1, 20, 2)), "s30"])

    def test_tasks_without_a_session_are_found_page_by_page(self, sink: Any) -> None:
        same(_walk(sink, Expiry(None, T0), 3), [])
        tasks: list[Row] = [it for i in range(10) for it in _tasks(f"s{i}", 5)]
        sink.write(Batch([session(f"s{i}", status="failed") for i in range(0, 10, 2)], tasks))
        for limit in (1, 3, 100):
            same(_walk(sink, Expiry(None, T0), limit), [f"s{i}" for i in range(1, 10, 2)])

    def test_only_what_has_expired_is_deleted(self, sink: Any) -> None:
        later = T0 + DAY
        old = [session(id, status="completed") for id in ("old", "of a new task", "empty")]
        others = [session("new", status="completed", at=later), session("unfinished", status="processing")]
        tasks = [*_tasks("old", 3), *_tasks("none", 2), task("u", session_id="of a new task", at=later)]
        tasks += [*_tasks("unfinished", 1), *_tasks("fresh", 2), task("u", session_id="fresh", at=later)]
        sink.write(Batch([*old, *others], tasks))
        ids = ["old", "of a new task", "empty", "new", "unfinished", "none", "fresh", "nowhere"]
        completed, orphans = Expiry("completed", T0), Expiry(None, T0)
        same(ask(sink.delete_sessions, ids, 1, completed, dry_run=True), Removed(2, 3, 8))
        same(sink.delete_sessions(ids, 1, orphans, dry_run=True), Removed(0, 2, 8))
        same(sink.delete_sessions(ids, 100, completed), Removed(2, 3, 8))
        same(sink.delete_sessions(ids, 100, orphans), Removed(0, 2, 8))
        same(sink.delete_sessions(ids, 100, Expiry("processing", T0 - SECOND)), Removed(0, 0, 8))
        kept = {("of a new task", "u"), ("unfinished", "t000"), ("fresh", "t000"), ("fresh", "t001"), ("fresh", "u")}
        self._holds(sink, {"of a new task", "new", "unfinished"}, kept)

    def _holds(self, sink: Any, sessions: set[str], tasks: set[tuple[str, str]]) -> None:
        stored = self.read(sink)
        same({kind: set(rows) for kind, rows in stored.items()}, {"session": {(id,) for id in sessions}, "task": tasks})


def ask(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """The result of a method; the test is skipped if the sink does not have it."""
    try:
        return function(*args, **options)
    except NotImplementedError as exc:
        skip(str(exc))


def _tasks(session_id: str, count: int, at: datetime = T0) -> list[Row]:
    return [task(f"t{i:03}", session_id=session_id, at=at) for i in range(count)]


def _keys(session_id: str, numbers: range) -> set[tuple[str, str]]:
    return {(session_id, f"t{i:03}") for i in numbers}


def _walk(sink: Sink[Any], expiry: Expiry, limit: int) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        some, after = ask(sink.find_expired, expiry, after, limit)
        found += some
        if after is None:
            return found
