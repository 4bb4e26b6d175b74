"""The HTTP interface as api.md has it, over a real socket, with a sink in memory behind."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from tests.rows import body, session, task
from tests.web.conftest import LIMIT
from tornado_persist import __version__
from tornado_persist.records.models import PLURALS, Kind
from tornado_persist.testing import FlakySink
from tornado_persist.web.app import PREFIX, Api

ENDPOINTS = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", f"{PREFIX}/stats"),
    ("POST", f"{PREFIX}/sessions/batch"),
    ("POST", f"{PREFIX}/tasks/batch"),
    ("POST", f"{PREFIX}/flush"),
]

Fetch = Callable[..., Awaitable[HTTPResponse]]


@pytest.fixture
def fetch(http_client: AsyncHTTPClient, base_url: str) -> Fetch:
    async def fetch(method: str, path: str, body: bytes | None = None, **options: Any) -> HTTPResponse:
        if method == "POST" and body is None:
            body = b""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return await http_client.fetch(
            base_url + path,
            method=method,
            body=body,
            headers={name: value for name, value in headers.items() if value is not None},
            raise_error=False,
            allow_nonstandard_methods=True,
            **options,
        )

    return fetch


def answer(response: HTTPResponse, code: int = 200) -> dict[str, Any]:
    """The response's JSON; every answer of this API is a JSON object."""
    assert response.code == code, response.body
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    parsed = json.loads(response.body)
    assert isinstance(parsed, dict)
    if code >= 400 and "buffer" not in parsed:
        assert isinstance(parsed["detail"], str)
        assert parsed["detail"]
    return parsed


def refusal(response: HTTPResponse, code: int) -> dict[str, Any]:
    """The answer to a refused batch."""
    parsed = answer(response, code)
    assert parsed.keys() == {"detail", "status", "count", "errors"}
    assert (parsed["status"], parsed["count"]) == ("rejected", 0)
    return parsed


def time(text: str) -> datetime:
    assert text.endswith("+00:00")
    return datetime.fromisoformat(text)


async def counts(fetch: Fetch) -> tuple[int, int]:
    buffer = answer(await fetch("GET", f"{PREFIX}/stats"))["buffer"]
    return buffer["sessions_count"], buffer["tasks_count"]


@pytest.mark.gen_test
async def test_the_root_names_the_service_and_its_version(fetch: Fetch) -> None:
    assert answer(await fetch("GET", "/")) == {
        "service": "Persistence Service",
        "status": "running",
        "version": __version__,
    }
    assert __version__ == "1.0.0"


@pytest.mark.gen_test
async def test_health_has_every_documented_field(fetch: Fetch) -> None:
    await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()))
    health = answer(await fetch("GET", "/health"))
    assert {name: health[name] for name in ("status", "database", "buffer")} == {
        "status": "healthy",
        "database": "healthy",
        "buffer": {"sessions_count": 0, "tasks_count": 1, "last_flush": None},
    }
    assert (health["reason"], health["accepting"], health["rejected_open_rows"]) == ("", True, 0)
    assert (health["sink"]["name"], health["sink"]["up"], health["sink"]["error"]) == ("flaky", True, "")
    assert (health["waiting"]["rows"], health["waiting"]["journal_full_in_seconds"]) == (1, None)
    assert health["disk_free_bytes"] > 0
    assert (health["instance"]["version"], health["instance"]["pid"]) == (__version__, os.getpid())
    await fetch("POST", f"{PREFIX}/flush")
    buffer = answer(await fetch("GET", "/health"))["buffer"]
    assert datetime.now(UTC) - time(buffer["last_flush"]) < timedelta(minutes=1)


@pytest.mark.gen_test
async def test_with_the_database_down_health_is_503_with_the_same_body_and_ready_stays_ready(
    fetch: Fetch, sink: FlakySink
) -> None:
    sink.down = True
    health = answer(await fetch("GET", "/health"), 503)
    assert {name: health[name] for name in ("status", "database", "buffer", "reason", "accepting")} == {
        "status": "unhealthy",
        "database": "unhealthy",
        "buffer": {"sessions_count": 0, "tasks_count": 0, "last_flush": None},
        "reason": "The sink flaky is down: the flaky sink is down",
        "accepting": True,
    }
    assert answer(await fetch("GET", "/health/ready")) == {"status": "ready"}
    assert answer(await fetch("GET", "/health/live")) == {"status": "alive"}


