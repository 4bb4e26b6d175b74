"""Requests on one connection are answered one by one, whichever way each goes, and however its bytes come in."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.rig import Rig
from tests.rows import body, task
from tests.web.conftest import LIMIT, Connect
from tornado_persist.web import intake
from tornado_persist.web.app import PREFIX, Api

pytestmark = pytest.mark.gen_test

BATCH = f"{PREFIX}/tasks/batch"


def post(path: str, content: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, *more, "", ""]).encode() + content


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def chunked(path: str, content: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


#: Requests of every way, with the status that each gets.
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
        answers = [await answer(reader) for _ in MIXED]
        await sending
    assert [status for status, _ in answers] == [status for _, status in MIXED]
    assert [content["count"] for status, content in answers if status == 200 and "count" in content] == [1, 2, 1, 1, 1]
    assert parts.metrics.totals.accepted["task"] == 6
    assert list(parts.buffer._waiting["task"]) == ["a", "b", "c", "e", "f", "g"]


async def test_what_comes_while_a_batch_is_refused_is_not_mixed_up(
    connect: Connect, app: Api, go: asyncio.Event
) -> None:
    async with connect() as (reader, writer), asyncio.timeout(20):
        writer.write(post(BATCH, b"{") + b"GET /health")
        while not app.requests:
            await asyncio.sleep(0.001)
        writer.write(b"/live HTTP/1.1\r\nHost: h\r\n\r\n" + post(BATCH, body("task", task("a"))))
        await asyncio.sleep(0.05)
        go.set()
        assert [(await answer(reader))[0] for _ in range(3)] == [400, 200, 200]


async def test_a_body_that_is_cut_off_takes_nothing(connect: Connect, app: Api, parts: Rig) -> None:
    async with connect() as (_, writer):
        writer.write(post(BATCH, body("task", task("a")))[:-3])
        while not app.requests:
            await asyncio.sleep(0.001)
    while app.requests:
        await asyncio.sleep(0.001)
    assert parts.metrics.totals.accepted["task"] == 0


async def test_a_client_that_goes_before_the_answer_leaves_its_batch_taken_and_counted(
    connect: Connect, app: Api, parts: Rig, go: asyncio.Event
) -> None:
    for content in (body("task", task("a")), b"{"):
        go.clear()
        async with connect() as (_, writer):
            writer.write(post(BATCH, content))
            while not app.requests:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        go.set()
        while app.requests:
            await asyncio.sleep(0.001)
    assert parts.metrics.totals.accepted["task"] == 1
    counted = {(method, status): count for _, method, status, count in parts.metrics.requests.counts()}
    assert counted == {("POST", 200): 1, ("POST", 400): 1}


async def test_a_body_that_is_larger_than_is_held_goes_the_long_way(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, app: Api
) -> None:
    monkeypatch.setattr(intake, "MOST", 10)
    monkeypatch.setattr(app.intake, "take", None)
    async with connect() as (reader, writer):
        writer.write(post(BATCH, body("task", task("a"))))
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize(
    "head", [b"POST / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n", b"nonsense\r\n\r\n"]
)
async def test_a_head_that_is_wrong_gets_400_and_the_connection_ends(head: bytes, connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(head)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


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
        return sum(count for *_, count in parts.metrics.requests.counts())

    async with connect() as (_, writer), asyncio.timeout(20):
        writer.write(request_ * many)
        steps = [0]
        while steps[-1] < many:
            await asyncio.sleep(0)
            steps.append(answered())
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 2
