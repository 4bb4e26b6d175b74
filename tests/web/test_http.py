"""The service as an HTTP server: requests sent ahead, in pieces, or half; clients that go away or stay silent."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import itertools
import json
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tornado.httpserver import HTTPServer

from tests.rig import Rig, answers, wait_until
from tests.rows import body, task
from tests.web.conftest import LIMIT, Connect
from tornado_persist.web.app import PREFIX, Api
from tornado_persist.web.base import Handler
from tornado_persist.web.server import MAX_HEADER_BYTES, MAX_HEADER_LINES

pytestmark = pytest.mark.gen_test

BATCH = f"{PREFIX}/tasks/batch"


def post(path: str, content: bytes, *more: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, *more, "", ""]).encode() + content


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def chunked(path: str, content: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


#: Requests of every kind, with the status that each gets.
MIXED = [
    (post(BATCH, body("task", task("a"))), 200),
    (get("/health/live"), 200),
    (post(BATCH, body("task", task("b"), task("c"))), 200),
    (post(BATCH, b"{"), 400),
    (post(BATCH, body("task", task("d", status="no"))), 422),
    (chunked(BATCH, body("task", task("e"))), 200),
    (post("/nowhere", b"x" * 1000), 404),
    (post(f"{BATCH}?by=me", body("task", task("f"))), 200),
    (post(BATCH, b" " * (LIMIT + 1)), 413),
    (post(BATCH, body("task", task("g"))), 200),
]


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None
    return int(head.split(b" ", 2)[1]), json.loads(await reader.readexactly(int(length[1])))


async def send(writer: asyncio.StreamWriter, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("size", [97, 500, 4099, 1 << 20])
async def test_requests_sent_ahead_are_answered_in_order_however_they_are_cut(
    size: int, connect: Connect, parts: Rig
) -> None:
    sent = b"".join(request for request, _ in MIXED)
    async with connect() as (reader, writer), asyncio.timeout(20):
        sending = asyncio.ensure_future(send(writer, [sent[at : at + size] for at in range(0, len(sent), size)]))
        received = [await answer(reader) for _ in MIXED]
        await sending
    assert [status for status, _ in received] == [status for _, status in MIXED]
    assert [content["count"] for status, content in received if status == 200 and "count" in content] == [1, 2, 1, 1, 1]
    assert parts.metrics.totals.accepted["task"] == 6
    assert [row["task_id"] for row in parts.buffer.take().tasks] == ["a", "b", "c", "e", "f", "g"]


async def test_what_comes_while_a_batch_is_refused_is_not_mixed_up(
    connect: Connect, app: Api, go: asyncio.Event
) -> None:
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(post(BATCH, b"{") + b"GET /health")
        while not app.requests:
            await asyncio.sleep(0.001)
        writer.write(b"/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + post(BATCH, body("task", task("a"))))
        await asyncio.sleep(0.05)
        go.set()
        assert [(await answer(reader))[0] for _ in range(3)] == [400, 200, 200]


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Handler]:
    """All handlers made during the test that are still in memory."""
    alive: weakref.WeakSet[Handler] = weakref.WeakSet()
    initialize = Handler.initialize

    def noted(handler: Handler) -> None:
        alive.add(handler)
        initialize(handler)

    monkeypatch.setattr(Handler, "initialize", noted)
    return alive


def half_requests() -> Iterator[Any]:
    """Requests whose last bytes are missing."""
    content = body("task", task("a"))
    packed = gzip.compress(content)
    yield pytest.param(post(BATCH, content)[:-3], id="plain")
    yield pytest.param(chunked(BATCH, content)[:-9], id="chunked")
    yield pytest.param(post(BATCH, packed, "Content-Encoding: gzip")[:-3], id="gzip")
    yield pytest.param(post(BATCH, b" " * (LIMIT + 9))[:-3], id="too large")
    yield pytest.param(post(f"{PREFIX}/flush", b"xyz")[:-3], id="flush")


@pytest.mark.parametrize("request_", list(half_requests()))
async def test_a_client_that_goes_away_within_a_body_leaves_nothing_behind(
    request_: bytes, connect: Connect, app: Api, parts: Rig, handlers: weakref.WeakSet[Handler]
) -> None:
    for _ in range(3):
        async with connect() as (_, writer):
            writer.write(request_)
            await wait_until(lambda: bool(app.requests))
        await wait_until(lambda: not app.requests)
    await wait_until(lambda: gc.collect() >= 0 and not handlers)
    assert parts.metrics.totals.accepted["task"] == 0


async def test_a_client_that_goes_before_the_answer_leaves_its_batch_taken_and_counted(
    connect: Connect, app: Api, parts: Rig, go: asyncio.Event, handlers: weakref.WeakSet[Handler]
) -> None:
    def counted() -> dict[tuple[str, int], int]:
        return {(method, status): count for (_, method, status), count in answers(parts.metrics).items()}

    expected: dict[tuple[str, int], int] = {}
    for content, status in ((body("task", task("a")), 200), (b"{", 400)):
        go.clear()
        async with connect() as (_, writer):
            writer.write(post(BATCH, content))
            await wait_until(lambda: bool(app.requests))
        await wait_until(lambda: not app.requests)
        go.set()
        expected["POST", status] = 1
        await wait_until(lambda: counted() == expected)
    assert parts.metrics.totals.accepted["task"] == 1
    await wait_until(lambda: gc.collect() >= 0 and not handlers)


async def test_while_a_batch_is_accepted_the_shutdown_waits_for_it(
    connect: Connect, app: Api, go: asyncio.Event
) -> None:
    async with connect() as (reader, writer):
        writer.write(post(BATCH, body("task", task("a"))))
        await wait_until(lambda: bool(app.requests))
        ending = asyncio.ensure_future(app.finish_requests(10))
        await asyncio.sleep(0.05)
        assert not ending.done()
        go.set()
        assert (await answer(reader))[0] == 200
        await ending


@pytest.mark.parametrize("target", ["http://h", "HTTP://other.example:81", "https://[::1]:8001", "http://h/"])
async def test_a_target_may_be_a_whole_url(target: str, connect: Connect, parts: Rig) -> None:
    async with connect() as (reader, writer):
        for path, status in ((BATCH, 200), (f"{BATCH}/?x=y", 200), ("/nowhere", 404)):
            writer.write(post(target + path, body("task", task("a"))))
            assert (await answer(reader))[0] == status
        writer.write(get(target))
        assert (await answer(reader))[1]["service"] == "Persistence Service"
    assert parts.metrics.totals.accepted["task"] == 2


@pytest.mark.parametrize(
    "target", ["http://", "http://a b/", "ftp://h/", "h", "*", "http:///health", "http://h@x/health"]
)
async def test_another_target_leads_nowhere(target: str, connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(get(target))
        assert int((await reader.readline()).split()[1]) in (400, 404)


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE"])
async def test_a_client_that_asks_before_it_sends_the_body_is_told_to_go_on(
    expect: str, connect: Connect, parts: Rig
) -> None:
    content = body("task", task("a"))
    request = post(BATCH, content, f"Expect: {expect}")
    async with connect() as (reader, writer):
        writer.write(request[: -len(content)])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(content)
        assert (await answer(reader))[0] == 200
    assert parts.metrics.totals.accepted["task"] == 1


@pytest.mark.parametrize("length", [str(LIMIT * 100), "9" * 18, "9" * 30, "9" * 5000], ids=len)
async def test_a_body_that_says_it_is_far_too_large_is_refused_before_it_comes(length: str, connect: Connect) -> None:
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(f"POST {BATCH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        status, content = await answer(reader)
        assert (status, content["status"]) == (413, "rejected")
        assert await reader.read() == b""


async def test_a_body_without_end_gets_413_and_the_connection_is_closed(connect: Connect, app: Api) -> None:
    head = f"POST {BATCH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (LIMIT, b" " * LIMIT)
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(head.encode())
        answering = asyncio.ensure_future(answer(reader))
        while not answering.done():
            writer.write(chunk)
            await asyncio.sleep(0.001)
        assert (await answering)[0] == 413
    await wait_until(lambda: not app.requests)


async def test_after_an_answer_before_the_end_of_a_request_nothing_is_taken(connect: Connect, parts: Rig) -> None:
    batch = post(BATCH, body("task", task("a")))
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(batch.replace(b"POST", b"MOVE", 1) + batch + get("/health/live"))
        assert (await answer(reader))[0] == 405
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    await asyncio.sleep(0.05)
    assert parts.metrics.totals.accepted["task"] == 0


async def test_a_head_that_is_too_large_is_answered_in_json_and_counted(connect: Connect, parts: Rig) -> None:
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * (MAX_HEADER_BYTES // 5))
        assert await answer(reader) == (400, {"detail": "The request is not valid HTTP"})
        assert await reader.read() == b""
    await wait_until(lambda: parts.metrics.refusals.by_reason["none", 400, "malformed"] == 1)


async def test_a_head_may_have_so_many_lines(connect: Connect) -> None:
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(get("/health/live")[:-2] + b"A: b\r\n" * (MAX_HEADER_LINES - 3) + b"\r\n")
        assert (await answer(reader))[0] == 200


async def test_many_silent_connections_leave_room_for_a_batch(connect: Connect, parts: Rig) -> None:
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
        for _ in range(200):
            _, writer = await stack.enter_async_context(connect())
            writer.write(post(BATCH, body("task", task("a")))[:-3])
        reader, writer = await stack.enter_async_context(connect())
        writer.write(post(BATCH, body("task", task("b"))))
        assert (await answer(reader))[0] == 200
    assert parts.metrics.totals.accepted["task"] == 1


async def test_after_stop_no_connection_is_accepted_and_open_ones_are_served(
    connect: Connect, http_server: HTTPServer
) -> None:
    async with connect() as (reader, writer):
        for name in ("a", "b"):
            writer.write(post(BATCH, body("task", task(name))))
            assert (await answer(reader))[0] == 200
            http_server.stop()
            with pytest.raises(ConnectionRefusedError):
                async with connect():
                    pass
        await http_server.close_all_connections()
        assert await reader.read() == b""


BODY_HEAD = f"POST {BATCH} HTTP/1.1\r\nHost: localhost\r\n".encode()


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", "Missing Host header"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nA: \0secret\r\n\r\n", "Invalid header value"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nsecret\r\n\r\n", "no colon in header line"),
        (b"GET / HTTP/1.1\nHost: localhost\n" + b"A:\n" * (MAX_HEADER_LINES - 2) + b"\n", "Too many header lines"),
        (b"nonsense\r\n\r\n", "Malformed HTTP request line"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "Invalid Host header"),
        (BODY_HEAD + b"Content-Length: secret\r\n\r\n", "Only integer Content-Length is allowed"),
        (BODY_HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "Message with both"),
        (BODY_HEAD + b"Transfer-Encoding: secret\r\n\r\n", "Unsupported Transfer-Encoding"),
        (BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "invalid chunk size"),
        (BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;ext=1\r\n", "invalid chunk size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_not_http_gets_400_in_json_is_counted_and_the_connection_ends(
    request_: bytes, problem: str, connect: Connect, parts: Rig, app: Api
) -> None:
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(request_ + b"x" * 100_000)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Content-Type: application/json; charset=utf-8\r\n" in head
        assert b"Connection: close\r\n" in head
        id = re.search(rb"X-Request-ID: (\S+)", head)
        assert json.loads(await reader.read()) == {"detail": "The request is not valid HTTP"}
    refusals = parts.metrics.refusals
    assert refusals.by_reason["none", 400, "malformed"] == refusals.batches == 1
    assert refusals.last is not None
    assert id is not None
    assert (refusals.last.client, refusals.last.request_id) == ("127.0.0.1", id[1].decode())
    assert refusals.last.msg.startswith(problem)
    assert "secret" not in str(refusals.last)
    assert not app.requests
    assert app.inflight_bytes == 0


async def test_the_connection_is_closed_when_the_client_asks_for_that(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(post(BATCH, body("task", task("a")), "Connection: close"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("request_", [get("/health/live"), post(BATCH, body("task")), post(BATCH, b"{")])
async def test_requests_sent_ahead_leave_the_event_loop_to_others_between_them(
    request_: bytes, connect: Connect, parts: Rig
) -> None:
    many = 200

    def answered() -> int:
        return sum(answers(parts.metrics).values())

    async with connect() as (_, writer), asyncio.timeout(20):
        writer.write(request_ * many)
        steps = [0]
        while steps[-1] < many:
            await asyncio.sleep(0)
            steps.append(answered())
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 2
