"""The short way of a batch: nobody can tell it from the long one, but by the time it takes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from tests.rig import Rig
from tests.rows import body, session, task
from tornado_persist.records.models import KINDS, PLURALS, Kind
from tornado_persist.web.app import PREFIX, Api
from tornado_persist.web.handlers import BatchHandler
from tornado_persist.web.server import Server

#: Content types with which a batch takes the one way and the other.
SHORT, LONG = "application/json", "application/json; charset=utf-8"
TASKS = f"{PREFIX}/tasks/batch"

Post = Callable[..., Awaitable[HTTPResponse]]


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that a handler has taken."""
    taken: list[str] = []
    post = BatchHandler.post

    async def noted(handler: BatchHandler) -> None:
        taken.append(handler.request.headers.get("Content-Type", ""))
        await post(handler)

    monkeypatch.setattr(BatchHandler, "post", noted)
    return taken


@pytest.fixture
def post(http_client: AsyncHTTPClient, base_url: str) -> Post:
    async def post(content: bytes, content_type: str = SHORT, path: str = TASKS, **headers: str) -> HTTPResponse:
        return await http_client.fetch(
            base_url + path,
            method="POST",
            body=content,
            # Tornado's client hangs up after each request, unless it is told not to.
            headers={"Content-Type": content_type, "Connection": "keep-alive", **headers},
            raise_error=False,
        )

    return post


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.gen_test
async def test_success_looks_the_same_either_way(kind: Kind, post: Post, long_ways: list[str], parts: Rig) -> None:
    path = f"{PREFIX}/{PLURALS[kind]}/batch"
    content = body(kind, session("s") if kind == "session" else task("t"))
    short = await post(content, SHORT, path, **{"X-Request-ID": "mine"})
    assert long_ways == []
    long = await post(content, LONG, path, **{"X-Request-ID": "mine"})
    assert long_ways == [LONG]
    for response in (short, long):
        assert response.code == 200
        assert json.loads(response.body).keys() == {"status", "count", "timestamp"}
        assert response.body.endswith(b"}\n")
    assert short.reason == long.reason
    assert sorted(short.headers) == sorted(long.headers)
    for name in set(short.headers) - {"Date"}:
        assert short.headers[name] == long.headers[name]
    assert parts.metrics.totals.accepted[kind] == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", body("task", task("t", status="no")), body("session")])
@pytest.mark.gen_test
async def test_what_is_refused_is_told_why_by_the_handler(content: bytes, post: Post, parts: Rig) -> None:
    short, long = await post(content, SHORT), await post(content, LONG)
    assert short.code == long.code >= 400
    assert short.body == long.body
    assert sum(parts.metrics.totals.accepted.values()) == 0


@pytest.mark.parametrize("content", [body("task", task("t")), b"{"])
@pytest.mark.gen_test
async def test_an_answer_is_counted_once(content: bytes, post: Post, parts: Rig) -> None:
    code = (await post(content)).code
    counted = [(handler, method, status, count) for handler, method, status, count in parts.metrics.requests.counts()]
    assert counted == [("TasksBatch", "POST", code, 1)]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (TASKS, {"Content-Type": SHORT, "Connection": "keep-alive", "Content-Encoding": "identity"}),
        (f"{TASKS}?from=here", {"Content-Type": SHORT, "Connection": "keep-alive"}),
        (TASKS, {"Content-Type": SHORT, "Connection": "close"}),
        (TASKS, {"Connection": "keep-alive"}),
    ],
)
@pytest.mark.gen_test
async def test_an_unusual_request_takes_the_long_way(
    path: str, headers: dict[str, str], http_client: AsyncHTTPClient, base_url: str, long_ways: list[str], app: Api
) -> None:
    content = body("task", task("t"))
    response = await http_client.fetch(
        base_url + path, method="POST", body=content, headers=headers, raise_error=False, allow_nonstandard_methods=True
    )
    assert len(long_ways) == 1
    assert response.code in (200, 415)
    assert app.requests == set()


@pytest.mark.gen_test
async def test_while_a_batch_is_taken_it_counts_as_a_request_at_work(post: Post, app: Api, go: asyncio.Event) -> None:
    answer = asyncio.ensure_future(post(body("task", task("t"))))
    await until(lambda: app.requests)
    ending = asyncio.ensure_future(app.finish_requests(10))
    await asyncio.sleep(0.05)
    assert not ending.done()
    go.set()
    assert (await answer).code == 200
    await ending


@pytest.mark.gen_test
async def test_a_client_that_goes_away_leaves_nothing_behind(
    app: Api, parts: Rig, http_server: Server, http_port: int
) -> None:
    content = body("task", task("t"))
    head = (
        f"POST {TASKS} HTTP/1.1\r\nHost: h\r\nContent-Type: {SHORT}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    )
    with socket.create_connection(("127.0.0.1", http_port)) as half:
        half.sendall(head + content[:20])
        await until(lambda: app.requests)
    await until(lambda: not app.requests)
    assert parts.metrics.totals.accepted["task"] == 0
    with socket.create_connection(("127.0.0.1", http_port)) as whole:
        whole.sendall(head + content)
    await until(lambda: parts.metrics.totals.accepted["task"] == 1)
    await until(lambda: not app.requests)


@pytest.mark.gen_test
async def test_a_length_of_thousands_of_digits_is_too_large(app: Api, http_server: Server, http_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(f"POST {TASKS} HTTP/1.1\r\nHost: h\r\nContent-Type: {SHORT}\r\n".encode())
    writer.write(b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await until(lambda: not app.requests)


@pytest.mark.gen_test
async def test_a_client_that_asks_before_it_sends_the_body_is_told_to_go_on(
    parts: Rig, http_server: Server, http_port: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    content = body("task", task("t"))
    head = f"POST {TASKS} HTTP/1.1\r\nHost: h\r\nContent-Type: {SHORT}\r\nExpect: 100-continue\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(content)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()
    assert parts.metrics.totals.accepted["task"] == 1
