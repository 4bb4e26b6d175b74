"""The contract that every sink keeps."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from tornado_persist.errors import BatchRejected, SinkConflict, SinkError
from tornado_persist.records.models import DEFAULTS, KINDS, MAX_INT32, MAX_INT64, MAX_TEXT, SHAPES, Batch
from tornado_persist.records.times import stamp
from tornado_persist.testing.comparison import same, skip
from tornado_persist.testing.deleting import DeletingContract
from tornado_persist.testing.reading import ReadingContract
from tornado_persist.testing.samples import (
    FULL,
    JSON_OBJECTS,
    KEYS_ALIKE,
    SECOND,
    T0,
    TEXTS,
    in_row,
    nested,
    session,
    subsets,
    task,
)
from tornado_persist.testing.sinks import Stored, complete, merge, nothing


class SinkContract(DeletingContract, ReadingContract):
    """What every sink keeps. Subclass it as :mod:`tornado_persist.testing` shows; each test has an empty sink."""

    #: Whether a new object of the same class and settings finds what an older one stored.
    durable: ClassVar[bool] = True
    #: Whether two objects may write to the same place at the same time.
    shared: ClassVar[bool] = True

    def read(self, sink: Any) -> Stored:
        """Everything that the sink has stored; see :mod:`tornado_persist.testing`."""
        raise NotImplementedError

    def fault(self, sink: Any) -> AbstractContextManager[object]:
        """While it lasts, a batch cannot be written that has a task called ``refused``, its last. Optional.

        A constraint or a trigger does it, or a limit to the length of a file. It should fail as late as possible, when
        the sessions of the batch are written already.
        """
        skip("fault() is not overridden, so no write of this sink can be made to fail")

    # New rows and updates

    def test_a_new_row_gets_defaults_for_what_it_leaves_out(self, sink: Any) -> None:
        sink.write(Batch([session("s")], [task("t")]))
        found = self.read(sink)
        same(
            found,
            {
                "session": {("s",): complete("session", session("s"))},
                "task": {("s", "t"): complete("task", task("t"))},
            },
        )
        same(found["session"][("s",)]["total_tasks"], 0)
        same(found["task"]["s", "t"]["retry_count"], 0)
        same(found["task"]["s", "t"]["confidence"], None)

    def test_every_field_is_stored(self, sink: Any) -> None:
        self._check(sink, Batch([session("s", **FULL["session"])], [task("t", **FULL["task"])]))

    def test_an_update_keeps_what_it_leaves_out(self, sink: Any) -> None:
        full = Batch([session("s", **FULL["session"])], [task("t", **FULL["task"])])
        self._check(sink, full, Batch([session("s", status="failed")], [task("t", status="failed")]))

    def test_null_clears_a_field(self, sink: Any) -> None:
        full = Batch([session("s", **FULL["session"])], [task("t", **FULL["task"])])
        nulls = {kind: dict.fromkeys(name for name in FULL[kind] if name not in DEFAULTS[kind]) for kind in KINDS}
        self._check(sink, full, Batch([session("s", **nulls["session"])], [task("t", **nulls["task"])]))

    def test_rows_with_different_fields_share_a_batch(self, sink: Any) -> None:
        rows: dict[bool, Batch] = {}
        for present in (True, False):  # every set of optional fields at first, what it lacked afterwards
            rows[present] = Batch(
                [session(f"s{i}", **fields) for i, fields in enumerate(subsets(FULL["session"], present))],
                [task(f"t{i}", **fields) for i, fields in enumerate(subsets(FULL["task"], present))],
            )
        self._check(sink, rows[True], rows[False])

    def test_new_and_known_rows_share_a_batch(self, sink: Any) -> None:
        first = Batch([], [task(f"t{i}", target_text="old", confidence=0.5) for i in range(0, 20, 2)])
        self._check(sink, first, Batch([], [task(f"t{i}", target_text="new", at=T0 + SECOND) for i in range(20)]))

    def test_tasks_of_different_sessions_may_have_the_same_id(self, sink: Any) -> None:
        own = {"target_text": "of the first session", "confidence": 0.5}
        first = Batch([], [task("t", session_id="a", **own), task("t", session_id="b"), task("u", session_id="a")])
        later = Batch([], [task("t", session_id="b", status="failed", at=T0 + SECOND), task("t", session_id="c")])
        self._check(sink, first, later)

    def test_fields_that_are_not_in_the_specification_merge_name_by_name(self, sink: Any) -> None:
        def batch(extra: Any, **fields: Any) -> Batch:
            rows = {"extra": extra, **fields}
            return Batch([session("s", **rows), session("other")], [task("t", **rows), task("t", session_id="other")])

        first = batch({"cost": 1.5, "model": {"name": "a", "size": 7}, "tags": ["x"], "none": None})
        second = batch({"cost": 2, "model": {"name": "b"}, "tags": None, "译": "你好"}, at=T0 + SECOND)
        without = Batch([session("s", status="failed", at=T0 + 2 * SECOND)], [task("t", at=T0 + 2 * SECOND)])
        self._check(sink, first, second, without, second)

    def test_a_key_is_updated_in_many_batches(self, sink: Any) -> None:
        batches = []
        for i in range(30):
            at = T0 + i * SECOND
            counts = {"total_tasks": 30, "completed_tasks": i} if i % 3 else {"failed_tasks": i}
            text = {} if i % 4 == 0 else {"target_text": None if i % 4 == 1 else f"text {i}"}
            batches.append(Batch([session("s", at=at, **counts)], [task("t", at=at, **text)]))
        self._check(sink, *batches)

    def test_created_at_stays_and_updated_at_moves(self, sink: Any) -> None:
        later = T0 + timedelta(days=1)
        sink.write(Batch([session("s")], [task("t")]))
        sink.write(Batch([session("s", at=later)], [task("t", at=later)]))
        for row in (self.read(sink)["session"][("s",)], self.read(sink)["task"]["s", "t"]):
            same([row["created_at"], row["updated_at"]], [stamp(T0), stamp(later)])

    def test_a_merged_row_brings_both_its_times(self, sink: Any) -> None:
        self._check(sink, Batch([], [task("t", created_at=T0 - SECOND, updated_at=T0 + SECOND)]))

    def test_writing_a_batch_twice_changes_nothing(self, sink: Any) -> None:
        first = Batch([session("s", total_tasks=1)], [task("t", target_text="x"), task("u")])
        again = Batch([session("s", metadata={"a": 1}, at=T0 + SECOND)], [task("t", context="y", at=T0 + SECOND)])
        self._check(sink, first, first, again, again)

    def test_a_batch_is_not_altered_by_writing_it(self, sink: Any) -> None:
        batch = Batch([session("s", **FULL["session"]), session("u")], [task("t", **FULL["task"]), task("u")])
        before = copy.deepcopy(batch)
        sink.write(batch)
        for kind in KINDS:
            same(batch.rows(kind), before.rows(kind))
            same([list(row) for row in batch.rows(kind)], [list(row) for row in before.rows(kind)])

    # Sizes of batches

    def test_an_empty_batch_is_fine(self, sink: Any) -> None:
        self._check(sink, Batch())

    def test_sessions_and_tasks_come_together_or_alone(self, sink: Any) -> None:
        both = Batch([session("s2"), session("s1")], [task("t2"), task("t1")])
        self._check(sink, Batch([session("s1")]), Batch([], [task("t1")]), both)

    def test_a_task_may_come_before_its_session(self, sink: Any) -> None:
        self._check(sink, Batch([], [task("t", session_id="unknown")]), Batch([session("unknown")]))

    def test_ten_thousand_rows_are_one_batch(self, sink: Any) -> None:
        first = [task(f"t{i}", row_index=i, target_text="x" * 100) for i in range(10_000)]
        second = [task(f"t{i}", row_index=-i, confidence=i / 16384, at=T0 + SECOND) for i in range(5_000, 15_000)]
        self._check(sink, Batch([], first), Batch([], second))

    # Values

    def test_keys_are_compared_exactly(self, sink: Any) -> None:
        batches = []
        for at in (T0, T0 + SECOND):
            sessions = [session(key, filename=f"{i} at {at}", at=at) for i, key in enumerate(KEYS_ALIKE)]
            batches.append(Batch(sessions, [task(key, row_index=i, at=at) for i, key in enumerate(KEYS_ALIKE)]))
        self._check(sink, *batches)

    def test_keys_that_only_look_alike_are_separate_rows_in_separate_batches(self, sink: Any) -> None:
        self._check(sink, *(Batch([session(key)], [task(key)]) for key in KEYS_ALIKE[:12]))

    def test_a_session_and_a_task_may_have_the_same_key(self, sink: Any) -> None:
        self._check(sink, Batch([session("same")], [task("same")]))

    def test_texts_come_back_unchanged(self, sink: Any) -> None:
        sessions = [session(f"s{i}", filename=x, file_path=x, llm_provider=x[:50]) for i, x in enumerate(TEXTS)]
        names = ("sheet_name", "column_name", "source_text", "target_text", "context", "error_message")
        batch = Batch(sessions, [task(f"t{i}", **dict.fromkeys(names, x)) for i, x in enumerate(TEXTS)])
        self._check(sink, batch, batch)

    def test_names_have_their_full_length(self, sink: Any) -> None:
        batches = []
        for letter in ("x", "字", "\U0001f600", "\\", "'", "\n"):
            names = dict.fromkeys(("sheet_name", "column_name"), letter * 255)
            name = letter * 64 if letter != "\n" else "k"
            sessions = [session(name, filename=letter * 255, file_path=letter * 512, llm_provider=letter * 50)]
            batches.append(Batch(sessions, [task(name, session_id=name, batch_id=name, **names)]))
        self._check(sink, *batches)

    def test_the_longest_texts_fit(self, sink: Any) -> None:
        rows = [
            task(f"t{i}", source_text=(letters * MAX_TEXT)[:MAX_TEXT])
            for i, letters in enumerate(("x", "字", "\U0001f600", "\\", "'\"", "\t\r\n", "\x01"))
        ]
        self._check(sink, Batch([], rows))

    def test_many_long_texts_fit_into_a_batch(self, sink: Any) -> None:
        self._check(sink, Batch([], [task(f"t{i}", target_text=f"{i}" + "x" * (MAX_TEXT - 9)) for i in range(40)]))

    def test_a_row_may_hold_all_the_longest_texts_at_once(self, sink: Any) -> None:
        names = ("source_text", "target_text", "context", "error_message")
        self._check(sink, Batch([], [task("t", **dict.fromkeys(names, "\U0001f600" * MAX_TEXT))]))

    def test_json_objects_come_back_equal(self, sink: Any) -> None:
        objects = [*JSON_OBJECTS, nested()]
        rows = [session(f"s{i}", game_info=x, metadata=x) for i, x in enumerate(objects)]
        self._check(sink, Batch(rows), Batch(rows))

    def test_big_json_objects_fit(self, sink: Any) -> None:
        texts = {str(i): "\U0001f600字x" * 1000 for i in range(500)}  # 4 MB
        self._check(sink, Batch([session("s", game_info=texts, metadata={"list": list(range(200_000))})]))

    def test_an_object_is_replaced_whole(self, sink: Any) -> None:
        self._check(sink, *(Batch([session("s", metadata=x)]) for x in ({"a": {"b": 1}, "c": 1}, {"a": {"d": 2}}, {})))

    def test_a_null_object_is_null_and_not_json(self, sink: Any) -> None:
        absent_then_null = [Batch([session("s")]), Batch([session("s", game_info=None, metadata=None)])]
        self._check(sink, *absent_then_null, Batch([session("t", game_info=None, metadata={"a": None})]))

    def test_integers_reach_their_bounds(self, sink: Any) -> None:
        counters = dict.fromkeys(DEFAULTS["session"], MAX_INT32)
        bounds = [(-MAX_INT32 - 1, 0, 0), (MAX_INT32, MAX_INT32, MAX_INT64), (0, 1, 2**53 + 1)]
        tasks = [
            task(f"t{i}", row_index=index, retry_count=count, duration_ms=duration)
            for i, (index, count, duration) in enumerate(bounds)
        ]
        self._check(sink, Batch([session("s", **counters)], tasks))

    def test_confidence_keeps_every_bit(self, sink: Any) -> None:
        values = (0.0, 1.0, 0.1, 0.95, 1 / 3, 1 - 2**-53, 1.2345678901234567e-100, 2.2250738585072014e-308, 5e-324)
        self._check(sink, Batch([], [task(f"t{i}", confidence=value) for i, value in enumerate(values)]))

    def test_times_keep_their_microseconds_from_the_year_1000_to_9999(self, sink: Any) -> None:
        times = (
            datetime(1000, 1, 1, tzinfo=UTC),
            datetime(1883, 11, 18, 12, 3, 57, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(2025, 3, 30, 1, 30, 0, 1, tzinfo=UTC),  # an hour that a zone in Europe skips
            datetime(2025, 10, 26, 0, 30, 0, 100000, tzinfo=UTC),  # ... and one that comes twice
            datetime(2025, 10, 26, 1, 30, tzinfo=UTC),
            datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        )
        rows = [task(f"t{i}", start_time=time, end_time=time, at=time) for i, time in enumerate(times)]
        self._check(sink, Batch([], rows), Batch([], [SHAPES["task"].row({**row, "start_time": None}) for row in rows]))

    # Life

    def test_ping_and_describe_answer_while_open(self, sink: Any) -> None:
        sink.ping()
        sink.write(Batch([session()]))
        sink.ping()
        text = sink.describe()
        if not text or "\n" in text:
            raise AssertionError(f"describe() gives no single line: {text!r}")

    def test_close_is_fine_at_any_time(self, sink: Any) -> None:
        sink.close()
        sink.close()
        type(sink)(sink.settings, sink.data_dir).close()

    def test_a_closed_sink_opens_again_with_its_rows(self, sink: Any) -> None:
        first = Batch([session("s", metadata={"a": 1})], [task("t", target_text="x")])
        sink.write(first)
        sink.close()
        sink.open()
        self._check(sink, Batch([session("s", at=T0 + SECOND)], [task("t", at=T0 + SECOND)]), after=[first])

    def test_a_new_object_finds_what_an_older_one_stored(self, sink: Any) -> None:
        if not self.durable:
            skip("this sink is not durable")
        first = Batch([session("s", metadata={"a": 1})], [task("t", target_text="x")])
        sink.write(first)
        newer = self._again(sink)
        try:
            self._check(newer, Batch([session("s", at=T0 + SECOND)], [task("t", at=T0 + SECOND)]), after=[first])
        finally:
            newer.close()

    def test_a_failed_write_leaves_nothing_behind(self, sink: Any) -> None:
        before = Batch([session("s", total_tasks=1)], [task("t", target_text="x")])
        sessions = [session("s", total_tasks=2, at=T0 + SECOND), session("new")]
        good = [task("t", target_text="y", at=T0 + SECOND), *(task(f"new{i}") for i in range(100))]
        sink.write(before)
        with self.fault(sink):
            error = failed_write(sink, Batch(sessions, [*good, task("refused")]))
        if not isinstance(error, BatchRejected):
            sink.close()
            sink.open()
        self._check(sink, after=[before])
        self._check(sink, Batch(sessions, good), Batch([], [task("refused")]), after=[before])

    def test_two_writers_of_the_same_rows_both_get_through(self, sink: Any) -> None:
        if not (self.durable and self.shared):
            skip("this sink has one writer at a time")
        other = type(sink)(sink.settings, sink.data_dir)
        other.open()
        # The rows in opposite orders, and those of one set of fields before those of another: an invitation to
        # deadlocks. Each writer leaves its own time on every row, so that the last one's batch shows whole.
        keys = [f"t{i}" for i in range(200)]
        errors: list[Exception] = []
        batches: dict[Any, list[Batch]] = {sink: [], other: []}
        for number in range(3):
            for writer, rest in ((sink, 0), (other, 1)):
                at = T0 + (2 * number + rest) * SECOND
                rows = [task(key, at=at, **({"context": "x"} if i % 2 == rest else {})) for i, key in enumerate(keys)]
                batches[writer].append(Batch([], rows[:: -1 if rest else 1]))
        start = threading.Barrier(2)

        def write(writer: Any) -> None:
            for batch in batches[writer]:
                try:
                    start.wait(60)
                    write_through(writer, batch)
                except Exception as exc:
                    errors.append(exc)
                    start.abort()
                    return

        threads = [threading.Thread(target=write, args=[writer]) for writer in batches]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            other.close()
        if errors:
            raise errors[0]
        found = self.read(sink)["task"]
        same({key[-1] for key in found}, set(keys))
        times = {in_row(row["updated_at"]) for row in found.values()}
        if times not in [{writes[-1].tasks[0]["updated_at"]} for writes in batches.values()]:
            raise AssertionError(f"the rows are not those of one of the last batches: {sorted(times)}")

    # The position of a sink that appends

    def test_a_position_is_a_json_object_or_none(self, sink: Any) -> None:
        for batch in (Batch(), Batch([session("s")], [task("t")])):
            sink.write(batch)
            position = sink.position()
            same(json.loads(json.dumps(position)), position)
            if position is not None and not isinstance(position, dict):
                raise AssertionError(f"position() gives no JSON object: {position!r}")

    def test_a_rewound_sink_is_as_it_was_at_the_position(self, sink: Any) -> None:
        before = Batch([session("s", total_tasks=1)], [task("t", target_text="x"), task("u")])
        after = Batch([session("s", at=T0 + SECOND), session("new")], [task("t", target_text=None), task("new")])
        try:
            for first in ([], [before]):
                for batch in first:
                    sink.write(batch)
                position = json.loads(json.dumps(sink.position()))
                if position is None:
                    skip("this sink has no position")
                sink.write(after)
                sink.write(Batch([], [task("newer")]))
                sink = self._again(sink)
                sink.rewind(position)
                self._check(sink, after=first)
                sink.rewind(position)  # twice, as when the service crashes at once
                self._check(sink, after, after=first)
                sink.rewind(position)
                self._check(sink, after=first)
        finally:
            sink.close()

    def test_the_position_of_another_place_is_ignored(self, sink: Any) -> None:
        first = Batch([session("s")], [task("t")])
        sink.write(first)
        sink.rewind({"place": "another"})
        self._check(sink, Batch([], [task("u")]), after=[first])

    # find_sessions

    def test_find_sessions_gives_those_that_are_stored(self, sink: Any) -> None:
        sink.write(Batch([session("s1"), session("s2")], [task("t", session_id="s3")]))
        same(find(sink, ["s1", "s3", "t", "S1", "s1 "]), {"s1"})
        same(find(sink, ["s3"]), set())
        same(find(sink, []), set())
        sink.write(Batch([session("s3")]))
        same(find(sink, {"s1", "s2", "s3"}), {"s1", "s2", "s3"})

    def test_find_sessions_compares_exactly(self, sink: Any) -> None:
        sink.write(Batch([session(key) for key in KEYS_ALIKE[::2]]))
        same(find(sink, KEYS_ALIKE), set(KEYS_ALIKE[::2]))

    def test_find_sessions_takes_many_ids(self, sink: Any) -> None:
        sink.write(Batch([session(f"s{i}") for i in range(100)]))
        same(find(sink, [f"s{i}" for i in range(40_000)]), {f"s{i}" for i in range(100)})

    def _again(self, sink: Any) -> Any:
        """Close the sink, and open it as a new process would, as far as it is durable."""
        sink.close()
        newer = type(sink)(sink.settings, sink.data_dir) if self.durable else sink
        newer.open()
        return newer

    def _check(self, sink: Any, *batches: Batch, after: Iterable[Batch] = ()) -> None:
        """Write the batches, and compare what is stored with the merge rule's, where ``after`` was there before."""
        expected = nothing()
        for batch in after:
            merge(expected, batch)
        for batch in batches:
            sink.write(batch)
            merge(expected, batch)
        same(self.read(sink), expected)


# Calls that may fail


def find(sink: Any, session_ids: Collection[str]) -> set[str]:
    """Those that the sink finds; the test is skipped if it cannot look."""
    try:
        found: set[str] = sink.find_sessions(session_ids)
    except NotImplementedError as exc:
        skip(str(exc))
    return found


def write_through(sink: Any, batch: Batch) -> None:
    """Write, despite conflicts with other writers."""
    for _ in range(100):
        with contextlib.suppress(SinkConflict):
            sink.write(batch)
            return
    raise AssertionError("a hundred conflicts, one after the other")


def failed_write(sink: Any, batch: Batch) -> SinkError:
    """The error of a write that must fail."""
    try:
        sink.write(batch)
    except SinkError as exc:
        return exc
    raise AssertionError("the write went through; see SinkContract.fault")
