"""The contract of readers: a part of :class:`tornado_persist.testing.SinkContract`. A sink may offer none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from tornado_persist.records.models import KEYS, KINDS, Batch, Fields, key_of
from tornado_persist.records.queries import FINISHED, Query
from tornado_persist.records.times import stamp
from tornado_persist.sinks.reader import Reader
from tornado_persist.testing.comparison import same, skip
from tornado_persist.testing.samples import FULL, JSON_OBJECTS, KEYS_ALIKE, SECOND, T0, TEXTS, session, task
from tornado_persist.testing.sinks import Stored

_ROOM = 8 << 20


class ReadingContract:
    """What the reader of a sink keeps."""

    def read(self, sink: Any) -> Stored:
        """Everything that the sink has stored; see :mod:`tornado_persist.testing`."""
        raise NotImplementedError

    def test_rows_are_read_as_they_are_stored(self, sink: Any) -> None:
        texts = [task(f"t{i}", target_text=text, context=text, sheet_name=text) for i, text in enumerate(TEXTS)]
        objects = [session(f"s{i}", metadata=value, game_info=value) for i, value in enumerate(JSON_OBJECTS)]
        full = Batch([session("s", **FULL["session"]), *objects], [task("t", **FULL["task"]), *texts])
        with reading(sink) as reader:
            sink.write(full)
            for kind in KINDS:
                found = {key_of(kind, row): row for row in reader.page(Query(kind, limit=1000), _ROOM).rows}
                expected = {
                    key: {name: value for name, value in row.items() if name != "extra"}
                    for key, row in self.read(sink)[kind].items()
                }
                same({key: _decoded(row) for key, row in found.items()}, expected)

    def test_a_row_is_read_at_once_and_after_an_update(self, sink: Any) -> None:
        with reading(sink) as reader:
            for i in range(3):
                sink.write(Batch([session("s", total_tasks=i, at=T0 + i * SECOND)]))
                (row,) = reader.page(Query("session", {"session_id": ("s",)}, limit=1), _ROOM).rows
                same([row["total_tasks"], row["created_at"]], [i, stamp(T0)])
                same(row["updated_at"], stamp(T0 + i * SECOND))

    def test_pages_hold_each_key_once(self, sink: Any) -> None:
        keys = list(KEYS_ALIKE)
        with reading(sink) as reader:
            sink.write(Batch([session(key) for key in keys], [task(key, session_id=keys[0]) for key in keys]))
            sink.write(Batch([], [task(key, session_id=keys[1]) for key in keys]))
            same(sorted(key[0] for key in walk(reader, Query("session", limit=7))), sorted(keys))
            own = Query("task", {"session_id": (keys[1],)}, limit=10)
            later = Query("task", own.where, after=(keys[1], sorted(keys)[len(keys) // 2]))
            same(reader.count(later), len(keys))
            same(sorted(walk(reader, own)), sorted((keys[1], key) for key in keys))
            same(len(set(walk(reader, Query("task", limit=9)))), 2 * len(keys))

    def test_pages_are_stable_while_rows_are_updated(self, sink: Any) -> None:
        names = [f"t{i:03}" for i in range(100)]
        sink.write(Batch([], [task(name) for name in names]))
        found: list[tuple[str, ...]] = []
        with reading(sink) as reader:
            for i, key in enumerate(walk(reader, Query("task", {"session_id": ("s",)}, limit=10))):
                found.append(key)
                if not i % 7:
                    at = T0 + (i + 1) * SECOND
                    sink.write(Batch([], [task(name, status="completed", at=at) for name in names[::-1]]))
        same(found, [("s", name) for name in names])

    def test_conditions_compare_exactly(self, sink: Any) -> None:
        sheets = ["Sheet", "sheet", "Sheet ", "Shéet", "表"]
        sink.write(Batch([], [task(f"t{i}", sheet_name=name, batch_id=name.strip()) for i, name in enumerate(sheets)]))
        with reading(sink) as reader:
            for name in sheets:
                rows = reader.page(Query("task", {"sheet_name": (name,)}), _ROOM).rows
                same([row["sheet_name"] for row in rows], [name])
                same(reader.count(Query("task", {"sheet_name": (name,), "session_id": ("s",)})), 1)
            same(reader.count(Query("task", {"sheet_name": ("Sheet", "表")})), 2)

    def test_conditions_on_status_and_times(self, sink: Any) -> None:
        states = ["pending", "processing", "completed", "failed"]
        sink.write(Batch([], [task(f"t{i}", status=state, at=T0 + i * SECOND) for i, state in enumerate(states)]))
        with reading(sink) as reader:

            def ask(**conditions: Any) -> list[str]:
                return [row["task_id"] for row in reader.page(Query("task", **conditions), _ROOM).rows]

            same(ask(where={"status": ("failed", "pending")}), ["t0", "t3"])
            same(ask(without={"status": FINISHED}), ["t0", "t1"])
            for name in ("created_at", "updated_at"):
                same(ask(since={name: stamp(T0 + 2 * SECOND)}), ["t2", "t3"])

    def test_only_the_fields_that_were_asked_for(self, sink: Any) -> None:
        sink.write(Batch([], [task("t", **FULL["task"])]))
        with reading(sink) as reader:
            (row,) = reader.page(Query("task", fields=("status", "confidence")), _ROOM).rows
            same(set(row), {"session_id", "task_id", "status", "confidence"})

    def test_tasks_in_the_order_of_rows(self, sink: Any) -> None:
        places = [("B", 1, "t0"), ("A", 10, "t1"), ("A", 9, "t2"), ("A", 9, "t3"), ("B", -1, "t4")]
        sink.write(Batch([], [task(id, sheet_name=sheet, row_index=index) for sheet, index, id in places]))
        with reading(sink) as reader:
            rows = reader.page(Query("task", {"session_id": ("s",)}, by_row=True), _ROOM).rows
            same([row["task_id"] for row in rows], ["t2", "t3", "t1", "t4", "t0"])

    def test_a_page_ends_at_its_size_and_holds_one_row_at_least(self, sink: Any) -> None:
        sink.write(Batch([], [task(f"t{i}", source_text="x" * 100_000) for i in range(10)]))
        with reading(sink) as reader:
            rows, more = reader.page(Query("task", limit=100), 250_000)
            same([len(rows), more], [2, True])
            rows, more = reader.page(Query("task", limit=100), 10)
            same([len(rows), more], [1, True])
            rows, more = reader.page(Query("task", limit=10), _ROOM)
            same([len(rows), more], [10, False])

    def test_tasks_are_counted_by_status(self, sink: Any) -> None:
        rows = [task(f"t{i}", status="failed" if i % 3 else "completed") for i in range(10)]
        sink.write(Batch([], [*rows, task("t", session_id="other")]))
        with reading(sink) as reader:
            found = reader.count_tasks(["s", "S", "none", "other"])
            same(
                {key: dict(counts) for key, counts in found.items()},
                {
                    "s": {"completed": 4, "failed": 6},
                    "other": {"pending": 1},
                },
            )


@contextmanager
def reading(sink: Any) -> Iterator[Reader]:
    """An open reader of the sink; the test is skipped if it offers none."""
    reader = sink.reader()
    if reader is None:
        skip("this sink offers no reader")
    reader.open()
    try:
        yield reader
    finally:
        reader.close()


def walk(reader: Reader, query: Query) -> Iterator[tuple[str, ...]]:
    """The keys of all pages."""
    after = None
    while True:
        rows, more = reader.page(Query(query.kind, query.where, after=after, limit=query.limit), _ROOM)
        keys = [tuple(row[name] for name in KEYS[query.kind]) for row in rows]
        yield from keys
        if not more:
            return
        after = keys[-1]


def _decoded(row: Fields) -> Fields:
    return {name: json.loads(bytes(value)) if isinstance(value, msgspec.Raw) else value for name, value in row.items()}
