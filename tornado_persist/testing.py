"""For tests: sinks in memory, and the contract that every sink keeps, as a class of pytest tests to subclass.

The author of a sink says how to get one and how to read back what it stored::

    from tornado_persist.testing import SinkContract

    class TestElasticSink(SinkContract):
        @pytest.fixture
        def sink(self, tmp_path):
            sink = ElasticSink(ElasticSink.Settings(url=...), tmp_path)
            sink.open()  # on an empty place
            yield sink
            sink.close()

        def read(self, sink):  # not by the sink's own code, lest a mistake in both cancel out
            return {"session": {row["session_id"]: row for row in ...}, "task": {...}}

``read`` gives rows as Python values: text, integers, floats, dicts for JSON objects, times as aware datetimes in UTC or
as the texts that rows hold, ``None`` for null, every field of the model with ``created_at`` and ``updated_at``.
Override :meth:`SinkContract.fault` too if a write can be made to fail, and :attr:`SinkContract.durable` and
:attr:`SinkContract.shared` where they do not hold.

This module does not import pytest, so that the sinks in it serve benchmarks as well.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeAlias

from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.models import (
    DEFAULTS,
    KEYS,
    KINDS,
    MAX_INT32,
    MAX_INT64,
    MAX_TEXT,
    SHAPES,
    Batch,
    Fields,
    Kind,
    Session,
    Task,
)
from tornado_persist.rows import Row
from tornado_persist.sinks.base import Sink, SinkSettings
from tornado_persist.times import stamp

#: What a sink holds: its rows by kind and key.
Stored: TypeAlias = dict[Kind, dict[str, Fields]]

#: Every field that a stored row has.
FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "session": (*Session.__annotations__, "created_at", "updated_at"),
    "task": (*Task.__annotations__, "created_at", "updated_at"),
}

T0 = datetime(2025, 9, 30, 16, 35, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def complete(kind: Kind, row: Row | Fields) -> Fields:
    """A row as it is stored when it is new: what it leaves out has its default."""
    return {**dict.fromkeys(FIELDS[kind]), **DEFAULTS[kind], **row}


def merge(stored: Stored, batch: Batch) -> None:
    """What writing ``batch`` does to ``stored``: the merge rule, in its plainest form."""
    for kind in KINDS:
        for row in batch.rows(kind):
            key = row[KEYS[kind]]
            old = stored[kind].get(key)
            stored[kind][key] = complete(kind, row) if old is None else {**old, **row, "created_at": old["created_at"]}


def nothing() -> Stored:
    """What an empty sink holds."""
    return {kind: {} for kind in KINDS}


def session(session_id: str = "s", /, *, at: Any = T0, **fields: Any) -> Row:
    """A session as sinks are given them: what is required, ``fields``, and ``at`` for both its times.

    A time may be given as an aware ``datetime``; in the row it is a text.
    """
    file = {"filename": "test.xlsx", "file_path": "/uploads/test.xlsx", "status": "pending", "llm_provider": "openai"}
    return _spelt("session", {"session_id": session_id, **file, "created_at": at, "updated_at": at, **fields})


def task(task_id: str = "t", /, *, at: Any = T0, **fields: Any) -> Row:
    """A task as sinks are given them: what is required, ``fields``, and ``at`` for both its times; see session()."""
    ids = {"task_id": task_id, "session_id": "s", "batch_id": "b"}
    cell = {"sheet_name": "Sheet1", "row_index": 1, "column_name": "Text", "source_text": "Hello", "status": "pending"}
    return _spelt("task", {**ids, **cell, "created_at": at, "updated_at": at, **fields})


def _spelt(kind: Kind, fields: Fields) -> Row:
    return SHAPES[kind].row({name: _in_row(value) for name, value in fields.items()})


def _in_row(value: Any) -> Any:
    """A ``datetime`` in UTC as rows hold it, anything else as it is."""
    return stamp(value) if isinstance(value, datetime) and value.utcoffset() == timedelta(0) else value


def same(found: object, expected: object) -> None:
    """Compare as the contract does, types included, and raise an ``AssertionError`` that names the first differences.

    A float of JSON may come back as an integer of the same value, and a time as a ``datetime``; a long text is shown by
    its ends.
    """
    differences = list(itertools.islice(_differences(found, expected, ""), 5))
    if differences:
        raise AssertionError("\n".join(["found is not what was expected:", *differences]))


class MemorySink(Sink[SinkSettings]):
    """Keeps its rows in :attr:`stored`, also when it is closed and opened again."""

    name: ClassVar[str] = "memory"
    Settings: ClassVar[type[SinkSettings]] = SinkSettings

    def __init__(self, settings: SinkSettings | None = None, data_dir: Path | None = None) -> None:
        super().__init__(settings or SinkSettings(), data_dir or Path())
        self.stored: Stored = nothing()
        #: Every batch written, in order.
        self.batches: list[Batch] = []
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def write(self, batch: Batch) -> None:
        self._need_open()
        merge(self.stored, batch)
        self.batches.append(Batch(list(map(copy.copy, batch.sessions)), list(map(copy.copy, batch.tasks))))

    def ping(self) -> None:
        self._need_open()

    def close(self) -> None:
        self.is_open = False

    def describe(self) -> str:
        return "memory"

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        self._need_open()
        return self.stored["session"].keys() & set(session_ids)

    def _need_open(self) -> None:
        if not self.is_open:
            raise SinkUnavailable("the memory sink is not open")


class FlakySink(MemorySink):
    """A memory sink that goes wrong on command. The commands may come from any thread.

    It holds its user to the interface: after a write that raised ``SinkUnavailable`` it wants ``close`` and ``open``,
    and says so with a ``RuntimeError``. After ``SinkConflict`` it does not.
    """

    name: ClassVar[str] = "flaky"

    def __init__(self, settings: SinkSettings | None = None, data_dir: Path | None = None) -> None:
        super().__init__(settings, data_dir)
        #: While true, ``open``, ``write``, ``ping`` and ``find_sessions`` raise ``SinkUnavailable``.
        self.down = False
        #: A batch with one of these keys is rejected.
        self.refused: set[str] = set()
        #: A batch with one of these keys fails with a code that nobody knows (``SinkUnavailable``, ``suspect``).
        self.suspected: set[str] = set()
        #: The methods called, in order.
        self.calls: list[str] = []
        #: Set while a write is held, see :meth:`hold`.
        self.holding = threading.Event()
        self._failures: list[BaseException] = []
        self._go = threading.Event()
        self._go.set()
        self._broken = False

    def fail_next(self, count: int = 1, error: type[BaseException] | BaseException = SinkUnavailable) -> None:
        """Make the next ``count`` writes raise ``error`` (``SinkConflict``, for one), and write nothing."""
        make = error if isinstance(error, type) else lambda: copy.copy(error)
        self._failures += [make() for _ in range(count)]

    def hold(self) -> None:
        """Make writes wait, before they do anything, until :meth:`release`."""
        self._go.clear()

    def release(self) -> None:
        """Let the write that is held, and the later ones, go on."""
        self._go.set()

    def open(self) -> None:
        self.calls.append("open")
        self._need_up()
        self._broken = False
        super().open()

    def write(self, batch: Batch) -> None:
        self.calls.append("write")
        if self._broken:
            raise RuntimeError("write() after SinkUnavailable, without close() and open()")
        self.holding.set()
        released = self._go.wait(60)  # a test that forgets release() must not hang its run
        self.holding.clear()
        try:
            if not released:
                raise RuntimeError("nobody called release()")
            self._need_up()
            if self._failures:
                raise self._failures.pop(0)
            keys = [row[KEYS[kind]] for kind in KINDS for row in batch.rows(kind)]
            for key in keys:
                if key in self.refused:
                    raise BatchRejected(f"{key} is refused", code="refused")
            for key in keys:
                if key in self.suspected:
                    raise SinkUnavailable(f"something is odd about {key}", code="odd", suspect=True)
        except SinkConflict:
            raise
        except SinkUnavailable:
            self._broken = True
            raise
        super().write(batch)

    def ping(self) -> None:
        self.calls.append("ping")
        self._need_up()
        super().ping()

    def close(self) -> None:
        self.calls.append("close")
        super().close()

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        self.calls.append("find_sessions")
        self._need_up()
        return super().find_sessions(session_ids)

    def _need_up(self) -> None:
        if self.down:
            raise SinkUnavailable("the flaky sink is down", code="down")


class AppendSink(FlakySink):
    """A flaky sink whose writes add up: :attr:`batches` shows a batch twice that was written twice.

    It has a position, so that a test can tell whether what comes again after a crash is there once. The crash itself
    is a new runner over the same object, for a new object starts empty.
    """

    name: ClassVar[str] = "append"

    def position(self) -> dict[str, Any]:
        self.calls.append("position")
        self._need_up()
        self._need_open()
        return {"sink": self.name, "batches": len(self.batches)}

    def rewind(self, position: dict[str, Any]) -> None:
        self.calls.append("rewind")
        self._need_up()
        self._need_open()
        if position.get("sink") == self.name:
            del self.batches[position["batches"] :]
            self.stored = nothing()
            for batch in self.batches:
                merge(self.stored, batch)


# Texts that some sink could garble: on its way through a statement, a COPY stream, JSON, or a line of a file.
TEXTS = (
    *("", " ", "  both ends  ", "two  blanks", "你好、世界", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    *("𠜎", "it's", 'say "hi"', "`tick`", "''", '""', "\\", "\\\\", "\\'", "\\N", "\\.", "\n\\.\n", "\\n", "\\x41"),
    *("\\u0041", "\\0", "\t", "\n", "\r", "\r\n", "a\tb\nc\rd", "\n\n", "\u2028\u2029\x85", "\v\f\b\a\x1a\x1b\x7f"),
    *("\u00a0", "\ufeffBOM", "".join(map(chr, range(1, 32))), "".join(map(chr, range(127, 160)))),
    *("\uffff\ufffe\ufffd\U0010ffff", "e\u0301", "é", "<a href='#'>&amp;</a>", "--", "#", "/*", "NULL", "null"),
    *("%", "%%", "%s", "%(task_id)s", "%d", ":name", ":1", "::text", "?", "$1", "@a", "{}", "{0}", "${x}", "$$"),
    *("NaN", "0", "0x00", "true", "{", "[]", "'; DROP TABLE translation_tasks; --"),
)

# Keys that some collation takes for one another, or that a statement could garble.
KEYS_ALIKE = (
    *("key", "KEY", "Key", "kéy", "ke\u0301y", "kêy", "key\u0301", "\uff4b\uff45\uff59", "ke\u200by", "ke\u00ady"),
    *("key\u200d", "straße", "strasse", "STRASSE", "\u0131", "i", "I", "İ", "ss", "ß", "ẞ", "æ", "ae", "ﬁ", "fi"),
    *("Ω", "\u2126", "²", "2", "か", "が", "か\u3099", "カ", "ｶ", "\U0001f600", "\U0001f601", "👍", "👍🏽", "你", "好"),
    *("𠜎", "𠜱", "\ud7ff", "\ue000", "a b", "a  b", "a\u00a0b", "a\u2028b", "a\u3000b", "a", "aa", "a.", "a_", "a%"),
    *("_", "%", "é" * 64, "\U0001f600" * 64, "k" * 64, "k" * 63, "0", "00", "0.0", "-0", "1e0", "1", "null", "NULL"),
    *("it's", 'a"b', "a\\b", "\\", "\\N", "\\.", "a,b", "%s", "%(key)s", ":key", "?", "$1", "{0}", "--", "/*", "*/"),
    *("#", ";", "(", "\ufeff", "\uffff", "\U0010ffff"),
)

JSON_OBJECTS: tuple[dict[str, Any], ...] = (
    {},
    {"a": None, "b": True, "c": False, "d": 0, "e": 1, "f": "", "g": [], "h": {}},
    {"": "empty name", " ": 1, "null": None, "a.b": 1, "$ref": "$.a", "it's": 1, 'a"b': 1, "a\\b": 1, "键": "值"},
    {text: text for text in TEXTS},
    {"list": list(TEXTS)},
    {"integers": [0, -1, MAX_INT32, -(2**31), MAX_INT64, -(2**63), 2**53 + 1, 2**64, 10**30]},
    {"floats": [0.1, -0.5, 1.5, 1 / 3, 1e-7, 1.7976931348623157e308, 1e22, 5e-324, 123456789.123456789]},
    {"mixed": [1, "1", 1.5, True, None, [], {}, [[[]]], {"a": [{"b": [{}]}]}], "a": "null", "b": "[]", "c": "{}"},
    {"A": 1, "a": 2, "á": 3, "a\u0301": 4, "key order": {"z": 1, "a": 2, "aa": 3}},
)


class SinkContract:
    """What every sink keeps. Subclass it as the module's docstring shows; each test starts with an empty sink."""

    #: Whether a new object of the same class and settings finds what an older one stored.
    durable: ClassVar[bool] = True
    #: Whether two objects may write to the same place at the same time.
    shared: ClassVar[bool] = True

    def read(self, sink: Any) -> Stored:
        """Everything that the sink has stored; see the module's docstring."""
        raise NotImplementedError

    def fault(self, sink: Any) -> AbstractContextManager[object]:
        """While it lasts, a batch cannot be written that has a task called ``refused``, its last. Optional.

        A constraint or a trigger does it, or a limit to the length of a file. It should fail as late as possible, when
        the sessions of the batch are written already.
        """
        _skip("fault() is not overridden: nobody says how to make a write of this sink fail")

    # New rows and updates

    def test_a_new_row_gets_defaults_for_what_it_leaves_out(self, sink: Any) -> None:
        sink.write(Batch([session("s")], [task("t")]))
        found = self.read(sink)
        same(found, {"session": {"s": complete("session", session("s"))}, "task": {"t": complete("task", task("t"))}})
        same(found["session"]["s"]["total_tasks"], 0)
        same(found["task"]["t"]["retry_count"], 0)
        same(found["task"]["t"]["confidence"], None)

    def test_every_field_is_stored(self, sink: Any) -> None:
        self._check(sink, Batch([session("s", **_FULL["session"])], [task("t", **_FULL["task"])]))

    def test_an_update_keeps_what_it_leaves_out(self, sink: Any) -> None:
        full = Batch([session("s", **_FULL["session"])], [task("t", **_FULL["task"])])
        self._check(sink, full, Batch([session("s", status="failed")], [task("t", status="failed")]))

    def test_null_clears_a_field(self, sink: Any) -> None:
        full = Batch([session("s", **_FULL["session"])], [task("t", **_FULL["task"])])
        nulls = {kind: dict.fromkeys(name for name in _FULL[kind] if name not in DEFAULTS[kind]) for kind in KINDS}
        self._check(sink, full, Batch([session("s", **nulls["session"])], [task("t", **nulls["task"])]))

    def test_rows_with_different_fields_share_a_batch(self, sink: Any) -> None:
        rows: dict[bool, Batch] = {}
        for present in (True, False):  # every set of optional fields at first, what it lacked afterwards
            rows[present] = Batch(
                [session(f"s{i}", **fields) for i, fields in enumerate(_subsets(_FULL["session"], present))],
                [task(f"t{i}", **fields) for i, fields in enumerate(_subsets(_FULL["task"], present))],
            )
        self._check(sink, rows[True], rows[False])

    def test_new_and_known_rows_share_a_batch(self, sink: Any) -> None:
        first = Batch([], [task(f"t{i}", target_text="old", confidence=0.5) for i in range(0, 20, 2)])
        self._check(sink, first, Batch([], [task(f"t{i}", target_text="new", at=T0 + SECOND) for i in range(20)]))

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
        for row in (self.read(sink)["session"]["s"], self.read(sink)["task"]["t"]):
            same([row["created_at"], row["updated_at"]], [stamp(T0), stamp(later)])

    def test_a_merged_row_brings_both_its_times(self, sink: Any) -> None:
        self._check(sink, Batch([], [task("t", created_at=T0 - SECOND, updated_at=T0 + SECOND)]))

    def test_writing_a_batch_twice_changes_nothing(self, sink: Any) -> None:
        first = Batch([session("s", total_tasks=1)], [task("t", target_text="x"), task("u")])
        again = Batch([session("s", metadata={"a": 1}, at=T0 + SECOND)], [task("t", context="y", at=T0 + SECOND)])
        self._check(sink, first, first, again, again)

    def test_a_batch_is_not_altered_by_writing_it(self, sink: Any) -> None:
        batch = Batch([session("s", **_FULL["session"]), session("u")], [task("t", **_FULL["task"]), task("u")])
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
        objects = [*JSON_OBJECTS, _nested()]
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
            _skip("this sink is not durable")
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
            error = _error(sink, Batch(sessions, [*good, task("refused")]))
        if not isinstance(error, BatchRejected):
            sink.close()
            sink.open()
        self._check(sink, after=[before])
        self._check(sink, Batch(sessions, good), Batch([], [task("refused")]), after=[before])

    def test_two_writers_of_the_same_rows_both_get_through(self, sink: Any) -> None:
        if not (self.durable and self.shared):
            _skip("this sink has one writer at a time")
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
                    _write_through(writer, batch)
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
        same(set(found), set(keys))
        times = {_in_row(row["updated_at"]) for row in found.values()}
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
                    _skip("this sink has no position")
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
        same(_find(sink, ["s1", "s3", "t", "S1", "s1 "]), {"s1"})
        same(_find(sink, ["s3"]), set())
        same(_find(sink, []), set())
        sink.write(Batch([session("s3")]))
        same(_find(sink, {"s1", "s2", "s3"}), {"s1", "s2", "s3"})

    def test_find_sessions_compares_exactly(self, sink: Any) -> None:
        sink.write(Batch([session(key) for key in KEYS_ALIKE[::2]]))
        same(_find(sink, KEYS_ALIKE), set(KEYS_ALIKE[::2]))

    def test_find_sessions_takes_many_ids(self, sink: Any) -> None:
        sink.write(Batch([session(f"s{i}") for i in range(100)]))
        same(_find(sink, [f"s{i}" for i in range(40_000)]), {f"s{i}" for i in range(100)})

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


