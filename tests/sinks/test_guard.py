"""Several instances write the same rows: the stored state is the same whoever writes last."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sinks import readers
from tests.sinks.readers import connect_mysql
from tests.sinks.test_model import ROWS
from tornado_persist.errors import SinkUnavailable
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.records.models import KINDS, SHAPES, Batch, Fields, Kind, key_of
from tornado_persist.records.times import stamp
from tornado_persist.sinks import registry, removal
from tornado_persist.sinks.base import Sink
from tornado_persist.sinks.jsonl import JSONLSettings, JSONLSink
from tornado_persist.sinks.sql import SQLSink
from tornado_persist.testing import T0, Stored, complete, same, session, task

SQL = ["sqlite", "postgres", "mysql"]


class Subject(NamedTuple):
    make: Callable[..., Sink[Any]]  #: another instance's sink, with settings of its own
    read: Callable[[], Stored]
    run: Callable[[str], None]  #: SQL


@pytest.fixture(params=SQL)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    name = request.param
    if name == "sqlite":
        place = {"path": str(tmp_path / "x.db")}
        read = lambda: readers.read_sqlite(tmp_path / "x.db")  # noqa: E731 - a def here would need a name
    else:
        url = request.getfixturevalue(f"{name}_url")
        place = {"url": url}
        read = lambda: getattr(readers, f"read_{name}")(url)  # noqa: E731 - a def here would need a name

    def run(sql: str) -> None:
        if name == "postgres":
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.encode())
        elif name == "mysql":
            with contextlib.closing(connect_mysql(url)) as other, other.cursor() as cursor:
                cursor.execute(sql)
        else:
            with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as file:
                file.execute(sql)
                file.commit()

    sinks: list[Sink[Any]] = []

    def make(**more: Any) -> Sink[Any]:
        kind = registry.find(name)
        sinks.append(kind(kind.Settings(**place, **{"writers": "several", **more}), tmp_path))
        return sinks[-1]

    yield Subject(make, read, run)
    for sink in sinks:
        sink.close()


class Update(NamedTuple):
    """One update that an instance accepts; ``flush``: it writes afterwards."""

    kind: Kind
    fields: Fields
    instance: int
    flush: bool


updates = st.lists(
    st.one_of(
        *(
            st.builds(Update, st.just(kind), ROWS[kind], st.integers(0, 2), st.booleans())
            for kind in ("task", "session")
        )
    ),
    min_size=2,
    max_size=12,
)
examples = itertools.count()


def examples_of(count: int) -> settings:
    """One database serves all examples of a test."""
    unconcerned = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, suppress_health_check=unconcerned)


def batches(updates: list[Update], prefix: str, times: list[str]) -> list[Batch]:
    """What the instances hand to their sinks, new objects at each call."""
    buffers, made = [Buffer(timed=True) for _ in range(3)], []
    for update, at in zip(updates, times, strict=True):
        buffer = buffers[update.instance]
        row = {**update.fields, "session_id": prefix + update.fields["session_id"]}
        buffer.add(update.kind, [SHAPES[update.kind].row(row)], at)
        if update.flush:
            made.append(buffer.take())
            buffer.release(made[-1])
    return [batch for batch in [*made, *(buffer.take() for buffer in buffers)] if len(batch)]


def state(subject: Subject, prefix: str) -> Stored:
    found = subject.read()
    return {kind: {key: row for key, row in found[kind].items() if key[0].startswith(prefix)} for kind in KINDS}


def model(updates: list[Update], prefix: str, times: list[str]) -> Stored:
    """The updates, merged in the order of their accept times, in the plainest form."""
    stored: Stored = {kind: {} for kind in KINDS}
    for update, at in zip(updates, times, strict=True):
        row = {**update.fields, "session_id": prefix + update.fields["session_id"]}
        key = key_of(update.kind, row)
        before = stored[update.kind].get(key) or {**complete(update.kind, {}), "created_at": at}
        stored[update.kind][key] = {**before, **row, "updated_at": at}
    return stored


@examples_of(60)
@given(data=st.data())
def test_updates_on_three_instances_written_in_any_order_some_twice_leave_what_their_accept_times_say(
    subject: Subject, data: st.DataObject
) -> None:
    prefix = f"{next(examples)}:"
    accepted = data.draw(updates)
    times = [stamp(T0 + timedelta(microseconds=number)) for number in range(len(accepted))]
    count = len(batches(accepted, prefix, times))
    again = data.draw(st.lists(st.integers(0, count - 1), max_size=3))
    order = data.draw(st.permutations([*range(count), *again]))
    sink = subject.make()
    sink.open()
    for number in order:
        sink.write(batches(accepted, prefix, times)[number])
    sink.close()
    same(state(subject, prefix), model(accepted, prefix, times))


@examples_of(40)
@given(data=st.data())
def test_updates_that_are_sent_again_with_their_times_go_under_newer_ones(
    subject: Subject, data: st.DataObject
) -> None:
    """Accepted in any order, beside rows that wait or are put back: their times alone decide."""
    prefix = f"{next(examples)}:"
    accepted = data.draw(updates)
    times = [stamp(T0 + timedelta(microseconds=number)) for number in range(len(accepted))]
    sink, buffer = subject.make(), Buffer(timed=True)
    sink.open()
    for number in data.draw(st.permutations(range(len(accepted)))):
        update = accepted[number]
        row = {**update.fields, "session_id": prefix + update.fields["session_id"]}
        out = buffer.take() if data.draw(st.booleans()) else None
        buffer.add(update.kind, [SHAPES[update.kind].row(row)], times[number])
        if out is not None and data.draw(st.booleans()):
            sink.write(out)
            buffer.release(out)
        elif out is not None:
            buffer.restore()
    sink.write(buffer.take())
    sink.close()
    same(state(subject, prefix), model(accepted, prefix, times))


@examples_of(25)
@given(accepted=updates)
def test_of_updates_in_the_same_microsecond_all_orders_leave_one_state(
    subject: Subject, accepted: list[Update]
) -> None:
    accepted = [update._replace(instance=number, flush=True) for number, update in enumerate(accepted[:3])]
    times = [stamp(T0)] * len(accepted)
    sink = subject.make()
    sink.open()
    states = []
    for order in itertools.permutations(range(len(accepted))):
        prefix = f"{next(examples)}:"
        for number in order:
            sink.write(batches(accepted, prefix, times)[number])
        found = state(subject, prefix)
        states.append(
            {
                kind: {
                    (key[0].removeprefix(prefix), *key[1:]): {**row, "session_id": ""}
                    for key, row in found[kind].items()
                }
                for kind in KINDS
            }
        )
    sink.close()
    for other in states[1:]:
        same(other, states[0])


@examples_of(40)
@given(data=st.data())
def test_what_was_accepted_before_a_deletion_stays_deleted_whenever_it_is_written(
    subject: Subject, data: st.DataObject
) -> None:
    """Three instances accept updates; one deletes a session or a task; what it has not written comes afterwards."""
    prefix = f"{next(examples)}:"
    accepted = data.draw(updates)
    count = len(accepted)
    moment = data.draw(st.integers(0, count))  # as many were accepted before the deletion
    times = [stamp(T0 + timedelta(seconds=number, milliseconds=500 * (number >= moment))) for number in range(count)]
    key = key_of("task", data.draw(ROWS["task"]))
    session_id, task_id = prefix + key[0], data.draw(st.sampled_from(["", key[1]]))
    sink, written = subject.make(), data.draw(st.integers(0, moment))
    sink.open()
    for batch in batches(accepted[:written], prefix, times[:written]):
        sink.write(batch)
    sink.note_deletion(session_id, task_id, T0 + timedelta(seconds=moment))
    if task_id:
        sink.delete_task(session_id, task_id)
    else:
        assert sink.delete_sessions([session_id], 5000).done == 1
    for batch in data.draw(st.permutations(batches(accepted[written:], prefix, times[written:]))):
        sink.write(batch)
    sink.close()

    def is_deleted(number: int) -> bool:
        row = accepted[number].fields
        gone = prefix + row["session_id"] == session_id and (not task_id or row.get("task_id") == task_id)
        return number < moment and gone

    left = [number for number in range(count) if not is_deleted(number)]
    same(state(subject, prefix), model([accepted[n] for n in left], prefix, [times[n] for n in left]))


def test_deletions_are_forgotten_after_a_month(subject: Subject) -> None:
    sink = subject.make()
    sink.open()
    old = Batch([], [task("t", created_at=T0, updated_at=T0)])
    sink.note_deletion("s", "", T0)
    sink.write(old)
    assert not subject.read()["task"]
    sink.note_deletion("other", "", T0 + timedelta(days=31))
    sink.write(old)
    assert subject.read()["task"].keys() == {("s", "t")}


def test_without_the_row_that_deletions_lock_it_is_an_outage_until_the_sink_is_opened_anew(subject: Subject) -> None:
    sink = subject.make()
    sink.open()
    subject.run("DELETE FROM translation_deletions")
    with pytest.raises(SinkUnavailable, match="translation_deletions has no row with an empty session_id"):
        sink.write(Batch([], [task("t")]))
    sink.open()
    sink.write(Batch([], [task("t")]))
    assert subject.read()["task"].keys() == {("s", "t")}


@pytest.mark.parametrize("subject", ["postgres", "mysql"], indirect=True)
def test_a_deletion_waits_for_writers_that_have_not_seen_its_note(subject: Subject) -> None:
    writer, deleter = (subject.make() for _ in range(2))
    for sink in (writer, deleter):
        sink.open()
    assert isinstance(writer, SQLSink)
    with ThreadPoolExecutor() as pool:
        with writer._using() as connection:
            removal.last_deletion(connection)
            noted = pool.submit(deleter.note_deletion, "s", "", T0)
            with pytest.raises(TimeoutError):
                noted.result(0.3)
        noted.result(10)


@pytest.mark.parametrize("rows", [3, 1000])
def test_an_instance_that_was_cut_off_changes_nothing_newer(subject: Subject, rows: int) -> None:
    late, soon = subject.make(), subject.make()
    for sink in (late, soon):
        sink.open()

    def tasks(at: int, **fields: Any) -> Batch:
        times = {"created_at": T0 + timedelta(hours=at), "updated_at": T0 + timedelta(hours=at)}
        return Batch([], [task(f"t{n:04}", **times, **fields) for n in range(rows)])

    soon.write(tasks(2, status="completed", target_text="done"))
    late.write(tasks(1, status="pending", target_text="old", context="only here", retry_count=3))
    found = subject.read()["task"]
    assert len(found) == rows
    for row in found.values():
        assert (row["status"], row["target_text"], row["context"], row["retry_count"]) == (
            *("completed", "done", "only here"),
            3,
        )
        assert (row["created_at"], row["updated_at"]) == (
            stamp(T0 + timedelta(hours=1)),
            stamp(T0 + timedelta(hours=2)),
        )
    soon.write(tasks(3, status="failed"))
    late.write(tasks(1, status="pending", context="once"))
    # The same field from the same hour: of equal times the larger text stays.
    assert {(row["status"], row["context"]) for row in subject.read()["task"].values()} == {("failed", "only here")}


def test_extra_is_merged_by_its_names_and_an_older_one_replaces_none(subject: Subject) -> None:
    sink = subject.make()
    sink.open()

    def one(at: int, **extra: Any) -> Batch:
        times = {"created_at": T0 + timedelta(hours=at), "updated_at": T0 + timedelta(hours=at)}
        return Batch([], [task("t", extra=extra, **times)])

    sink.write(one(2, a=2, b=2))
    sink.write(one(1, a=1, c=1))
    sink.write(one(3, b=3))
    (row,) = subject.read()["task"].values()
    assert row["extra"] == {"a": 2, "b": 3, "c": 1}


def test_tables_of_one_writer_get_the_columns_they_lack(subject: Subject) -> None:
    sink = subject.make(writers="one")
    sink.open()
    sink.write(Batch([session("s", metadata={"a": 1})], [task("t", context="before")]))
    sink.close()
    with pytest.raises(SinkUnavailable, match="ALTER TABLE translation_sessions ADD COLUMN game_info_at"):
        subject.make(create_tables=False).open()
    guarded = subject.make()
    guarded.open()
    guarded.write(Batch([], [task("t", status="failed", updated_at=T0 + timedelta(days=1))]))
    guarded.write(Batch([], [task("t", status="pending", context="late", updated_at=T0 - timedelta(days=1))]))
    (row,) = subject.read()["task"].values()
    assert (row["status"], row["context"]) == ("failed", "before")
    subject.make(create_tables=False).open()
    # And back: one writer does not look at the times, but keeps them right.
    guarded.write(Batch([], [task("u", updated_at=T0 - timedelta(hours=2))]))
    sink.open()
    sink.write(Batch([], [task("u", confidence=0.5, updated_at=T0)]))
    guarded.write(Batch([], [task("u", confidence=0.9, context="late", updated_at=T0 - timedelta(hours=1))]))
    row = subject.read()["task"]["s", "u"]
    assert (row["updated_at"], row["confidence"], row["context"]) == (stamp(T0), 0.5, "late")


def test_folded_lines_of_several_directories_have_the_times_of_their_fields(tmp_path: Path) -> None:
    buffer = Buffer(timed=True)
    times = [stamp(T0 + timedelta(hours=n)) for n in range(2)]
    buffer.add("task", [task("t", context="first")], times[0])
    buffer.add("task", [task("t", status="completed")], times[1])
    sink = JSONLSink(JSONLSettings(writers="several"), tmp_path)
    sink.open()
    sink.write(buffer.take())
    sink.close()
    (line,) = (tmp_path / "jsonl" / "tasks.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["context"], row["context_at"], row["updated_at"]) == ("first", *times)
