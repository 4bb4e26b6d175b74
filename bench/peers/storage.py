"""The database side of the hand-written service: an upsert by ``executemany``, over a pool, for each driver."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

COLUMNS = (
    "task_id",
    "session_id",
    "batch_id",
    "sheet_name",
    "row_index",
    "column_name",
    "source_text",
    "target_text",
    "context",
    "status",
    "confidence",
    "error_message",
    "retry_count",
    "start_time",
    "end_time",
    "duration_ms",
    "created_at",
    "updated_at",
)
TIMES = ("start_time", "end_time", "created_at", "updated_at")
CHANGED = [name for name in COLUMNS if name not in ("task_id", "created_at")]


class Storage(Protocol):
    """Where flushes go."""

    async def connect(self) -> None: ...

    async def upsert_tasks(self, tasks: list[dict[str, Any]]) -> None: ...

    async def close(self) -> None: ...


class MySQLStorage:
    """aiomysql, which joins the rows of an ``executemany`` into long INSERT statements."""

    SQL = (
        f"INSERT INTO translation_tasks ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
        f" ON DUPLICATE KEY UPDATE {', '.join(f'{name} = VALUES({name})' for name in CHANGED)}"
    )

    def __init__(self, url: str) -> None:
        self.url = urlsplit(url)
        self.pool: Any = None

    async def connect(self) -> None:
        import aiomysql

        self.pool = await aiomysql.create_pool(
            host=self.url.hostname,
            port=self.url.port,
            user=self.url.username,
            password=self.url.password,
            db=self.url.path.lstrip("/"),
            charset="utf8mb4",
            minsize=1,
            maxsize=10,
        )

    async def upsert_tasks(self, tasks: list[dict[str, Any]]) -> None:
        rows = [tuple(task[name] for name in COLUMNS) for task in tasks]
        async with self.pool.acquire() as connection:
            try:
                async with connection.cursor() as cursor:
                    await cursor.executemany(self.SQL, rows)
                await connection.commit()
            except Exception:
                await connection.rollback()
                raise

    async def close(self) -> None:
        self.pool.close()
        await self.pool.wait_closed()


class PostgresStorage:
    """asyncpg, which prepares the statement and sends the rows of an ``executemany`` in one go."""

    SQL = (
        f"INSERT INTO translation_tasks ({', '.join(COLUMNS)})"
        f" VALUES ({', '.join(f'${number}' for number in range(1, len(COLUMNS) + 1))})"
        f" ON CONFLICT (task_id) DO UPDATE SET {', '.join(f'{name} = EXCLUDED.{name}' for name in CHANGED)}"
    )

    def __init__(self, url: str) -> None:
        self.url = url
        self.pool: Any = None

    async def connect(self) -> None:
        import asyncpg

        self.pool = await asyncpg.create_pool(self.url, min_size=1, max_size=10)

    async def upsert_tasks(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            for name in TIMES:
                task[name] = _aware(task[name])
        rows = [tuple(task[name] for name in COLUMNS) for task in tasks]
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.executemany(self.SQL, rows)

    async def close(self) -> None:
        await self.pool.close()


def _aware(time: datetime | None) -> datetime | None:
    # asyncpg would take a naive time for a local one.
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def storage_for(url: str) -> Storage:
    """By the URL's scheme."""
    return MySQLStorage(url) if url.startswith("mysql") else PostgresStorage(url)
