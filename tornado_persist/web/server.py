"""The HTTP server: accepts connections, and closes those that nobody uses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tornado.netutil import add_accept_handler

from tornado_persist.web.connection import Client, Connection
from tornado_persist.web.stream import Stream

if TYPE_CHECKING:
    from tornado_persist.web.app import Api

#: Seconds after which a connection is closed whose last request began then, or that never sent one; as Tornado has it.
IDLE_TIMEOUT = 3600.0


class Server:
    """Serves one application on any number of listening sockets."""

    def __init__(self, application: Api) -> None:
        self._application = application
        self._sockets: list[socket.socket] = []
        self._deafen: list[Callable[[], None]] = []
        self._connections: dict[Connection, asyncio.Task[None]] = {}

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept the connections that come to these, in the running loop."""
        for sock in sockets:
            self._sockets.append(sock)
            self._deafen.append(add_accept_handler(sock, self._accept))

    def stop(self) -> None:
        """Accept no more connections; those that there are go on."""
        while self._deafen:
            self._deafen.pop()()
        while self._sockets:
            self._sockets.pop().close()

    def close_idle(self) -> None:
        """Close the connections from which nothing has come for :data:`IDLE_TIMEOUT` seconds; to be called at times."""
        before = time.perf_counter() - IDLE_TIMEOUT
        for connection in self._connections:
            if connection.since < before:
                connection.close()

    async def close_all_connections(self) -> None:
        """Hang up on everybody."""
        while self._connections:
            connection, serving = next(iter(self._connections.items()))
            connection.close()
            await asyncio.wait([serving])

    def _accept(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        connection = Connection(Stream(sock), Client(address[0]), self._application)
        serving = asyncio.ensure_future(connection.serve())
        self._connections[connection] = serving
        serving.add_done_callback(lambda _: self._connections.pop(connection))