#: For each kind a value for every field that may be left out.
_FULL: Mapping[Kind, Fields] = {
    "session": {
        "game_info": {"game_name": "标题", "n": [1, 2.5, None]},
        "metadata": {"user_id": "user123"},
        "total_tasks": 100,
        "completed_tasks": 1,
        "failed_tasks": 2,
        "processing_tasks": 3,
    },
    "task": {
        "target_text": "你好",
        "context": "Greeting",
        "confidence": 0.95,
        "error_message": "none",
        "retry_count": 2,
        "start_time": T0 - SECOND,
        "end_time": T0,
        "duration_ms": 5000,
    },
}


def _subsets(fields: Fields, present: bool) -> Iterator[Fields]:
    """Every subset of ``fields``; or, in the same order, what each of them lacks."""
    for chosen in itertools.product((True, False), repeat=len(fields)):
        yield {name: value for (name, value), taken in zip(fields.items(), chosen, strict=True) if taken is present}


def _nested() -> dict[str, Any]:
    """An object of 20 levels, of objects and arrays in turn."""
    value: dict[str, Any] = {"最内": "\U0001f600"}
    for _ in range(9):
        value = {"k": [value]}
    return {"k": value}


def _find(sink: Any, session_ids: Collection[str]) -> set[str]:
    try:
        found: set[str] = sink.find_sessions(session_ids)
    except NotImplementedError as exc:
        _skip(str(exc))
    return found