@pytest.mark.parametrize("kind", list(PLURALS))
@pytest.mark.gen_test
async def test_a_batch_is_accepted_with_count_and_time(fetch: Fetch, kind: Kind) -> None:
    rows = [session("a"), session("b")] if kind == "session" else [task("a"), task("b")]
    accepted = answer(await fetch("POST", f"{PREFIX}/{PLURALS[kind]}/batch", body(kind, *rows)))
    assert (accepted["status"], accepted["count"]) == ("accepted", 2)
    assert datetime.now(UTC) - time(accepted["timestamp"]) < timedelta(minutes=1)
    assert await counts(fetch) == ((2, 0) if kind == "session" else (0, 2))


@pytest.mark.gen_test
async def test_the_tour_of_the_specification(fetch: Fetch, sink: FlakySink) -> None:
    row = task("test_001", session_id="test_session", batch_id="test_batch", source_text="Test")
    assert answer(await fetch("POST", f"{PREFIX}/tasks/batch", body("task", row)))["count"] == 1
    flushed = answer(await fetch("POST", f"{PREFIX}/flush"))
    assert flushed.pop("duration_ms") >= 0
    assert flushed == {"status": "flushed", "sessions_written": 0, "tasks_written": 1, "rows_rejected": 0}
    assert list(sink.stored["task"]) == [("test_session", "test_001")]


@pytest.mark.gen_test
async def test_a_flush_of_nothing_is_flushed_with_zeros(fetch: Fetch, sink: FlakySink) -> None:
    flushed = answer(await fetch("POST", f"{PREFIX}/flush"))
    assert (flushed["status"], flushed["sessions_written"], flushed["tasks_written"]) == ("flushed", 0, 0)
    assert answer(await fetch("GET", f"{PREFIX}/stats"))["performance"]["total_flush_count"] == 0


@pytest.mark.gen_test
async def test_a_flush_that_fails_is_503_with_all_its_fields(fetch: Fetch, sink: FlakySink) -> None:
    await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()))
    sink.down = True
    response = await fetch("POST", f"{PREFIX}/flush")
    failed = answer(response, 503)
    assert isinstance(failed.pop("duration_ms"), int)
    assert failed == {
        "status": "error",
        "sessions_written": 0,
        "tasks_written": 0,
        "rows_rejected": 0,
        "detail": "the flaky sink is down",
    }
    assert int(response.headers["Retry-After"]) > 0
    assert await counts(fetch) == (0, 1)


@pytest.mark.gen_test
async def test_a_flush_that_takes_too_long_is_503_and_goes_on(fetch: Fetch, app: Api, sink: FlakySink) -> None:
    await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()))
    app.flush_timeout = 0.5
    sink.hold()
    failed = answer(await fetch("POST", f"{PREFIX}/flush"), 503)
    assert (failed["status"], failed["tasks_written"]) == ("error", 0)
    sink.release()
    app.flush_timeout = 10
    assert answer(await fetch("POST", f"{PREFIX}/flush"))["status"] == "flushed"
    assert list(sink.stored["task"]) == [("s1", "t1")]


@pytest.mark.gen_test
async def test_stats_has_every_documented_field_with_its_type(fetch: Fetch) -> None:
    before = answer(await fetch("GET", f"{PREFIX}/stats"))
    assert before["flush_info"]["last_flush_time"] is None
    await fetch("POST", f"{PREFIX}/sessions/batch", body("session", session("a")))
    await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task("a"), task("b"), task("b")))
    waiting = answer(await fetch("GET", f"{PREFIX}/stats"))
    assert waiting["buffer"] == {
        "sessions_count": 1,
        "tasks_count": 2,
        "total_count": 3,
        "in_memory": 3,
        "max_rows": 100_000,
        "memory_bytes": waiting["journal"]["bytes"],
        "memory_max_bytes": 1 << 28,
        "capacity": 1000,
        "usage_percent": 0.3,
    }
    await fetch("POST", f"{PREFIX}/flush")
    stats = answer(await fetch("GET", f"{PREFIX}/stats"))
    assert stats["buffer"]["total_count"] == 0
    info = stats["flush_info"]
    assert info.keys() == {"last_flush_time", "next_flush_time", "flush_count_today", "average_flush_duration_ms"}
    assert time(info["next_flush_time"]) - time(info["last_flush_time"]) == timedelta(seconds=30)
    assert info["flush_count_today"] == 1
    assert isinstance(info["average_flush_duration_ms"], int)
    assert isinstance(stats["performance"].pop("uptime_seconds"), int)
    assert stats["performance"] == {
        "total_sessions_written": 1,
        "total_tasks_written": 2,
        "total_flush_count": 1,
        "average_batch_size": 3,
    }
    assert waiting["accounting"] == {"accepted": 4, "written": 0, "merged": 1, "rejected": 0, "pending": 3}
    assert stats["accounting"] == {"accepted": 4, "written": 3, "merged": 1, "rejected": 0, "pending": 0}
    assert (waiting["journal"]["records"], waiting["journal"]["sync"]) == (2, "always")
    assert waiting["journal"]["bytes"] > 0
    assert waiting["journal"]["oldest_seconds"] > 0
    assert stats["journal"] == {
        "bytes": 0,
        "max_bytes": 1 << 20,
        "full_in_seconds": None,
        "records": 0,
        "oldest_seconds": 0.0,
        "sync": "always",
    }
    assert stats["health"].pop("disk_free_bytes") > 0
    assert stats["health"] == {
        "instance": "rig",
        "status": "healthy",
        "reason": "",
        "sink": "flaky",
        "sink_address": "",
        "rejected_open_rows": 0,
    }


