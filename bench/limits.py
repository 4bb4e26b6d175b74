"""What each sink can take at most from one Python process: rows encoded before the clock starts, over one connection,
in the fastest way that its driver has and with the durability that the service asks of it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from sqlalchemy import make_url

from bench.load import Load
from bench.rows import Row, task
from bench.worker import serve
from tornado_persist.sinks.bulk import BulkConnection

#: Rows in a transaction, as many as the service puts into one.
TRANSACTION = 10_000
#: Rows in a command of MariaDB; more do not make it faster.
STATEMENT = 500

_NOW = "2025-09-30T16:40:00+00:00"
_TABLE = "translation_tasks"


def rows_of(load: Load) -> Iterator[Row]:
    """Its rows with the times that the service adds."""
    for number in range(load.first, load.first + load.count):
        row = task(number, load.revision)
        row["start_time"] += "+00:00"
        row["end_time"] += "+00:00"
        yield {**row, "created_at": _NOW, "updated_at": _NOW}


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _changes(columns: Sequence[str], form: str) -> str:
    return ", ".join(form.format(name) for name in columns if name not in ("task_id", "created_at"))


def postgres(load: Load, place: str) -> Callable[[], None]:
    """COPY into a temporary table, and an upsert from there."""
    rows = list(rows_of(load))
    columns = list(rows[0])
    names = ", ".join(columns)
    texts = [
        "".join("\t".join([r"\N" if value is None else str(value) for value in row.values()]) + "\n" for row in chunk)
        for chunk in _chunks(rows, TRANSACTION)
    ]
    assert "\\" not in "".join(texts).replace(r"\N", ""), "these rows would need escapes"
    blocks = [text.encode() for text in texts]
    connection = psycopg.connect(place, autocommit=True)
    connection.execute(f"CREATE TEMPORARY TABLE staging (LIKE {_TABLE}) ON COMMIT DELETE ROWS".encode())
    upsert = (
        f"INSERT INTO {_TABLE} ({names}) SELECT {names} FROM staging"
        f" ON CONFLICT (task_id) DO UPDATE SET {_changes(columns, '{0} = EXCLUDED.{0}')}"
    ).encode()

    def run() -> None:
        for block in blocks:
            with connection.transaction(), connection.cursor() as cursor:
                with cursor.copy(f"COPY staging ({names}) FROM STDIN".encode()) as copy:
                    copy.write(block)
                cursor.execute(upsert)

    return run


def mysql(load: Load, place: str) -> Callable[[], None]:
    """MariaDB's bulk command."""
    rows = list(rows_of(load))
    columns = list(rows[0])
    statement = (
        f"INSERT INTO {_TABLE} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON DUPLICATE KEY UPDATE {_changes(columns, '{0} = VALUES({0})')}"
    ).encode()
    commands = [
        b"".join([_indicated(value) for row in chunk for value in row.values()]) for chunk in _chunks(rows, STATEMENT)
    ]
    url = make_url(place)
    connection = BulkConnection(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        database=url.database,
        charset="utf8mb4",
        init_command="SET SESSION sql_mode = 'STRICT_ALL_TABLES', SESSION time_zone = '+00:00'",
    )
    connection.prepare(statement)

    def run() -> None:
        for some in _chunks(commands, TRANSACTION // STATEMENT):
            for command in some:
                connection.execute_bulk(statement, command)
            connection.commit()

    return run


def _indicated(value: Any) -> bytes:
    if value is None:
        return b"\1"
    text = str(value).removesuffix("+00:00").encode()
    assert len(text) < 251, "these texts would need a longer size"
    return bytes((0, len(text))) + text


def sqlite(load: Load, place: str) -> Callable[[], None]:
    """``executemany`` in one transaction, synced."""
    rows = list(rows_of(load))
    columns = list(rows[0])
    values = [tuple(row.values()) for row in rows]
    connection = sqlite3.connect(place, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA synchronous = FULL").close()
    statement = (
        f"INSERT INTO {_TABLE} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT (task_id) DO UPDATE SET {_changes(columns, '{0} = excluded.{0}')}"
    )

    def run() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, values)
        connection.execute("COMMIT")

    return run


def jsonl(load: Load, place: str) -> Callable[[], None]:
    """Lines appended, and an fsync for as many as the service writes at once."""
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    lines = [encode(row) for row in rows_of(load)]
    blocks = ["".join(line + "\n" for line in chunk).encode() for chunk in _chunks(lines, TRANSACTION)]
    descriptor = os.open(f"{place}/tasks.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def run() -> None:
        for block in blocks:
            view = memoryview(block)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)

    return run


LIMITS = {"postgres": postgres, "mysql": mysql, "sqlite": sqlite, "jsonl": jsonl}


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """``job``: the load, the ``sink`` and its ``place``."""
    load = Load(**job["load"])
    write = LIMITS[job["sink"]](load, job["place"])

    def run() -> dict[str, Any]:
        cpu, began = time.process_time(), time.perf_counter()
        write()
        seconds = time.perf_counter() - began
        own_cpu = time.process_time() - cpu
        return {"rows": load.rows, "requests": 0, "accepting": seconds, "flushing": 0.0, "own_cpu": own_cpu}

    return run


if __name__ == "__main__":
    serve(prepare)
