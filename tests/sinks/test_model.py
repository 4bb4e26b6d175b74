"""Random sequences of accepted rows, takes and writes leave in each sink what a plain dict has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sinks import readers
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.records.models import KINDS, MAX_INT32, MAX_INT64, SHAPES, Fields, Kind, key_of
from tornado_persist.records.times import stamp
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Sink
from tornado_persist.testing import T0, MemorySink, Stored, complete, nothing, same


class Subject(NamedTuple):
    sink: Sink[Any]
    read: Callable[[], Stored]


@pytest.fixture(params=["memory", *registry.BUILT_IN])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    options: dict[str, Any] = {}
    read: Callable[[], Stored]
    match request.param:
        case "memory":
            memory = MemorySink()
            sink: Sink[Any] = memory
            read = lambda: memory.stored  # noqa: E731 - a def here would need a name
        case "sqlite":
            options, read = {"path": "x.db"}, lambda: readers.read_sqlite(tmp_path / "x.db")
        case "jsonl":
            read = lambda: readers.read_jsonl(tmp_path / "jsonl")  # noqa: E731 - a def here would need a name
        case "postgres":
            url = request.getfixturevalue("postgres_url")
            options, read = {"url": url}, lambda: readers.read_postgres(url)
        case "mysql":
            url = request.getfixturevalue("mysql_url")
            options, read = {"url": url}, lambda: readers.read_mysql(url)
    if request.param != "memory":
        kind = registry.find(request.param)
        sink = kind(kind.Settings(**options), tmp_path)
    sink.open()
    yield Subject(sink, read)
    sink.close()


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\\N'\"%:\t\n\r é你\U0001f600"),
    max_size=8,
)
counts = st.integers(0, MAX_INT32)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(texts, values, max_size=3)
times = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)).map(stamp)
statuses = st.sampled_from(["pending", "processing", "completed", "failed"])
# Few, so that they meet again; a prefix that is new for each example keeps the examples apart.
keys = st.sampled_from(["k", "K", "k\u0301", "é"])

ROWS: dict[Kind, st.SearchStrategy[Fields]] = {
    "session": st.fixed_dictionaries(
        {"session_id": keys, "filename": texts, "file_path": texts, "status": statuses, "llm_provider": texts},
        optional={
            **dict.fromkeys(("game_info", "metadata"), st.none() | objects),
            **dict.fromkeys(("total_tasks", "completed_tasks", "failed_tasks", "processing_tasks"), counts),
        },
    ),
    "task": st.fixed_dictionaries(
        {
            **dict.fromkeys(("task_id", "session_id", "batch_id"), keys),
            **dict.fromkeys(("sheet_name", "column_name", "source_text"), texts),
            "row_index": st.integers(-MAX_INT32 - 1, MAX_INT32),
            "status": statuses,
        },
        optional={
            **dict.fromkeys(("target_text", "context", "error_message"), st.none() | texts),
            **dict.fromkeys(("start_time", "end_time"), st.none() | times),
            "confidence": st.none() | st.floats(0, 1),
            "retry_count": counts,
            "duration_ms": st.none() | st.integers(0, MAX_INT64),
        },
    ),
}


class Accept(NamedTuple):
    kind: Kind
    rows: list[Fields]


#: What a flush does: "write" commits, "fail" puts the rows back, "repeat" is a crash after the commit: it writes again
#: what is written; "reopen" closes and opens the sink.
flushes = st.sampled_from(["write", "write", "fail", "repeat", "reopen"])
accepts = st.one_of(*(st.builds(Accept, st.just(kind), st.lists(ROWS[kind], min_size=1, max_size=4)) for kind in KINDS))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(steps=st.lists(accepts | flushes, max_size=12))
def test_a_sink_behind_the_buffer_holds_what_a_dict_does(subject: Subject, steps: list[Accept | str]) -> None:
    prefix = f"{next(examples)}:"
    model, buffer = nothing(), Buffer()
    for number, step in enumerate([*steps, "write"]):
        if isinstance(step, Accept):
            at = stamp(T0 + timedelta(seconds=number))
            rows = [{**row, "session_id": prefix + row["session_id"]} for row in step.rows]
            for row in rows:
                accept(model[step.kind], step.kind, row, at)
            buffer.add(step.kind, [SHAPES[step.kind].row(row) for row in rows], at)
        elif step == "reopen":
            subject.sink.close()
            subject.sink.open()
        else:
            batch = buffer.take()
            if step != "fail":
                subject.sink.write(batch)
            if step == "repeat":
                subject.sink.write(batch)
            if step != "fail":
                buffer.release(batch)
            buffer.restore()
    found = subject.read()
    same({kind: {key: row for key, row in found[kind].items() if key[0].startswith(prefix)} for kind in KINDS}, model)


examples = itertools.count()


def accept(model: dict[tuple[str, ...], Fields], kind: Kind, row: Fields, at: str) -> None:
    """The merge rule once more, written for one row at a time and no batches."""
    stored = model.setdefault(key_of(kind, row), complete(kind, {"created_at": at}))
    for name, value in row.items():
        stored[name] = value
    stored["updated_at"] = at
