"""How the SQL sinks delete: in pieces of a bounded number of rows, one transaction each, a session's own row last.

All of it is a walk along the primary keys, so no index is needed that a status update would have to rewrite.

Where several instances write, one of them may write an update after another has deleted its row, although it had
accepted it before. So what is deleted on request is noted in a table, with a time, and every write leaves out what was
accepted up to then. The row of that table whose key is empty has the time of the last deletion, which spares most
writes a search. It is also a lock: a writer holds it shared until its commit, and a deletion takes it alone. So when
rows are deleted no writer is at work that has not seen the note. (Nodes of a Galera cluster share no locks: there a
write that commits in the same milliseconds may come through.)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.types import UserDefinedType

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import FIELD_TIMES, SHAPES, Kind, Row
from tornado_persist.records.times import stamp
from tornado_persist.sinks.base import Expiry, Removed
from tornado_persist.sinks.encoders import batched
from tornado_persist.sinks.guard import NEVER
from tornado_persist.sinks.statements import LOOKUP
from tornado_persist.sinks.tables import DELETIONS, TABLES

_SESSIONS, _TASKS, _NOTES = TABLES["session"], TABLES["task"], DELETIONS.c

#: How long a deletion is remembered: an instance that comes back later may bring rows back.
KEPT = timedelta(days=30)
#: No row of ours has an earlier time.
EARLIEST = datetime(1000, 1, 1, tzinfo=UTC)


class _Plain(UserDefinedType[Any]):
    """A value without a cast, which might not fit a column that somebody has made with another type."""

    cache_ok = True


def _plain(value: str) -> BindParameter[Any]:
    return bindparam(None, value, _Plain(), unique=True)


_LAST = select(_NOTES.deleted_at).where(_NOTES.session_id == _plain("")).with_for_update(read=True)


def delete_sessions(
    connection: Connection, session_ids: Sequence[str], limit: int, expiry: Expiry | None, *, dry_run: bool
) -> Removed:
    """:meth:`Sink.delete_sessions` within a transaction."""
    sessions = tasks = done = 0
    for session_id in session_ids:
        if expiry is not None and not _is_expired(connection, session_id, expiry):
            done += 1
            continue
        if sessions + tasks >= limit and not dry_run:
            break
        its_tasks = _TASKS.c.session_id == _plain(session_id)
        its_row = _SESSIONS.c.session_id == _plain(session_id)
        if dry_run:
            tasks += connection.scalar(select(func.count()).select_from(_TASKS).where(its_tasks)) or 0
            sessions += connection.scalar(select(func.count()).select_from(_SESSIONS).where(its_row)) or 0
            done += 1
            continue
        room = limit - sessions - tasks
        last = connection.scalar(
            select(_TASKS.c.task_id).where(its_tasks).order_by(_TASKS.c.task_id).offset(room - 1).limit(1)
        )
        if last is not None:
            this_far: ColumnElement[bool] = _TASKS.c.task_id <= _plain(str(last))
            tasks += connection.execute(delete(_TASKS).where(its_tasks, this_far)).rowcount
            break
        tasks += connection.execute(delete(_TASKS).where(its_tasks)).rowcount
        sessions += connection.execute(delete(_SESSIONS).where(its_row)).rowcount
        done += 1
    return Removed(sessions, tasks, done)


def delete_task(connection: Connection, session_id: str, task_id: str) -> bool:
    """:meth:`Sink.delete_task` within a transaction."""
    its_key = (_TASKS.c.session_id == _plain(session_id), _TASKS.c.task_id == _plain(task_id))
    return connection.execute(delete(_TASKS).where(*its_key)).rowcount > 0


def find_expired(connection: Connection, expiry: Expiry, after: str | None, limit: int) -> tuple[list[str], str | None]:
    """:meth:`Sink.find_expired` within a transaction."""
    if expiry.status is None:
        key = _TASKS.c.session_id
        # The groups come from the primary key, and only those of this page are read.
        query = select(key).group_by(key).order_by(key).limit(limit)
        page = [str(id) for id in connection.scalars(query if after is None else query.where(key > _plain(after)))]
        here = bindparam(None, page, _Plain(), unique=True, expanding=True)
        there = {
            str(id) for id in connection.scalars(select(_SESSIONS.c.session_id).where(_SESSIONS.c.session_id.in_(here)))
        }
        found = [id for id in page if id not in there]
    else:
        key = _SESSIONS.c.session_id
        query = select(key, _SESSIONS.c.status, _is_old(connection, expiry)).order_by(key).limit(limit)
        rows = connection.execute(query if after is None else query.where(key > _plain(after))).all()
        page = [str(id) for id, _, _ in rows]
        found = [str(id) for id, status, is_old in rows if status == expiry.status and is_old]
    return found, page[-1] if len(page) == limit else None


def prepare_notes(connection: Connection) -> None:
    """Add the row with the empty key, within a transaction, unless it is there."""
    if not connection.scalar(select(func.count()).select_from(DELETIONS).where(_NOTES.session_id == _plain(""))):
        _note(connection, "", "", datetime.fromisoformat(NEVER))


def note_deletion(connection: Connection, session_id: str, task_id: str, at: datetime) -> None:
    """:meth:`Sink.note_deletion` within a transaction."""
    time = _plain(_text(connection, at))
    last = case((_NOTES.deleted_at > time, _NOTES.deleted_at), else_=time)
    # First, for this waits for all writers.
    connection.execute(update(DELETIONS).where(_NOTES.session_id == _plain("")).values(deleted_at=last))
    its_key = (_NOTES.session_id == _plain(session_id), _NOTES.task_id == _plain(task_id))
    connection.execute(delete(DELETIONS).where(*its_key))
    _note(connection, session_id, task_id, at)
    old = _NOTES.deleted_at < _plain(_text(connection, at - KEPT))
    connection.execute(delete(DELETIONS).where(old, _NOTES.session_id != _plain("")))


def _note(connection: Connection, session_id: str, task_id: str, at: datetime) -> None:
    key = {"session_id": _plain(session_id), "task_id": _plain(task_id)}
    connection.execute(insert(DELETIONS).values(**key, deleted_at=_plain(_text(connection, at))))


def last_deletion(connection: Connection) -> str:
    """The time of the last one, as rows hold times. Until the transaction ends no other one is noted.

    Raises:
        SinkUnavailable: the row with the empty key was taken away; it is made when the sink is opened.
    """
    found = connection.scalar(_LAST)
    if found is None:
        raise SinkUnavailable(f"table {DELETIONS.name} has no row with an empty session_id")
    return stamp(found)


def without_deleted(connection: Connection, kind: Kind, rows: Sequence[Row]) -> list[Row]:
    """The rows, as far as they were accepted after what is noted about their keys."""
    times: dict[tuple[str, str], str] = {}
    for some in batched({row["session_id"] for row in rows}, LOOKUP):
        here = bindparam(None, some, _Plain(), unique=True, expanding=True)
        query = select(_NOTES.session_id, _NOTES.task_id, _NOTES.deleted_at).where(_NOTES.session_id.in_(here))
        times.update(((str(session), str(task)), stamp(at)) for session, task, at in connection.execute(query))
    alive = []
    for row in rows:
        at = times.get((row["session_id"], ""), "")
        if kind == "task":
            at = max(at, times.get((row["session_id"], row["task_id"]), ""))
        if row["updated_at"] > at:
            alive.append(row if row["created_at"] > at else _since(kind, row, at))
    return alive


def _since(kind: Kind, row: Row, at: str) -> Row:
    """A row without the fields that only updates up to ``at`` had."""
    fields = row.as_kept()
    first = fields["updated_at"]
    for name, time in FIELD_TIMES[kind].items():
        if time in fields and fields[time] <= at:
            del fields[name], fields[time]
        elif time in fields:
            first = min(first, fields[time])
    return SHAPES[kind].row({**fields, "created_at": first})


def _is_expired(connection: Connection, session_id: str, expiry: Expiry) -> bool:
    query = select(_SESSIONS.c.status, _is_old(connection, expiry)).where(_SESSIONS.c.session_id == _plain(session_id))
    row = connection.execute(query.with_for_update()).first()
    if expiry.status is None:
        if row is not None:
            return False
    elif row is None or row.status != expiry.status or not row[1]:
        return False
    newer = exists().where(
        _TASKS.c.session_id == _plain(session_id), _TASKS.c.updated_at > _plain(_text(connection, expiry.before))
    )
    return not connection.scalar(select(newer))


def _is_old(connection: Connection, expiry: Expiry) -> ColumnElement[int]:
    """Whether a session was last updated early enough, as a number.

    The database says it: others may have stored what no driver reads as a time (``infinity``, ``0000-00-00``), and in
    SQLite anything. What is no time, or before those that rows may have, is not old.
    """
    at: ColumnElement[Any] = _SESSIONS.c.updated_at
    if connection.dialect.name == "sqlite":
        at = case((func.typeof(at) == "text", func.replace(at, " ", "T")))
    before = _plain(_text(connection, expiry.before))
    return case((at.between(_plain(_text(connection, EARLIEST)), before), 1), else_=0)


def _text(connection: Connection, time: datetime) -> str:
    """A time as the columns are compared with it; MariaDB reads no offset."""
    return stamp(time).removesuffix("+00:00") if connection.dialect.name in ("mysql", "mariadb") else stamp(time)