def _skip(reason: str) -> NoReturn:
    import pytest

    pytest.skip(reason)


def _write_through(sink: Any, batch: Batch) -> None:
    for _ in range(100):
        with contextlib.suppress(SinkConflict):
            sink.write(batch)
            return
    raise AssertionError("a hundred conflicts, one after the other")


def _error(sink: Any, batch: Batch) -> SinkError:
    try:
        sink.write(batch)
    except SinkError as exc:
        return exc
    raise AssertionError("the write went through; see SinkContract.fault")


def _differences(found: object, expected: object, where: str) -> Iterator[str]:
    found, expected = (dict(value) if isinstance(value, Row) else value for value in (found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected.keys() | found.keys():
            place = f"{where}[{_short(key)}]"
            if key not in found:
                yield f"{place} is missing"
            elif key not in expected:
                yield f"{place} should not be there: {_short(found[key])}"
            else:
                yield from _differences(found[key], expected[key], place)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(a, b, f"{where}[{i}]")
    elif not _equal(found, expected):
        yield f"{where}: {_short(found)} where {_short(expected)} was expected"


def _equal(found: object, expected: object) -> bool:
    found = _in_row(found)
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected  # to Python True is 1
    if isinstance(found, int | float) and isinstance(expected, float):
        # JSON has one kind of number: 1e22 may come back as an integer of 23 digits.
        return float(found) == expected
    if isinstance(found, float) and isinstance(expected, int) and not -(2**63) <= expected < 2**64:
        return found == float(expected)  # what is no 64-bit integer may be kept as a float, as MySQL's JSON does
    return found == expected and type(found) is type(expected)


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters) ...{text[-20:]}"
