"""Answers that are not the service's, or not what it would say: nothing counts as sent, nothing ends the thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.process import Persistd
from tests.rows import task
from tornado_persist.client import Client
from tornado_persist.client.testing import Recorder


@contextlib.contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """The URL of a program that is not the service."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason", "problem"),
    [
        (200, b"<html>Welcome</html>", {}, "refused", "200: the answer is not the service's"),
        (200, b'{"status": "ok"}', {}, "refused", "200: the answer is not the service's"),
        (200, b"[" * 100_000, {}, "refused", "200: the answer is not the service's"),
        (200, b"no gzip", {"Content_Encoding": "gzip"}, "unavailable", "header"),
        (201, b'{"status": "accepted"}', {}, "refused", "201: Created"),
        (302, b"", {"Location": "http://localhost/"}, "refused", "302: Found"),
        (404, b"<html>", {}, "refused", "404: Not Found"),
        (422, b'{"detail": "no", "errors": 5}', {}, "invalid", "422: no"),
        (422, b'{"detail": "no", "errors": [5, {"loc": "x"}, {"loc": ["tasks", -1]}]}', {}, "invalid", "422: no"),
        (429, b"", {"Retry_After": "1"}, "unavailable", "429: Too Many Requests"),
        (500, b'{"detail": "%s"}' % (b"x" * 100_000), {}, "refused", "500: xxx"),
        (507, b"", {}, "refused", "507: Insufficient Storage"),
    ],
)
def test_an_answer_that_is_not_the_services(
    status: int, body: bytes, headers: dict[str, str], reason: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(status, body, **headers) as url, Client(url) as persist:
        for number in range(4):
            persist.task(**task(str(number)))
        assert not persist.flush()
        assert (persist.stats.sent, persist.stats.dropped) == (0, {reason: 4})
        assert problem in persist.stats.last_error
        assert len(persist.stats.last_error) < 2000
    assert [record.exc_info for record in caplog.records] == [None], "a warning, and no traceback"


@pytest.mark.parametrize("limit", ["max_batch = 10", "max_body_bytes = 2000"])
def test_a_service_that_takes_less_refuses_the_first_batch_alone(tmp_path: Path, limit: str) -> None:
    with Persistd(tmp_path, server=limit) as service, Client(service.url, max_batch=80) as persist:
        refused = []
        for _ in range(3):
            for number in range(80):
                persist.task(**task(str(number)))
            assert persist.flush()
            refused.append(service.stats()["refused"]["batches"])
        assert 0 < refused[0] == refused[1] == refused[2], "halved until they fit, and no more"
        assert persist.stats.dropped == {}


CALLS = st.tuples(st.just("task"), st.integers(0, 6), st.sampled_from(["pending", "failed"]))
ANSWERS = st.tuples(
    st.just("answer"),
    st.sampled_from([200, 400, 401, 413, 422, 500, 503]),
    st.sampled_from([[], ["tasks"], ["tasks", 0], ["tasks", 9], ["tasks", 1, "status"]]),
)
FLUSHES = st.tuples(st.just("flush"), st.none(), st.none())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(CALLS, CALLS, ANSWERS, FLUSHES), max_size=40), st.integers(1, 6), st.integers(1, 3))
def test_whatever_is_answered_each_call_is_counted_once(steps: list[Any], max_rows: int, max_batch: int) -> None:
    recorder = Recorder()
    given: list[Any] = []
    persist = Client(
        transport=recorder,
        interval=60,
        max_rows=max_rows,
        max_batch=max_batch,
        on_drop=lambda rows, _: given.extend(dict(row) for row in rows),
    )
    calls = 0
    last: dict[str, int] = {}
    for what, *arguments in steps:
        if what == "task":
            number, status = arguments
            calls += 1
            last[str(number)] = calls
            persist.task(**task(str(number), status=status, row_index=calls))
        elif what == "answer":
            status, loc = arguments
            recorder.fail(status, errors=[{"loc": loc, "msg": "no"}])
        else:
            persist.flush()
        assert persist.stats.calls == calls
    persist.close()
    stats = persist.stats
    assert (stats.queued, stats.sent + stats.merged + sum(stats.dropped.values())) == (0, calls)
    assert len(given) == sum(stats.dropped.values())
    assert "bug" not in stats.dropped
    # What was called last for a key is there, or on_drop got it.
    lost = {(row["task_id"], row["row_index"]) for row in given}
    there = {(key, row["row_index"]) for (_, key), row in recorder.tasks.items()}
    assert set(last.items()) <= lost | there