@pytest.mark.gen_test
async def test_rows_of_a_flush_in_progress_still_count(fetch: Fetch, app: Api, sink: FlakySink) -> None:
    app.flush_timeout = 0.1
    sink.hold()
    await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()))
    await fetch("POST", f"{PREFIX}/flush")
    assert await counts(fetch) == (0, 1)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"tasks"', b"\xff"])
@pytest.mark.gen_test
async def test_what_is_no_json_object_is_400(fetch: Fetch, raw: bytes) -> None:
    parsed = refusal(await fetch("POST", f"{PREFIX}/tasks/batch", raw), 400)
    assert "expected a JSON object" in parsed["detail"]
    assert parsed["errors"] == []


@pytest.mark.parametrize(
    ("raw", "loc"),
    [
        (b"{}", ["tasks"]),
        (b'{"tasks": 5}', ["tasks"]),
        (body("task", task("a"), task("b", status="x")), ["tasks", 1, "status"]),
        (body("task", task(" a")), ["tasks", 0, "task_id"]),
        (body("task", task(source_text="a\0b")), ["tasks", 0, "source_text"]),
        (body("task", task(confidence=float("nan"))), ["tasks", 0, "confidence"]),
        (body("task", *[task(f"t{n}") for n in range(101)]), ["tasks"]),
    ],
)
@pytest.mark.gen_test
async def test_wrong_rows_are_422_by_row_and_field_and_nothing_is_taken(
    fetch: Fetch, raw: bytes, loc: list[Any]
) -> None:
    parsed = refusal(await fetch("POST", f"{PREFIX}/tasks/batch", raw), 422)
    assert parsed["errors"][0]["loc"] == loc
    assert parsed["errors"][0]["msg"]
    assert await counts(fetch) == (0, 0)


@pytest.mark.gen_test
async def test_an_empty_batch_is_accepted_with_count_0(fetch: Fetch) -> None:
    assert answer(await fetch("POST", f"{PREFIX}/tasks/batch", b'{"tasks": []}'))["count"] == 0


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/problem+json",
        "APPLICATION/Vnd.X+JSON ;Charset=utf8",
        'application/json; charset="UTF-8"',
        'application/json; charset="u\\tf-8"; version=1',
        "application/json;;charset=us-ascii;",
        'application/json; a=";charset=x"',
        "application/json; charset",
    ],
)
@pytest.mark.gen_test
async def test_json_is_taken_by_any_of_its_names_and_without_one(fetch: Fetch, content_type: str | None) -> None:
    response = await fetch(
        "POST", f"{PREFIX}/tasks/batch", body("task", task()), headers={"Content-Type": content_type}
    )
    assert answer(response)["count"] == 1


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Content-Type": "text/plain"}, "not text/plain"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "not application/x-www-form-urlencoded"),
        ({"Content-Type": "Text/X; charset=utf-8"}, "not Text/X; charset=utf-8"),
        ({"Content-Type": "application/json; charset=UTF-16"}, "not in UTF-16"),
        ({"Content-Type": 'application/json; charset="latin 1"'}, "not in latin 1"),
        ({"Content-Type": "application/json, text/plain"}, "not application/json, text/plain"),
        ({"Content-Type": "application/jsonx"}, "not application/jsonx"),
        ({"Content-Type": "nonsense"}, "not nonsense"),
        ({"Content-Type": "application/json" + ";" * 60_000}, "longer than 256 characters"),
        ({"Content-Encoding": "br"}, "not with br"),
        ({"Content-Encoding": "gzip, Gzip"}, "not with gzip, Gzip"),
        ({"Content-Encoding": "x" * 50_000}, "not with " + "x" * 200),
    ],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.gen_test
