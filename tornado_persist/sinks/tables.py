"""The two tables, for every database, and the name of each type in each database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Raw
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from tornado_persist.errors import BatchRejected
from tornado_persist.records.models import DEFAULTS, Kind

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dump_json(value: Any) -> str:
    """JSON that every database here accepts; free JSON of a row is text already.

    Raises:
        BatchRejected: JSON cannot say ``value`` (NaN, a number of thousands of digits, nested too deep).
    """
    if isinstance(value, Raw):
        return bytes(value).decode()
    try:
        return _encoder.encode(value)
    except (ValueError, RecursionError) as exc:
        raise BatchRejected(f"a value cannot be written as JSON: {type(exc).__name__}") from exc


class KeyType(TypeDecorator[str]):
    """A key: compared byte by byte, as MySQL's usual collations do not."""

    impl = String(64)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name not in ("mysql", "mariadb"):
            return dialect.type_descriptor(String(64))
        # Neither product knows the other's name for "binary, and a trailing space counts". Which of them answers is
        # known after the first connection.
        collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
        return dialect.type_descriptor(mysql.VARCHAR(64, charset="utf8mb4", collation=collation))


class TimeType(TypeDecorator[datetime]):
    """A point in time, to the microsecond, in UTC: read as an aware ``datetime`` from every database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        match dialect.name:
            case "mysql" | "mariadb":
                return dialect.type_descriptor(mysql.DATETIME(fsp=6))
            case "sqlite":
                return dialect.type_descriptor(Text())
            case _:
                return dialect.type_descriptor(DateTime(timezone=True))

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        aware: datetime = time if time.tzinfo else time.replace(tzinfo=UTC)
        return aware.astimezone(UTC)


METADATA = MetaData()

_TEXT = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_OBJECT = (
    JSON(none_as_null=True)
    .with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    .with_variant(Text(), "sqlite")
)
# Key prefixes and off-page texts should not hang on the server's default row format.
_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_default_charset": "utf8mb4", "mysql_row_format": "DYNAMIC"}
_MARIADB: dict[str, Any] = {key.replace("mysql", "mariadb"): value for key, value in _MYSQL.items()}


def _required(name: str, kind: TypeEngine[Any]) -> Column[Any]:
    return Column(name, kind, nullable=False)


def _counter(kind: Kind, name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(DEFAULTS[kind][name])))


SESSIONS = Table(
    "translation_sessions",
    METADATA,
    Column("session_id", KeyType, primary_key=True),
    _required("filename", String(255)),
    _required("file_path", String(512)),
    _required("status", String(20)),
    Column("game_info", _OBJECT),
    _required("llm_provider", String(50)),
    Column("metadata", _OBJECT),
    _counter("session", "total_tasks"),
    _counter("session", "completed_tasks"),
    _counter("session", "failed_tasks"),
    _counter("session", "processing_tasks"),
    Column("extra", _OBJECT),
    _required("created_at", TimeType()),
    _required("updated_at", TimeType()),
    **_MYSQL,
    **_MARIADB,
)

# No foreign key to the sessions: a task may arrive before its session.
TASKS = Table(
    "translation_tasks",
    METADATA,
    # In this order the primary key also serves queries for the tasks of a session.
    Column("session_id", KeyType, primary_key=True),
    Column("task_id", KeyType, primary_key=True),
    _required("batch_id", KeyType()),
    _required("sheet_name", String(255)),
    _required("row_index", Integer()),
    _required("column_name", String(255)),
    _required("source_text", _TEXT),
    Column("target_text", _TEXT),
    Column("context", _TEXT),
    _required("status", String(20)),
    Column("confidence", Double),
    Column("error_message", _TEXT),
    _counter("task", "retry_count"),
    Column("start_time", TimeType),
    Column("end_time", TimeType),
    Column("duration_ms", BigInteger),
    Column("extra", _OBJECT),
    _required("created_at", TimeType()),
    _required("updated_at", TimeType()),
    **_MYSQL,
    **_MARIADB,
)

# Only for several writers: what was deleted, and when; an empty task_id is a whole session. See removal.py for the row
# whose key is empty.
DELETIONS = Table(
    "translation_deletions",
    METADATA,
    Column("session_id", KeyType, primary_key=True),
    Column("task_id", KeyType, primary_key=True),
    _required("deleted_at", TimeType()),
    **_MYSQL,
    **_MARIADB,
)

TABLES: Mapping[Kind, Table] = {"session": SESSIONS, "task": TASKS}
