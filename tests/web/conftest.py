"""The HTTP interface on its parts, without a process of its own: what pytest-tornado serves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from tests.rig import Rig
from tornado_persist.testing import FlakySink
from tornado_persist.web.app import Api, make_server

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

#: ``server.max_body_bytes``.
LIMIT = 65536


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
    return Api(
        parts.ingest,
        parts.flusher,
        parts.health,
        parts.remover,
        parts.retention,
        parts.metrics,
        parts.reads,
        max_body_bytes=LIMIT,
        flush_timeout=10,
    )


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
