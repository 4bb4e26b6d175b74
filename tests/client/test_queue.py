"""The client's queue against a model: whatever happens, each row is counted once and merged by the rule."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.rows import session, task
from tornado_persist.client.queue import Queue
from tornado_persist.client.values import Kind, Row

PUTS = st.tuples(
    st.just("put"),
    st.sampled_from(["session", "task"]),
    st.integers(0, 2),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.one_of(st.none(), st.integers(0, 9)), max_size=2),
)
SENDER = st.tuples(
    st.sampled_from(["take", "accepted", "drop", "put_back"]), st.integers(1, 4), st.integers(0, 4), st.none()
)


def made(kind: Kind, number: int, fields: dict[str, Any]) -> Row:
    return {**(session(f"s{number}") if kind == "session" else task(f"t{number}")), **fields}


def key(kind: Kind, row: Row) -> tuple[Kind, str]:
    return kind, row["session_id"] if kind == "session" else row["task_id"]


@given(st.lists(st.one_of(PUTS, PUTS, SENDER), max_size=60), st.integers(1, 5))
def test_every_row_is_counted_once_and_merged_in_order(steps: list[Any], max_rows: int) -> None:
    queue = Queue(max_rows)
    calls = 0
    stored: dict[tuple[Kind, str], Row] = {}  # what the service has
    #: Updates by key that were neither refused nor dropped, in order.
    expected: dict[tuple[Kind, str], Row] = {}
    lost: set[tuple[Kind, str]] = set()
    kind: Kind = "session"
    flying: list[Row] = []
    for what, *arguments in steps:
        if what == "put":
            its, number, fields = arguments
            row = made(its, number, fields)
            calls += 1
            waiting = {key(its, row) for its in ("session", "task") for row in queue._waiting[its].values()}
            keys = waiting | {key(queue._front_kind, row) for row in queue._front.values()}
            known = key(its, row) in keys
            merged = queue.merged
            flies = key(its, row) in {key(kind, row) for row in flying} and key(its, row) not in waiting
            reason = queue.put(its, dict(row))
            # It is merged into the one that waits; one on its way cannot be changed any more.
            assert queue.merged - merged == (known and not flies)
            # An update of a key that waits needs no room.
            assert reason == (None if known or len(keys) < max_rows else "full")
            if reason is None:
                expected.setdefault(key(its, row), {}).update(row)
        elif what == "take":
            if not flying and len(queue):
                kind, flying = queue.take(arguments[0])
                flying = [dict(row) for row in flying]
        elif what == "put_back":
            queue.put_back()
            flying = []
        else:
            some, flying = flying[: arguments[0]], flying[arguments[0] :]
            if what == "accepted":
                queue.accepted(some)
                for row in some:
                    stored.setdefault(key(kind, row), {}).update(row)
            elif some:
                assert queue.drop(some, "unavailable")
                lost |= {key(kind, row) for row in some}
            if not flying:
                queue.put_back()
        assert queue.stats().calls == calls
        assert len(queue) - queue._twice <= max_rows
    queue.put_back()
    while len(queue):
        kind, rows = queue.take(3)
        for row in rows:
            stored.setdefault(key(kind, row), {}).update(row)
        queue.accepted(rows)
    assert queue.stats().calls == calls
    for its, row in expected.items():
        if its not in lost:
            assert stored[its] == row


def test_sessions_go_first_and_what_was_put_back_before_them() -> None:
    queue = Queue(10)
    queue.put("task", task("t1"))
    assert [row["task_id"] for row in queue.take(5)[1]] == ["t1"]
    queue.put("task", task("t2"))
    queue.put("session", session("s1"))
    queue.put("task", task("t1", status="completed"))
    queue.put_back()
    kind, rows = queue.take(5)
    assert (kind, [(row["task_id"], row["status"]) for row in rows]) == ("task", [("t1", "completed")])
    queue.accepted(rows)
    assert queue.take(5)[0] == "session"
    queue.accepted(queue.on_their_way())
    assert [row["task_id"] for row in queue.take(5)[1]] == ["t2"]
    assert queue.stats().merged == 1


def test_a_key_that_is_on_its_way_has_room_for_one_update_more() -> None:
    queue = Queue(2)
    queue.put("task", task("t1"))
    _, rows = queue.take(5)
    assert queue.put("task", task("t1", status="completed")) is None
    assert queue.put("task", task("t2")) is None
    assert queue.put("task", task("t3")) == "full"
    queue.accepted(rows)
    assert queue.put("task", task("t3")) == "full"
    _, rows = queue.take(1)
    queue.accepted(rows)
    assert rows[0]["status"] == "completed"
    assert queue.put("task", task("t3")) is None


def test_an_update_is_merged_over_what_was_put_back() -> None:
    queue = Queue(2)
    queue.put("task", task("t1", context="old", target_text="x"))
    queue.take(5)
    queue.put_back()
    queue.put("task", task("t1", context=None))
    assert (len(queue), queue.merged) == (1, 1)
    assert queue.take(5)[1] == [task("t1", context=None, target_text="x")]


def test_a_mark_is_passed_when_all_before_it_have_left() -> None:
    queue = Queue(10)
    assert queue.passed(queue.mark())
    queue.put("task", task("t1"))
    mark = queue.mark()
    assert not queue.passed(mark)
    _, rows = queue.take(5)
    queue.put("task", task("t2"))
    assert not queue.passed(mark)
    queue.accepted(rows)
    assert queue.passed(mark)
    assert not queue.passed(queue.mark())


def test_after_the_close_nothing_counts_twice() -> None:
    queue = Queue(10)
    queue.put("task", task("t1"))
    queue.put("task", task("t2"))
    _, rows = queue.take(1)
    assert len(queue.close()) == 2
    queue.accepted(rows)
    assert not queue.drop(rows, "unavailable")
    queue.put_back()
    assert queue.put("task", task("t3")) == "closed"
    assert queue.stats().dropped == {"closed": 3}
    assert (queue.stats().queued, queue.stats().sent) == (0, 0)
