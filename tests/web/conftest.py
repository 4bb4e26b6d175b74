"""The HTTP interface on its parts, without a process of its own: what pytest-tornado serves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from tests.process import PATIENCE
from tests.rig import Rig
from tests.tools import require
from tornado_persist.testing import FlakySink
from tornado_persist.web.app import Api, make_server

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
    "--host-resolver-rules=MAP rebound.example 127.0.0.1, MAP evil.example 127.0.0.1",
]

expect.set_options(timeout=PATIENCE * 1000)

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

#: ``server.max_body_bytes``.
LIMIT = 65536


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium. Not for the whole run: while it is open, this thread can run no event loop of a test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(require("chromium")), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def sink() -> FlakySink:
    return FlakySink()


@pytest.fixture
def parts(io_loop: IOLoop, sink: FlakySink, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, sink)
    io_loop.run_sync(lambda: rig.start(interval=30, max_batch=100, max_bytes=1 << 20))
    yield rig
    rig.assert_conserved()
    io_loop.run_sync(rig.stop)


@pytest.fixture
def app(parts: Rig) -> Api:
    return parts.api(max_body_bytes=LIMIT)


@pytest.fixture
def http_server(io_loop: IOLoop, app: Api, _unused_port: tuple[socket.socket, int]) -> Iterator[HTTPServer]:
    """With our limits, in the place of pytest-tornado's own fixture."""

    async def start() -> HTTPServer:
        server = make_server(app)
        server.add_sockets([_unused_port[0]])
        return server

    server = io_loop.run_sync(start)
    yield server
    server.stop()
    io_loop.run_sync(server.close_all_connections)


@pytest.fixture
def connect(http_server: HTTPServer, http_port: int) -> Connect:
    """Opens a connection of bare bytes."""

    @asynccontextmanager
    async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        try:
            yield reader, writer
        finally:
            writer.close()

    return connection


@pytest.fixture
def go(app: Api, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While it is not set, no batch is accepted or refused."""
    accept, event = app.ingest.accept, asyncio.Event()

    async def slowly(*args: Any, **options: Any) -> Any:
        await event.wait()
        return await accept(*args, **options)

    monkeypatch.setattr(app.ingest, "accept", slowly)
    return event
