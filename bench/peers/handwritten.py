"""The service that people write by hand: FastAPI, a list, a lock and a timer.

Written as such services are: validated by pydantic, collected in a list, and written by an ``executemany`` upsert when
the list is long enough, when the timer fires, or on demand. Nothing is durable before the flush, and a field that is
left out becomes null.

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

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from bench.peers.storage import Storage, storage_for

logger = logging.getLogger(__name__)

MAX_BUFFER = 1000  # rows
FLUSH_INTERVAL = 30  # seconds


class Task(BaseModel):
    """One translated cell."""

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
    """A request."""

    tasks: list[Task]


class BufferManager:
    """Collects tasks and writes them in batches."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.tasks: list[dict[str, Any]] = []
        self.lock = asyncio.Lock()
        self.flushes: set[asyncio.Task[int]] = set()

    def add_tasks(self, tasks: list[Task]) -> None:
        now = datetime.now(UTC).replace(tzinfo=None)
        for task in tasks:
            self.tasks.append({**task.model_dump(), "created_at": now, "updated_at": now})
        if len(self.tasks) >= MAX_BUFFER:
            flush = asyncio.create_task(self.flush())
            self.flushes.add(flush)
            flush.add_done_callback(self.flushes.discard)

    async def flush(self) -> int:
        async with self.lock:
            tasks, self.tasks = self.tasks, []
            if not tasks:
                return 0
            try:
                await self.storage.upsert_tasks(tasks)
            except Exception:
                logger.exception("flush failed")
                self.tasks = tasks + self.tasks
                raise
            return len(tasks)

    async def run_timer(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            try:
                await self.flush()
            except Exception:
                logger.exception("timer flush failed")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    storage = storage_for(os.environ["DATABASE_URL"])
    await storage.connect()
    app.state.buffer = BufferManager(storage)
    timer = asyncio.create_task(app.state.buffer.run_timer())
    yield
    timer.cancel()
    await app.state.buffer.flush()
    await storage.close()


app = FastAPI(title="Persistence Service", lifespan=lifespan)


@app.get("/")
async def root() -> dict[str, str]:
    return {"service": "Persistence Service", "status": "running"}


@app.post("/api/v1/persistence/tasks/batch")
async def add_tasks(batch: TaskBatch) -> dict[str, Any]:
    app.state.buffer.add_tasks(batch.tasks)
    return {"status": "accepted", "count": len(batch.tasks), "timestamp": datetime.now(UTC).isoformat()}


@app.post("/api/v1/persistence/flush")
async def flush() -> dict[str, Any]:
    try:
        written = await app.state.buffer.flush()
    except Exception as exc:
        raise HTTPException(500, "flush failed") from exc
    return {"status": "flushed", "sessions_written": 0, "tasks_written": written}