async def test_what_is_not_json_by_its_headers_is_415_and_told_as_it_was_sent(
    fetch: Fetch, headers: dict[str, str], told: str
) -> None:
    parsed = refusal(await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()), headers=headers), 415)
    assert told in parsed["detail"]
    assert len(parsed["detail"]) < 300
    assert await counts(fetch) == (0, 0)


@pytest.mark.gen_test
async def test_gzip_bodies_are_taken_of_several_members_too(fetch: Fetch) -> None:
    raw = body("task", task("a"), task("b"))
    for data in (gzip.compress(raw), gzip.compress(raw[:50]) + gzip.compress(raw[50:])):
        response = await fetch("POST", f"{PREFIX}/tasks/batch", data, headers={"Content-Encoding": "gzip"})
        assert answer(response)["count"] == 2


@pytest.mark.parametrize(
    "data",
    [b"not gzip", gzip.compress(b'{"tasks": []}')[:-9], gzip.compress(b"{}") + b"x"],
    ids=["none", "torn", "followed"],  # named: the bytes hold the time at which they were made
)
@pytest.mark.gen_test
async def test_broken_gzip_is_400(fetch: Fetch, data: bytes) -> None:
    parsed = refusal(await fetch("POST", f"{PREFIX}/tasks/batch", data, headers={"Content-Encoding": "gzip"}), 400)
    assert "gzip" in parsed["detail"]


@pytest.mark.gen_test
async def test_a_body_over_the_limit_is_413_as_sent_and_decompressed(fetch: Fetch) -> None:
    big = body("task", task(source_text="x" * LIMIT))
    for data, encoding in ((big, None), (gzip.compress(big), "gzip"), (big * 20, None)):
        response = await fetch("POST", f"{PREFIX}/tasks/batch", data, headers={"Content-Encoding": encoding})
        assert str(LIMIT) in refusal(response, 413)["detail"]
    assert await counts(fetch) == (0, 0)
    at_the_limit = body("task", task(source_text=""))
    at_the_limit = body("task", task(source_text="x" * (LIMIT - len(at_the_limit))))
    assert len(at_the_limit) == LIMIT
    assert answer(await fetch("POST", f"{PREFIX}/tasks/batch", at_the_limit))["count"] == 1


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("POST", f"{PREFIX}/nope"), ("PUT", "/health/x")])
@pytest.mark.gen_test
async def test_an_unknown_path_is_404(fetch: Fetch, method: str, path: str) -> None:
    answer(await fetch(method, path, b"" if method != "GET" else None), 404)


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.gen_test
async def test_a_wrong_method_is_405_with_allow(fetch: Fetch, method: str, path: str) -> None:
    for wrong in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - {method}:
        response = await fetch(wrong, path, b"" if wrong in ("POST", "PUT", "PATCH") else None)
        answer(response, 405)
        assert response.headers["Allow"] == ("GET, HEAD" if method == "GET" else "POST")


@pytest.mark.parametrize("path", [path for method, path in ENDPOINTS if method == "GET"])
@pytest.mark.gen_test
async def test_head_works_where_get_does(fetch: Fetch, path: str) -> None:
    response = await fetch("HEAD", path)
    assert (response.code, response.body) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


@pytest.mark.gen_test
async def test_a_bug_is_500_and_its_traceback_is_logged_and_not_shown(
    fetch: Fetch, app: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(app.ingest, "accept", broken)
    with capture_logs() as lines:
        for _ in range(20):  # a client that has found one does not fill the log with it
            response = await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()))
            refusal(response, 500)
            assert b"secret" not in response.body
            assert b"Traceback" not in response.body
    (line,) = (line for line in lines if line["event"] == "a bug in a request handler")
    assert line["exc_info"][0] is ZeroDivisionError


@pytest.mark.gen_test
async def test_while_shutting_down_batches_are_503_and_not_taken(fetch: Fetch, app: Api) -> None:
    await app.finish_requests(1)
    response = await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task()))
    assert "shutting down" in refusal(response, 503)["detail"]
    assert int(response.headers["Retry-After"]) > 0
    assert await counts(fetch) == (0, 0)
    response = await fetch("GET", "/health/ready")
    assert answer(response, 503)["status"] == "not ready"
    assert answer(await fetch("GET", "/health"), 503)["database"] == "healthy"
    assert answer(await fetch("GET", "/health/live"))["status"] == "alive"


@pytest.mark.gen_test
async def test_no_request_is_counted_as_at_work_after_its_answer(fetch: Fetch, app: Api) -> None:
    for method, path in [*ENDPOINTS, ("GET", "/nope"), ("DELETE", "/")]:
        await fetch(method, path)
    assert app.requests == set()


