"""A typical handwritten service: FastAPI and pydantic, a list, a lock, a timer, and an ``executemany`` upsert.

Nothing is durable before the flush, and a field that is left out becomes null::

    DATABASE_URL=… uvicorn bench.peers.handwritten:app --port PORT
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI
from pydantic import BaseModel, Field

MAX_BUFFER = 1000  # rows
FLUSH_INTERVAL = 30  # seconds


class Task(BaseModel):
    task_id: str
    session_id: str
    batch_id: str
    sheet_name: str
    row_index: int
    column_name: str
    source_text: str
    target_text: str | None = None
    context: str | None = None
    status: Literal["pending", "processing", "completed", "failed"]
    confidence: float | None = Field(None, ge=0, le=1)
    error_message: str | None = None
    retry_count: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    duration_ms: int | None = None


class TaskBatch(BaseModel):
    tasks: list[Task]


COLUMNS = list(Task.model_fields)
NAMES = ", ".join(COLUMNS)
CHANGED = COLUMNS[1:]


class Postgres:
    """asyncpg, which prepares the statement and sends the rows of an ``executemany`` in one go."""

    SQL = (
        f"INSERT INTO translation_tasks ({NAMES}) VALUES ({', '.join(f'${n + 1}' for n in range(len(COLUMNS)))})"
        f" ON CONFLICT (task_id) DO UPDATE SET {', '.join(f'{name} = EXCLUDED.{name}' for name in CHANGED)}"
    )

    async def connect(self, url: str) -> None:
        import asyncpg

        self.pool = await asyncpg.create_pool(url, min_size=1, max_size=10)

    async def upsert(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for name in ("start_time", "end_time"):  # asyncpg would take a naive time for a local one
                if row[name] is not None and row[name].tzinfo is None:
                    row[name] = row[name].replace(tzinfo=UTC)
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.executemany(self.SQL, [tuple(row.values()) for row in rows])


class MySQL:
    """aiomysql, which joins the rows of an ``executemany`` into long INSERT statements."""

    SQL = (
        f"INSERT INTO translation_tasks ({NAMES}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
        f" ON DUPLICATE KEY UPDATE {', '.join(f'{name} = VALUES({name})' for name in CHANGED)}"
    )

    async def connect(self, url: str) -> None:
        import aiomysql

        parts = urlsplit(url)
        account = {"user": parts.username, "password": parts.password, "db": parts.path.lstrip("/")}
        self.pool = await aiomysql.create_pool(host=parts.hostname, port=parts.port, charset="utf8mb4", **account)

    async def upsert(self, rows: list[dict[str, Any]]) -> None:
        async with self.pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.executemany(self.SQL, [tuple(row.values()) for row in rows])
            await connection.commit()


rows: list[dict[str, Any]] = []
lock = asyncio.Lock()
flushes: set[asyncio.Task[int]] = set()
storage: Postgres | MySQL = MySQL() if os.environ["DATABASE_URL"].startswith("mysql") else Postgres()


async def write() -> int:
    async with lock:
        taken = rows.copy()
        rows.clear()
        if taken:
            try:
                await storage.upsert(taken)
            except Exception:
                logging.exception("flush failed")
                rows[:0] = taken
                raise
        return len(taken)


async def write_regularly() -> None:
    while True:
        await asyncio.sleep(FLUSH_INTERVAL)
        await asyncio.gather(write(), return_exceptions=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await storage.connect(os.environ["DATABASE_URL"])
    timer = asyncio.create_task(write_regularly())
    yield
    timer.cancel()
    await write()


app = FastAPI(lifespan=lifespan)


@app.post("/api/v1/persistence/tasks/batch")
async def add_tasks(batch: TaskBatch) -> dict[str, Any]:
    rows.extend(task.model_dump() for task in batch.tasks)
    if len(rows) >= MAX_BUFFER:
        flush = asyncio.create_task(write())
        flushes.add(flush)
        flush.add_done_callback(flushes.discard)
    return {"status": "accepted", "count": len(batch.tasks), "timestamp": datetime.now(UTC).isoformat()}


@app.post("/api/v1/persistence/flush")
async def flush() -> dict[str, Any]:
    return {"status": "flushed", "tasks_written": await write()}
