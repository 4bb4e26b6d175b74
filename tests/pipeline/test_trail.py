"""Which requests a flush is said to have written."""

from __future__ import annotations

from tornado_persist.pipeline.trail import NAMED, REMEMBERED, Trail


def test_what_is_settled_is_named_once_and_in_order() -> None:
    trail = Trail()
    for seq, id in ((1, "a"), (2, "b"), (5, "c")):
        trail.add(seq, id)
    assert trail.pop_through(4) == ["a", "b"]
    assert trail.pop_through(4) == []
    assert trail.pop_through(5) == ["c"]


def test_a_batch_without_a_request_is_not_named() -> None:
    trail = Trail()
    trail.add(1, "")
    assert trail.pop_through(1) == []


def test_however_many_wait_memory_and_lines_stay_short() -> None:
    trail = Trail()
    for seq in range(3 * REMEMBERED):
        trail.add(seq, f"r{seq}")
    named = trail.pop_through(3 * REMEMBERED)
    assert named == [f"r{seq}" for seq in range(2 * REMEMBERED, 2 * REMEMBERED + NAMED)]
    assert trail.pop_through(3 * REMEMBERED) == [], "the others are forgotten too"