@pytest.mark.gen_test
async def test_with_the_journal_full_batches_are_503_and_ready_says_so_until_there_is_room(
    fetch: Fetch, sink: FlakySink
) -> None:
    sink.down = True
    big = body("task", task(source_text="x" * 60_000))
    responses = [await fetch("POST", f"{PREFIX}/tasks/batch", big) for _ in range(30)]
    accepted = [response for response in responses if response.code == 200]
    assert 10 < len(accepted) < 30
    assert "full" in refusal(responses[-1], 503)["detail"]
    assert int(responses[-1].headers["Retry-After"]) > 0
    assert "full" in answer(await fetch("GET", "/health/ready"), 503)["detail"]
    sink.down = False
    assert answer(await fetch("POST", f"{PREFIX}/flush"))["status"] == "flushed"
    assert answer(await fetch("GET", "/health/ready")) == {"status": "ready"}
    assert answer(await fetch("POST", f"{PREFIX}/tasks/batch", big))["count"] == 1


@pytest.mark.gen_test
async def test_a_refused_row_is_counted_in_the_answer_to_the_flush(fetch: Fetch, sink: FlakySink) -> None:
    sink.refused = {"bad"}
    await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task("good"), task("bad")))
    flushed = answer(await fetch("POST", f"{PREFIX}/flush"))
    assert (flushed["status"], flushed["tasks_written"], flushed["rows_rejected"]) == ("flushed", 1, 1)
    accounting = answer(await fetch("GET", f"{PREFIX}/stats"))["accounting"]
    assert accounting == {"accepted": 2, "written": 1, "merged": 0, "rejected": 1, "pending": 0}


@pytest.mark.parametrize(
    "path",
    [
        f"/{PREFIX}/tasks/batch",
        f"{PREFIX}/tasks/batch/",
        f"/{PREFIX}//tasks/batch//",
        f"{PREFIX}/tasks/batch/?a=//b/",
    ],
)
@pytest.mark.gen_test
async def test_slashes_too_many_do_not_lose_a_batch(fetch: Fetch, path: str) -> None:
    assert answer(await fetch("POST", path, body("task", task())))["count"] == 1
    assert answer(await fetch("GET", "//health/live/"))["status"] == "alive"
    assert answer(await fetch("GET", "//"))["status"] == "running"


@pytest.mark.parametrize("page", ["dashboard", "docs"])
@pytest.mark.gen_test
async def test_a_page_with_a_slash_leads_to_the_one_without(fetch: Fetch, page: str) -> None:
    response = await fetch("GET", f"/{page}/")
    assert response.code == 200
    assert response.effective_url.endswith(f"/{page}")


@pytest.mark.gen_test
async def test_dropped_fields_are_named_in_the_answer_and_counted(fetch: Fetch) -> None:
    before = (await fetch("GET", "/metrics")).body.decode()
    assert 'persistd_unknown_fields_total{kind="task"} 0.0' in before
    for _ in range(2):
        response = await fetch(
            "POST", f"{PREFIX}/tasks/batch", body("task", task("a", result=1), task("b", cost=2), task("c"))
        )
        assert json.loads(response.body)["ignored"] == ["cost", "result"]
    assert 'persistd_unknown_fields_total{kind="task"} 4.0' in (await fetch("GET", "/metrics")).body.decode()
    plain = json.loads((await fetch("POST", f"{PREFIX}/tasks/batch", body("task", task("a")))).body)
    assert "ignored" not in plain


@pytest.mark.gen_test
async def test_a_batch_is_accepted_later_than_the_answer_that_its_client_names(fetch: Fetch) -> None:
    path = f"{PREFIX}/tasks/batch"
    sent = body("task", task("t"))

    async def post(after: str) -> HTTPResponse:
        return await fetch("POST", path, sent, headers={"X-Persist-After": after})

    ahead = datetime.now(UTC) + timedelta(seconds=30)  # of an instance whose clock is ahead
    answer = await post(ahead.isoformat())
    assert datetime.fromisoformat(json.loads(answer.body)["timestamp"]) > ahead
    later = await fetch("POST", path, sent)
    assert json.loads(later.body)["timestamp"] > json.loads(answer.body)["timestamp"], "it never goes back"
    for after in ((datetime.now(UTC) + timedelta(hours=1)).isoformat(), "soon", "2025-13-01T00:00:00Z"):
        refused = await post(after)
        assert refused.code == 422
        assert "X-Persist-After" in json.loads(refused.body)["detail"]
    old = await post("2025-01-01T00:00:00Z")
    assert old.code == 200
    assert datetime.fromisoformat(json.loads(old.body)["timestamp"]) < ahead + timedelta(seconds=10)
