"""A Celery worker that reports its work to the service: ``celery -A worker worker``."""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_process_shutdown

from tornado_persist.client import Client

app = Celery("worker", broker=os.environ.get("BROKER_URL", "memory://"))
app.conf.broker_transport_options = {
    "data_folder_in": os.environ.get("BROKER_FOLDER", "."),
    "data_folder_out": os.environ.get("BROKER_FOLDER", "."),
}
# Each process of the pool gets a queue and a thread of its own after the fork.
persist = Client(os.environ.get("PERSIST_URL", "http://localhost:8001"))


@worker_process_shutdown.connect
def close(**_: object) -> None:
    """Send what waits. Celery ends its processes without Python's exit handlers."""
    persist.close()


@app.task
def translate(session_id: str, task_id: str, text: str) -> None:
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
