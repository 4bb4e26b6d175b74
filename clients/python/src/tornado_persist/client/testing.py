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
from urllib.parse import unquote

import httpx

from tornado_persist.client.connection import PREFIX
from tornado_persist.client.values import KEYS, Kind, Row

_FINISHED = ("completed", "failed")
_STATUSES = ("pending", "processing", *_FINISHED)
_EXACT = frozenset({"llm_provider", "batch_id", "sheet_name", "column_name"})


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
            if not request.url.path.endswith(("/batch", "/flush")):
                return self._read(request)
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

    def _read(self, request: httpx.Request) -> httpx.Response:
        """A row, or all rows on one page: filters by a field's value and ``fields`` are heeded, times are not."""
        _, what, *keys = map(unquote, request.url.raw_path.decode().partition("?")[0].partition(PREFIX)[2].split("/"))
        given = request.url.params
        if what == "recovery":
            what, *keys = keys
        if keys and what != "incomplete-sessions" and not (len(keys) == 2 and keys[1] == "tasks"):
            kind: Kind = "task" if len(keys) == 3 else "session"
            row = self.tasks.get((keys[0], keys[2])) if kind == "task" else self.sessions.get(keys[0])
            if row is None:
                return httpx.Response(404, json={"detail": f"There is no such {kind}"})
            row = self._shown(kind, row, given, counts=True)
            if what != "restore":
                return httpx.Response(200, json=row)
            left = [it for key, it in sorted(self.tasks.items()) if key[0] == keys[0] and it["status"] not in _FINISHED]
            return httpx.Response(200, json={"session": row, "tasks": left, "truncated": False})
        kind = "task" if what == "tasks" or keys else "session"
        rows = [row for _, row in sorted((self.tasks if kind == "task" else self.sessions).items())]
        rows = [row for row in rows if not keys or row["session_id"] == keys[0]]
        if what == "incomplete-sessions":
            rows = [row for row in rows if row["status"] not in _FINISHED]
        for name, value in given.items():
            if name == "status" or name in _EXACT:
                wanted = value.split(",") if name == "status" else [value]
                rows = [row for row in rows if row[name] in wanted]
        counts = given.get("counts") == "true"
        items = [self._shown(kind, row, given, counts=counts) for row in rows]
        return httpx.Response(200, json={"items": items, "next": None})

    def _shown(self, kind: Kind, row: Row, given: httpx.QueryParams, *, counts: bool) -> Row:
        """What an answer shows of a row; ``counts``: a session with ``tasks`` and ``progress``."""
        if "fields" in given:
            return {name: row[name] for name in (*KEYS[kind], *given["fields"].split(",")) if name in row}
        if kind == "task" or not counts:
            return row
        states = [task["status"] for key, task in self.tasks.items() if key[0] == row["session_id"]]
        whole = max(len(states), row.get("total_tasks") or 0)
        done = len([state for state in states if state in _FINISHED])
        progress = round(100 * done / whole, 1) if whole else 100.0 * (row["status"] == "completed")
        return {**row, "tasks": {state: states.count(state) for state in _STATUSES}, "progress": progress}
