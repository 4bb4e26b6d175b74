"""Connections that nobody uses any more are closed; those that are used stay."""

from __future__ import annotations

import asyncio

import pytest

from tests.rig import Rig
from tests.rows import body, task
from tests.web.conftest import Connect
from tornado_persist.web import server
from tornado_persist.web.app import PREFIX
from tornado_persist.web.server import Server

pytestmark = pytest.mark.gen_test


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> bytes:
    content = body("task", task(name))
    writer.write(f"POST {PREFIX}/tasks/batch HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode())
    writer.write(f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"\n")
    return head


async def test_a_connection_in_use_stays_and_an_idle_one_is_closed(
    connect: Connect, http_server: Server, parts: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect() as used, connect() as silent:
        assert (await ask(*used, "a")).startswith(b"HTTP/1.1 200 OK")
        http_server.close_idle()
        monkeypatch.setattr(server, "IDLE_TIMEOUT", 0.2)
        await asyncio.sleep(0.3)
        assert (await ask(*used, "b")).startswith(b"HTTP/1.1 200 OK")
        http_server.close_idle()
        assert await silent[0].read() == b""
        assert (await ask(*used, "c")).startswith(b"HTTP/1.1 200 OK")
        await asyncio.sleep(0.3)
        http_server.close_idle()
        assert await used[0].read() == b""
    assert parts.metrics.totals.accepted["task"] == 3


async def test_a_closed_connection_is_forgotten(connect: Connect, http_server: Server) -> None:
    async with connect() as used:
        await ask(*used, "a")
        assert len(http_server._connections) == 1
    while http_server._connections:
        await asyncio.sleep(0.001)
    http_server.close_idle()


async def test_after_stop_nobody_is_let_in_and_who_is_in_is_served(connect: Connect, http_server: Server) -> None:
    async with connect() as inside:
        await ask(*inside, "a")
        http_server.stop()
        with pytest.raises(ConnectionRefusedError):
            async with connect():
                pass
        assert (await ask(*inside, "b")).startswith(b"HTTP/1.1 200 OK")
        await http_server.close_all_connections()
        assert await inside[0].read() == b""


async def test_a_bug_in_a_connection_costs_that_one_alone(
    connect: Connect, http_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect() as one, connect() as other:
        await ask(*other, "a")
        with monkeypatch.context() as patch:
            patch.setattr(http_server._application.intake, "takes", lambda head: 1 / 0)
            one[1].write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            assert await one[0].read() == b""
        assert (await ask(*other, "b")).startswith(b"HTTP/1.1 200 OK")
    assert "a bug in a connection" in "".join(capsys.readouterr())
