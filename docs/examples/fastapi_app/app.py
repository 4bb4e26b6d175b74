"""A FastAPI application that reports its work to the service: ``PERSIST_URL=http://localhost:8001 uvicorn app:app``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from tornado_persist.client import Client

persist = Client(os.environ.get("PERSIST_URL", "http://localhost:8001"))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with persist:  # sends what waits when the application ends
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/translate/{session_id}/{task_id}")
async def translate(session_id: str, task_id: str, text: str) -> dict[str, str]:
    persist.task(
        session_id=session_id,
        task_id=task_id,
        batch_id="b1",
        sheet_name="Sheet1",
        row_index=0,
        column_name="Text",
        source_text=text,
        target_text=text.upper(),
        status="completed",
    )
    return {"text": text.upper()}
