"""Refused batches are seen: in /stats, /history, /metrics and the log."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.process import Persistd, wait_until
from tests.rows import body, task
from tornado_persist.telemetry.refusals import EVERY, LINES_A_SECOND

PREFIX = "/api/v1/persistence"
TASKS, SESSIONS = f"{PREFIX}/tasks/batch", f"{PREFIX}/sessions/batch"
SECRET = "not for the log"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    directory = tmp_path_factory.mktemp("service")
    with Persistd(directory, "[buffer]\nflush_interval = 3600", server="max_body_bytes = 4096") as service:
        yield service


def counted(service: Persistd) -> dict[tuple[str, str, str], int]:
    """Refused batches by kind, status and reason."""
    return {
        (sample.labels["kind"], sample.labels["status"], sample.labels["reason"]): int(sample.value)
        for family in text_string_to_metric_families(service.http.get("/metrics").text)
        for sample in family.samples
        if sample.name == "persistd_batches_refused_total"
    }


def rows_counted(service: Persistd) -> int:
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(service.http.get("/metrics").text)
        for sample in family.samples
        if sample.name == "persistd_rows_refused_total"
    )


WRONG = body("task", task("a"), task("b", status=SECRET), task("c"))

#: A request, how it is counted, and its rows.
REFUSED: list[tuple[str, str, dict[str, Any], tuple[str, int, str], int]] = [
    ("POST", TASKS, {"content": WRONG}, ("task", 422, "invalid"), 3),
    ("POST", SESSIONS, {"content": b'{"sessions": [{}]}'}, ("session", 422, "invalid"), 1),
    ("POST", TASKS, {"content": b'{"tasks": 5}'}, ("task", 422, "invalid"), 0),
    ("POST", TASKS, {"content": b'{"tasks": [1]}'}, ("task", 422, "invalid"), 0),
    ("POST", TASKS, {"content": b'{"tasks": [' + SECRET.encode()}, ("task", 400, "not_json"), 0),
    ("POST", TASKS, {"content": b"no", "headers": {"Content-Encoding": "gzip"}}, ("task", 400, "compression"), 0),
    ("POST", TASKS, {"content": b" " * 5000}, ("task", 413, "too_large"), 0),
    ("POST", TASKS, {"content": b"{}", "headers": {"Content-Type": "text/plain"}}, ("task", 415, "content_type"), 0),
    ("PUT", SESSIONS, {"content": b"{}"}, ("session", 405, "method"), 0),
    ("GET", f"{PREFIX}/flush", {}, ("none", 405, "method"), 0),
    ("POST", f"{PREFIX}/task/batch", {"content": WRONG}, ("none", 404, "path"), 0),
    ("POST", "/tasks/batch", {"content": WRONG}, ("none", 404, "path"), 0),
]


@pytest.mark.parametrize(("method", "path", "options", "key", "rows"), REFUSED)
def test_a_refused_batch_is_counted_and_named(
    service: Persistd, method: str, path: str, options: dict[str, Any], key: tuple[str, int, str], rows: int
) -> None:
    kind, status, reason = key
    before, stats_before, rows_before = counted(service), service.stats()["refused"], rows_counted(service)
    assert (kind, str(status), reason) in before, "the series is there before the first of them"
    headers = {"User-Agent": "a test/1", "X-Request-ID": "the-id", **options.pop("headers", {})}
    answer = service.http.request(method, path, headers=headers, **options)
    assert answer.status_code == status
    after = counted(service)
    assert {name: count - before[name] for name, count in after.items() if count != before[name]} == {
        (kind, str(status), reason): 1
    }
    assert rows_counted(service) - rows_before == rows
    stats = service.stats()["refused"]
    assert stats["batches"] == stats_before["batches"] + 1 == sum(after.values())
    assert stats["rows"] == stats_before["rows"] + rows
    last = stats["last"]
    assert last.pop("at")
    assert last == {
        "kind": kind,
        "status": status,
        "reason": reason,
        "detail": answer.json()["detail"][:200],
        "client": "127.0.0.1",
        "token": "",
        "user_agent": "a test/1",
        "request_id": "the-id",
    }
    history = service.http.get(f"{PREFIX}/history").json()
    assert history["refused"] == service.stats()["refused"]
    assert any(i["what"] == "refused" and f"{status} ({reason})" in i["message"] for i in history["incidents"])


@pytest.mark.parametrize("path", ["/nowhere", "/favicon.ico", "/dashboard/x"])
def test_what_is_no_batch_is_not_counted(service: Persistd, path: str) -> None:
    before = service.stats()["refused"]
    assert service.http.get(path).status_code == 404
    assert service.post("task", task("good")).status_code == 200
    assert service.stats()["refused"] == before


def test_a_line_names_the_first_error_and_the_client_and_no_content(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        agent = "a client/1.0 \u00e9".encode("latin-1") + b"x" * 5000
        service.http.post(TASKS, content=WRONG, headers={b"User-Agent": agent, b"X-Request-ID": b"w"})
        service.http.post(TASKS, content=b'{"tasks": [' + SECRET.encode())
        service.wait_for_log("batch refused", 2)
        line, other = service.log("batch refused")
        assert line["level"] == "warning"
        assert (line["kind"], line["status"], line["loc"], line["rows"]) == ("task", 422, "tasks.*.status", 3)
        assert "processing" in line["msg"]
        assert (line["client"], line["request_id"]) == ("127.0.0.1", "w")
        assert line["user_agent"].startswith("a client/1.0 \u00e9")
        assert len(line["user_agent"]) < 300
        assert (other["status"], other["reason"]) == (400, "not_json")
        shown = [service.http.get(f"{PREFIX}/{page}").text for page in ("stats", "history")]
        shown += [service.http.get("/metrics").text, service.http.get("/health").text, service.log_text()]
        assert [SECRET in text for text in shown] == [False] * 5


@pytest.mark.alone
def test_a_flood_of_refusals_leaves_few_lines_and_good_batches_are_answered(tmp_path: Path) -> None:
    many, batches = (
        3000,
        [body("task", task("a", **{field: 1.5j.imag})) for field in ("task_id", "status", "row_index")],
    )
    with Persistd(tmp_path) as service:
        requests = [
            f"POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
            for content in batches
        ]
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as flood:
            flood.settimeout(30)
            slowest, received = 0.0, b""
            for _ in range(many // 300):
                flood.sendall(b"".join(requests) * 100)
                at = time.monotonic()
                assert service.post("task", task("good")).status_code == 200
                slowest = max(slowest, time.monotonic() - at)
                while received.count(b"HTTP/1.1 422") < 300:
                    more = flood.recv(1 << 20)
                    assert more, "the connection was closed"
                    received += more
                received = b""
        seconds = time.monotonic() - began
        assert service.stats()["refused"]["batches"] == many
        lines = service.log("batch refused")
        assert {line["loc"] for line in lines} == {"tasks.*.task_id", "tasks.*.status", "tasks.*.row_index"}
        assert len(lines) <= 3 * (1 + seconds // EVERY)
        assert len(lines) <= LINES_A_SECOND * (1 + seconds)
        assert slowest < 1


def test_a_refused_batch_is_in_the_samples_of_the_history(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        service.http.post(TASKS, content=gzip.compress(b"x"))
        service.http.post(TASKS, content=json.dumps({"tasks": [{}]}))

        def samples() -> list[int]:
            found: list[int] = service.http.get(f"{PREFIX}/history").json()["samples"]["refused"]
            return found

        wait_until(lambda: sum(samples()) == 2, "the sample")


def test_what_a_journal_without_room_refuses_is_counted_and_named(tmp_path: Path) -> None:
    hold = tmp_path / "elsewhere"
    hold.touch()  # the database's directory is a file
    limits = "[journal]\nsegment_bytes = 100_000\nmax_bytes = 300_000\n"
    with Persistd(tmp_path, f"{limits}[sinks.sqlite]\npath = '{hold}/persist.db'\n") as service:
        row = task("a", source_text=SECRET * 1000)
        wait_until(lambda: service.post("task", row).status_code == 503, "a full journal")
        assert counted(service)["task", "503", "not_accepting"] == service.stats()["refused"]["batches"] == 1
        last = service.stats()["refused"]["last"]
        assert (last["status"], last["reason"], last["client"]) == (503, "not_accepting", "127.0.0.1")
        line = service.wait_for_log("batch refused")
        assert (line["status"], line["reason"], "full" in line["msg"]) == (503, "not_accepting", True)
        history = service.http.get(f"{PREFIX}/history")
        assert "refused with 503 (not_accepting)" in history.text
        assert SECRET not in history.text + service.log_text() + service.http.get("/metrics").text
