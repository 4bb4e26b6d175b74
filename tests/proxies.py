"""A TCP proxy before a database server, which makes it lack something: it changes what clients ask for."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

#: libpq's first messages that ask for encryption; the answer is one byte.
_ENCRYPTION = {80877103, 80877104}
_REFUSE_COPY = b"DO $$ BEGIN RAISE 'COPY is not supported' USING ERRCODE = '0A000'; END $$\0"
_REFUSE = "SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = {}, MESSAGE_TEXT = '{}'"
_QUERY, _BULK = 3, 0xFA


class Closed(Exception):
    """The proxy is to close the connection."""


class Proxy:
    """Passes bytes on to ``port``. The server itself gives the error, so its state is what it would be."""

    def __init__(self, port: int, serve: Callable[[Proxy, socket.socket, socket.socket], None]) -> None:
        self.server = port
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: How often a client was refused something.
        self.refused = 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def through(self, url: str) -> str:
        """The URL of the server with the proxy's port."""
        assert url.count(f":{self.server}/") == 1
        return url.replace(f":{self.server}/", f":{self.port}/")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.server))
                self._open += [client, server]
                for both in (client, server):
                    both.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for target, args in ((_pass_on, (server, client)), (self._pass_requests, (client, server))):
                    threading.Thread(target=target, args=args, daemon=True).start()

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, Closed):
            self._serve(self, client, server)
        for both in (client, server):
            with contextlib.suppress(OSError):
                both.shutdown(socket.SHUT_RDWR)


def without_copy(port: int, *, close: bool = False) -> Proxy:
    """Before a PostgreSQL: refuses COPY, or closes the connection at it."""

    def serve(proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        code = 0
        while not code or code in _ENCRYPTION:  # the messages without a type
            head = _receive(client, 8)
            size, code = struct.unpack("!II", head)
            server.sendall(head + _receive(client, size - 8))
        while True:
            kind, size = struct.unpack("!cI", _receive(client, 5))
            body = _receive(client, size - 4)
            if kind == b"Q" and body.startswith(b"COPY"):
                proxy.refused += 1
                if close:
                    raise Closed
                body = _REFUSE_COPY
            server.sendall(struct.pack("!cI", kind, len(body) + 4) + body)

    return Proxy(port, serve)


def without_bulk(port: int, *, close: bool = False, settings: tuple[str, ...] = ()) -> Proxy:
    """Before a MariaDB: refuses the bulk command, or closes the connection at it, and some settings of a session."""

    def serve(proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        while True:
            head = _receive(client, 4)
            body = _receive(client, int.from_bytes(head[:3], "little"))
            if head[3] == 0 and body[0] == _BULK:
                proxy.refused += 1
                if close:
                    raise Closed
                body = _query(_REFUSE.format(1047, "Unknown command"))
            elif head[3] == 0 and body[0] == _QUERY and body[1:4] == b"SET":
                for name in settings:
                    if name.encode() in body:
                        body = _query(_REFUSE.format(1193, f"Unknown system variable {name}"))
                        break
            server.sendall(len(body).to_bytes(3, "little") + head[3:] + body)

    return Proxy(port, serve)


def _query(sql: str) -> bytes:
    return bytes([_QUERY]) + sql.encode()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for both in (source, target):
        with contextlib.suppress(OSError):
            both.shutdown(socket.SHUT_RDWR)


def _receive(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise Closed
        data += part
    return bytes(data)
