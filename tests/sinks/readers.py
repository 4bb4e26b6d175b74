"""What each sink has stored, read by other means than its own: plain SQL through the driver, or the files' lines."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pymysql

from tornado_persist.records.models import KINDS, Batch, Fields, Kind, key_of
from tornado_persist.records.times import stamp
from tornado_persist.testing import FIELDS, Stored, merge, nothing

TABLES: Mapping[Kind, str] = {"session": "translation_sessions", "task": "translation_tasks"}
OBJECTS = ("game_info", "metadata", "extra")
TIMES = ("start_time", "end_time", "created_at", "updated_at")


def read_sqlite(path: Path) -> Stored:
    with closing(sqlite3.connect(path)) as connection:
        return _read(lambda sql: connection.execute(sql).fetchall(), '"', "{}")


def read_postgres(url: str) -> Stored:
    with psycopg.connect(url, options="-c TimeZone=UTC") as connection:
        return _read(lambda sql: connection.execute(sql.encode()).fetchall(), '"', "{}::text")


def read_mysql(url: str) -> Stored:
    with closing(connect_mysql(url)) as connection, connection.cursor() as cursor:

        def rows(sql: str) -> Iterable[tuple[Any, ...]]:
            cursor.execute(sql)
            return list(cursor.fetchall())

        return _read(rows, "`", "CAST({} AS CHAR)")


def connect_mysql(url: str) -> pymysql.Connection[Any]:
    parts = urlsplit(url)
    return pymysql.connect(
        host=parts.hostname or "",
        port=parts.port or 0,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.strip("/"),
        charset="utf8mb4",
        autocommit=True,
    )


def read_jsonl(directory: Path) -> Stored:
    """The lines, folded by the merge rule."""
    stored = nothing()
    for kind in KINDS:
        content = (directory / f"{kind}s.jsonl").read_bytes()
        assert content == b"" or content.endswith(b"\n")
        for line in content.split(b"\n")[:-1]:
            row = json.loads(line)
            for name in TIMES:
                if row.get(name) is not None:
                    assert row[name] == stamp(datetime.fromisoformat(row[name]))
            merge(stored, Batch([row], []) if kind == "session" else Batch([], [row]))
    return stored


def ids(stored: dict[tuple[str, ...], Fields]) -> set[str]:
    """The rows' own ids, without the session that a task belongs to."""
    return {key[-1] for key in stored}


def _read(rows: Callable[[str], Iterable[tuple[Any, ...]]], quote: str, as_text: str) -> Stored:
    stored = nothing()
    for kind in KINDS:
        quoted = [f"{quote}{name}{quote}" for name in FIELDS[kind]]
        columns = [as_text.format(q) if name in OBJECTS else q for name, q in zip(FIELDS[kind], quoted, strict=True)]
        for values in rows(f"SELECT {', '.join(columns)} FROM {TABLES[kind]}"):
            row = _python(dict(zip(FIELDS[kind], values, strict=True)))
            key = key_of(kind, row)
            assert key not in stored[kind]
            stored[kind][key] = row
    return stored


def _python(row: Fields) -> Fields:
    for name in OBJECTS:
        if row.get(name) is not None:
            row[name] = json.loads(row[name])
            assert row[name] is not None, "JSON's null was stored where SQL's belongs"
    for name in TIMES:
        time = row.get(name)
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        if time is not None:
            row[name] = stamp(time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC))
    return row
