"""The buffer merges by key as a plain dict would, with any takes, releases and restores in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests import rows
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.records.models import KEYS, KINDS, SHAPES, Batch, Fields, Kind, Row, key_of
from tornado_persist.records.times import stamp

START = datetime(2026, 1, 1, tzinfo=UTC)
T0, T1, T2 = (stamp(START + timedelta(seconds=second)) for second in range(3))


def session(key: str, /, **fields: Any) -> Row:
    return SHAPES["session"].row(rows.session(key, **fields))


def task(key: str, /, **fields: Any) -> Row:
    return SHAPES["task"].row(rows.task(key, **fields))


def only_task(buffer: Buffer) -> Row:
    (row,) = buffer.take().tasks
    return row


def test_a_field_given_replaces_one_left_out_stays_and_null_clears() -> None:
    buffer = Buffer()
    buffer.add("task", [task("a", context="c", target_text="x", confidence=0.5)], T0)
    merged = buffer.add(
        "task", [SHAPES["task"].row({"session_id": "s1", "task_id": "a", "target_text": "y", "confidence": None})], T1
    )
    assert merged == 1
    assert only_task(buffer) == {
        **task("a", context="c", target_text="y", confidence=None),
        "created_at": T0,
        "updated_at": T1,
    }


def test_an_object_is_replaced_whole() -> None:
    buffer = Buffer()
    buffer.add("session", [session("a", metadata={"x": 1, "y": 2})], T0)
    buffer.add("session", [session("a", metadata={"z": 3})], T0)
    (row,) = buffer.take().sessions
    assert row["metadata"] == {"z": 3}


def test_the_same_key_within_one_batch_merges_in_its_order() -> None:
    buffer = Buffer()
    assert buffer.add("task", [task("a", status="pending"), task("a", status="failed")], T0) == 1
    assert only_task(buffer)["status"] == "failed"


def test_a_session_and_a_task_with_the_same_key_do_not_meet() -> None:
    buffer = Buffer()
    buffer.add("session", [session("x")], T0)
    assert buffer.add("task", [task("x")], T0) == 0
    assert [buffer.count(kind) for kind in KINDS] == [1, 1]


def test_tasks_of_two_sessions_with_the_same_id_do_not_meet() -> None:
    buffer = Buffer()
    buffer.add("task", [task("x", session_id="a", target_text="of a")], T0)
    assert buffer.add("task", [task("x", session_id="b")], T1) == 0
    assert [row.get("target_text") for row in buffer.take().tasks] == ["of a", None]


def test_rows_keep_the_order_in_which_their_keys_came() -> None:
    buffer = Buffer()
    buffer.add("task", [task("b"), task("a"), task("b")], T0)
    buffer.add("task", [task("c"), task("a")], T1)
    assert [row["task_id"] for row in buffer.take().tasks] == ["b", "a", "c"]


def test_what_is_taken_counts_until_it_is_released() -> None:
    buffer = Buffer()
    buffer.add("session", [session("a"), session("b")], T0)
    batch = buffer.take()
    buffer.add("session", [session("a")], T1)
    assert (buffer.count("session"), buffer.waiting(), len(buffer)) == (3, 1, 3)
    buffer.release(Batch(batch.sessions[:1]))
    assert (buffer.count("session"), buffer.waiting()) == (2, 1)
    assert buffer.has_session("b")
    buffer.release(Batch(batch.sessions[1:]))
    assert not buffer.has_session("b")
    assert len(buffer) == 1


def test_an_update_of_a_row_on_its_way_does_not_change_what_the_sink_is_given() -> None:
    buffer = Buffer()
    buffer.add("task", [task("a", status="pending")], T0)
    batch = buffer.take()
    buffer.add("task", [task("a", status="failed")], T1)
    assert batch.tasks[0]["status"] == "pending"


def test_what_is_put_back_goes_under_what_came_since() -> None:
    buffer = Buffer()
    buffer.add("task", [task("a", status="pending", context="c"), task("b")], T0)
    buffer.take()
    buffer.add("task", [task("c"), task("a", status="failed")], T1)
    assert buffer.restore() == {"session": 0, "task": 1}
    assert buffer.add("task", [task("b", status="completed")], T2) == 1
    a, b, c = buffer.take().tasks
    assert a == {**task("a", status="failed", context="c"), "created_at": T0, "updated_at": T1}
    assert (b["status"], b["created_at"], b["updated_at"]) == ("completed", T0, T2)
    assert (c["task_id"], c["created_at"], c["updated_at"]) == ("c", T1, T1)


def test_a_second_take_before_the_first_is_settled_is_a_bug() -> None:
    buffer = Buffer()
    buffer.add("task", [task("a")], T0)
    buffer.take()
    with pytest.raises(RuntimeError, match="still out"):
        buffer.take()


def test_the_bytes_of_records_count_until_their_rows_are_released() -> None:
    buffer = Buffer()
    buffer.add("session", [session("s")], T0, 10)
    buffer.add("task", [task("a"), task("b")], T0, 200)
    buffer.add("task", [task("c")], T0, 1000)
    buffer.add("task", [task("c")], T1, 2000)
    batch = buffer.take()
    buffer.add("task", [task("a"), task("d")], T1, 40_000)
    buffer.release(Batch(batch.sessions, batch.tasks[:1]))
    assert buffer.bytes == 43_200, "half of a record counts as a whole one"
    buffer.release(Batch(tasks=batch.tasks[1:2]))
    assert buffer.bytes == 43_000
    buffer.restore()
    assert (buffer.bytes, len(buffer)) == (43_000, 3)
    buffer.release(buffer.take())
    assert (buffer.bytes, len(buffer)) == (0, 0)


def test_a_key_that_is_updated_without_end_costs_no_list_of_records() -> None:
    buffer = Buffer()
    for _ in range(1000):
        buffer.add("task", [task("a")], T0, 5)
    assert (buffer.bytes, len(buffer._waiting_sizes["task"])) == (5000, 1)


def chunks(buffer: Buffer, rows: int, size: int) -> list[str]:
    """The keys in each chunk, as the flusher cuts them."""
    taken, found = buffer.take(), []
    while taken:
        chunk = taken.pop(buffer.fitting(rows, size))
        buffer.release(chunk)
        found.append("".join(row[KEYS[kind][-1]] for kind in KINDS for row in chunk.rows(kind)))
    assert buffer.bytes == 0
    return found


def test_chunks_hold_few_rows_and_the_records_of_few_bytes() -> None:
    def filled() -> Buffer:
        buffer = Buffer()
        buffer.add("task", [task("a"), task("b")], T0, 40)
        buffer.add("task", [task("c")], T0, 40)
        buffer.add("session", [session("s")], T0, 40)
        buffer.add("task", [task("d"), task("e")], T0, 500)
        buffer.add("task", [task("f"), task("a")], T0, 40)
        return buffer

    assert chunks(filled(), 10, 1000) == ["sabcdef"]
    assert chunks(filled(), 3, 1000) == ["sab", "cde", "f"]
    assert chunks(filled(), 10, 100) == ["sab", "c", "de", "f"], "a record that is too large goes alone"
    assert chunks(filled(), 1, 100) == list("sabcdef")


OPTIONAL: dict[Kind, list[str]] = {
    "session": ["game_info", "metadata", "total_tasks"],
    "task": ["context", "target_text", "error_message"],
}


def updates_of(kind: Kind, most: int) -> st.SearchStrategy[Any]:
    """Rows with a key and other fields, which mean nothing to the buffer."""
    keys = st.fixed_dictionaries(
        {name: st.sampled_from("abc" if name == f"{kind}_id" else "st") for name in KEYS[kind]}
    )
    fields = st.dictionaries(st.sampled_from(OPTIONAL[kind]), st.none() | st.sampled_from("xyz"))
    return st.lists(st.builds(lambda key, fields: {**key, **fields}, keys, fields), max_size=most)


@given(updates_of("task", 12))
def test_any_split_into_batches_gives_the_same_rows(updates: list[Fields]) -> None:
    def sent() -> list[Row]:
        return [SHAPES["task"].row(fields) for fields in updates]

    whole, split = Buffer(), Buffer()
    merged = whole.add("task", sent(), T0)
    assert merged == sum(split.add("task", [row], T0) for row in sent())
    assert whole.take() == split.take()


class BufferAndModel(RuleBasedStateMachine):
    """A buffer and its sink against one dict that merges every update at once."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer()
        self.taken: Batch | None = None
        self.now = START
        self.sink: dict[tuple[Kind, tuple[str, ...]], Fields] = {}
        self.model: dict[tuple[Kind, tuple[str, ...]], Fields] = {}
        self.accepted = self.merged = self.written = 0

    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def add(self, kind: Kind, data: st.DataObject) -> None:
        rows: list[Fields] = data.draw(updates_of(kind, 4))
        self.now += timedelta(seconds=1)
        at = stamp(self.now)
        for row in rows:
            stored = self.model.setdefault((kind, key_of(kind, row)), {"created_at": at})
            stored.update(row, updated_at=at)
        self.accepted += len(rows)
        self.merged += self.buffer.add(kind, [SHAPES[kind].row(row) for row in rows], at, 100 * len(rows))

    @precondition(lambda self: self.taken is None)
    @rule()
    def take(self) -> None:
        self.taken = self.buffer.take()

    @precondition(lambda self: self.taken is not None)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        assert self.taken is not None
        size = data.draw(st.integers(0, len(self.taken.sessions)))
        rest = data.draw(st.integers(0, len(self.taken.tasks))) if size == len(self.taken.sessions) else 0
        written = Batch(self.taken.sessions[:size], self.taken.tasks[:rest])
        self.buffer.release(written)
        for kind in KINDS:
            for row in written.rows(kind):
                stored = self.sink.setdefault((kind, key_of(kind, row)), {})
                created_at = stored.get("created_at", row["created_at"])
                stored.update(row, created_at=created_at)
        self.written += len(written)
        self.merged += sum(self.buffer.restore().values())
        self.taken = None

    @invariant()
    def rows_are_conserved(self) -> None:
        assert self.accepted == self.written + self.merged + len(self.buffer)
        assert 100 * len(self.buffer) <= self.buffer.bytes <= 100 * self.accepted
        assert (self.buffer.bytes == 0) == (len(self.buffer) == 0)

    def teardown(self) -> None:
        if self.taken is not None:
            self.buffer.restore()
        rest = self.buffer.take()
        for kind in KINDS:
            for row in rest.rows(kind):
                stored = self.sink.setdefault((kind, key_of(kind, row)), {})
                created_at = stored.get("created_at", row["created_at"])
                stored.update(row, created_at=created_at)
        assert self.sink == self.model


test_the_buffer_agrees_with_a_dict = BufferAndModel.TestCase
