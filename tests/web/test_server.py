"""Connections that nobody uses any more are closed; those that are used stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port

from tests.rig import Rig
from tests.rows import body, task
from tornado_persist.web import server
from tornado_persist.web.app import PREFIX, Api
from tornado_persist.web.server import Server

pytestmark = pytest.mark.gen_test


@pytest.fixture
def serving(io_loop: IOLoop, app: Api) -> Iterator[tuple[Server, int]]:
    sock, port = bind_unused_port()

    async def start() -> Server:
        one = Server(app)
        one.add_sockets([sock])
        return one

    one = io_loop.run_sync(start)
    yield one, port
    one.stop()
    io_loop.run_sync(one.close_all_connections)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> bytes:
    content = body("task", task(name))
    writer.write(f"POST {PREFIX}/tasks/batch HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode())
    writer.write(f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"\n")
    return head


async def test_a_connection_in_use_stays_and_an_idle_one_is_closed(
    serving: tuple[Server, int], parts: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, port = serving
    async with connection(port) as used, connection(port) as silent:
        assert (await ask(*used, "a")).startswith(b"HTTP/1.1 200 OK")
        one.close_idle()
        monkeypatch.setattr(server, "IDLE_TIMEOUT", 0.2)
        await asyncio.sleep(0.3)
        assert (await ask(*used, "b")).startswith(b"HTTP/1.1 200 OK")
        one.close_idle()
        assert await silent[0].read() == b""
        assert (await ask(*used, "c")).startswith(b"HTTP/1.1 200 OK")
        await asyncio.sleep(0.3)
        one.close_idle()
        assert await used[0].read() == b""
    assert parts.metrics.totals.accepted["task"] == 3


async def test_a_closed_connection_is_forgotten(serving: tuple[Server, int]) -> None:
    one, port = serving
    async with connection(port) as used:
        await ask(*used, "a")
        assert len(one._since) == 1
    while one._since:
        await asyncio.sleep(0.001)
    one.close_idle()
