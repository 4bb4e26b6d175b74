"""A stand-in for the network, for tests of programs that use the client.

::

    recorder = Recorder()
    with Client(transport=recorder) as persist:
        my_program(persist)
    assert recorder.tasks["s1", "t1"]["status"] == "completed"
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import deque
from typing import Any

import httpx

from tornado_persist.client.values import Row


class Recorder(httpx.BaseTransport):
    """Takes every batch as the service would, and keeps its rows in memory. Nothing is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: deque[httpx.Response] = deque()
        #: The requests so far, each with its ``headers`` and ``url``.
        self.requests: list[httpx.Request] = []
        #: The rows as a database would hold them: all updates of a key merged. By ``session_id``.
        self.sessions: dict[str, Row] = {}
        #: By ``session_id`` and ``task_id``.
        self.tasks: dict[tuple[str, str], Row] = {}

    def fail(self, status: int = 503, detail: str = "not now", *, times: int = 1, **body: Any) -> None:
        """Answer the next requests with this status; nothing of them is kept. ``body``: more keys of the answer."""
        with self._lock:
            for _ in range(times):
                self._answers.append(httpx.Response(status, json={"detail": detail, **body}))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """What httpx calls."""
        content = request.read()
        with self._lock:
            self.requests.append(request)
            if self._answers:
                return self._answers.popleft()
            if request.url.path.endswith("/flush"):
                return httpx.Response(200, json={"status": "flushed"})
            if request.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            data: dict[str, list[Row]] = json.loads(content)
            for row in data.get("sessions", ()):
                self.sessions.setdefault(row["session_id"], {}).update(row)
            for row in data.get("tasks", ()):
                self.tasks.setdefault((row["session_id"], row["task_id"]), {}).update(row)
            return httpx.Response(200, json={"status": "accepted", "count": sum(map(len, data.values()))})
