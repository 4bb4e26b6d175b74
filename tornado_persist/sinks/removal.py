"""How the SQL sinks delete: in pieces of a bounded number of rows, one transaction each, a session's own row last.

All of it is a walk along the primary keys, so no index is needed that a status update would have to rewrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, delete, exists, func, select
from sqlalchemy.types import UserDefinedType

from tornado_persist.records.times import stamp
from tornado_persist.sinks.base import Expiry, Removed
from tornado_persist.sinks.tables import TABLES

_SESSIONS, _TASKS = TABLES["session"], TABLES["task"]


class _Plain(UserDefinedType[Any]):
    """A value without a cast, which might not fit a column that somebody has made with another type."""

    cache_ok = True


def _plain(value: str) -> BindParameter[Any]:
    return bindparam(None, value, _Plain(), unique=True)


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
        query = select(key, _SESSIONS.c.status, _SESSIONS.c.updated_at).order_by(key).limit(limit)
        rows = connection.execute(query if after is None else query.where(key > _plain(after))).all()
        page = [str(id) for id, _, _ in rows]
        found = [str(id) for id, status, at in rows if status == expiry.status and at <= expiry.before]
    return found, page[-1] if len(page) == limit else None


def _is_expired(connection: Connection, session_id: str, expiry: Expiry) -> bool:
    columns = _SESSIONS.c
    query = select(columns.status, columns.updated_at).where(columns.session_id == _plain(session_id))
    row = connection.execute(query.with_for_update()).first()
    if expiry.status is None:
        if row is not None:
            return False
    elif row is None or row.status != expiry.status or row.updated_at > expiry.before:
        return False
    newer = exists().where(
        _TASKS.c.session_id == _plain(session_id), _TASKS.c.updated_at > _plain(_text(connection, expiry.before))
    )
    return not connection.scalar(select(newer))


def _text(connection: Connection, time: datetime) -> str:
    """A time as the columns are compared with it; MariaDB reads no offset."""
    return stamp(time).removesuffix("+00:00") if connection.dialect.name in ("mysql", "mariadb") else stamp(time)
