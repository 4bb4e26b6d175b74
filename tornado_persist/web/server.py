"""Tornado's HTTP server with our limits: on connections, on silence, and on what a client leaves half done."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import resource
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError
from tornado.log import gen_log

from tornado_persist.telemetry import log
from tornado_persist.telemetry.refusals import Refusal
from tornado_persist.web.base import SECURITY_HEADERS, SERVER, choose_request_id

if TYPE_CHECKING:
    from tornado_persist.web.app import Api

#: Bytes of a request's line and headers.
MAX_HEADER_BYTES = 65536
#: Lines of a head. Tornado takes 10 to 20 µs and 100 bytes for each: with 9,000 a head held the loop for 0.1 s.
MAX_HEADER_LINES = 256
#: Descriptors left for files and the sink when connections take all others; the journal alone may hold 64.
RESERVED = 128
#: Seconds without a request after which a connection may be closed for a new one, at the limit of connections.
IDLE = 1.0
#: Seconds that an answered client may go on sending, so that it reads the answer instead of a reset connection.
LINGER = 2.0
#: Seconds between two lines that say that connections have to wait, and until accepting is tried again.
SAY_AGAIN = 60.0
TRY_AGAIN = 0.5
#: Connections accepted in one round of the event loop.
AT_ONCE = 128

_TOO_MANY = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: Reads of what a client has sent past a limit: 1 MiB.
_UNREAD = 16
#: What Tornado answers to a request that it cannot read.
_BARE = b"HTTP/1.1 400 Bad Request\r\n\r\n"
_DETAIL = "The request is not valid HTTP"
_NO_HANDSHAKE = "The TLS handshake failed"
_CONTINUE = b"HTTP/1.1 100 "
_TOO_MANY_LINES = "Too many header lines"
#: Tornado's words for what is wrong, as far as they do not repeat what the client sent.
_PROBLEMS = (
    *("Malformed HTTP request line", "Unexpected HTTP version", "Missing Host header", "Invalid Host header"),
    *("Multiple host headers not allowed", "Invalid header name", "Invalid header value", "no colon in header line"),
    *("header line cannot start with whitespace", "Invalid query string", "Only integer Content-Length is allowed"),
    *("Multiple unequal Content-Lengths", "Message with both Transfer-Encoding and Content-Length"),
    *("Unsupported Transfer-Encoding", "invalid chunk size", "improperly terminated chunk", _TOO_MANY_LINES),
)

logger = log.get(__name__)


class Server(HTTPServer):
    """Accepts connections up to a limit.

    For a further one the connection that has been idle longest is closed. If none is idle, it waits in the system's
    queue until one ends.
    """

    def initialize(  # type: ignore[override]
        self,
        application: Api,
        *,
        max_connections: int,
        header_timeout: float,
        body_timeout: float,
        idle_timeout: float,
        max_body_size: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Timeouts in seconds; ``idle_timeout`` is of a connection between two requests. ``tls``: for TCP.

        A connection is closed at the latest a quarter of the shortest of them, or a second, after its time.
        """
        super().initialize(
            application,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=max_body_size,
        )
        gen_log.addFilter(_is_not_of_tls)
        self._api = application
        #: Of the next connections; it may be replaced.
        self.tls = tls
        self._timeouts = {
            Phase.HANDSHAKE: header_timeout,
            Phase.IDLE: idle_timeout,
            Phase.HEAD: header_timeout,
            Phase.BODY: body_timeout,
            Phase.ANSWER: body_timeout,  # without the client taking any of it
        }
        period = min(1.0, *(timeout / 4 for timeout in self._timeouts.values()))
        self._sweeper = PeriodicCallback(self._close_overdue, 1000 * period)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        descriptors = sys.maxsize if limit == resource.RLIM_INFINITY else limit
        self.max_connections = min(max_connections, max(descriptors - RESERVED, descriptors // 4, 1))
        self.connections: set[Connection] = set()
        self._listening: list[socket.socket] = []
        self._paused = False
        self._next_try: object = None
        self._said = -SAY_AGAIN

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on these sockets, which listen already."""
        sockets = list(sockets)
        self._listening += sockets
        if not self._sweeper.is_running():
            self._sweeper.start()
        if not self._paused:
            self._watch(sockets)

    def stop(self) -> None:
        """Accept no more connections; those that are open go on."""
        if self._paused:
            IOLoop.current().remove_timeout(self._next_try)
        else:
            self._unwatch()
        for listening in self._listening:
            listening.close()
        self._listening = []

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        connection = Connection(cast(TimedStream, stream), self.conn_params, Context(stream, address), self._api)
        self.connections.add(connection)
        connection.start_serving(self)

    def on_close(self, server_conn: object) -> None:
        self.connections.discard(cast(Connection, server_conn))
        self._resume()

    async def close_all_connections(self) -> None:
        while self.connections:
            await next(iter(self.connections)).close()
        self._sweeper.stop()

    def _close_overdue(self) -> None:
        now = time.monotonic()
        for connection in self.connections:
            stream = connection.stream
            if now - stream.since <= self._timeouts[stream.phase]:
                continue
            if stream.phase is not Phase.ANSWER or stream.writing():
                stream.close()

    def _watch(self, sockets: Iterable[socket.socket]) -> None:
        for listening in sockets:
            IOLoop.current().add_handler(listening, self._accept, IOLoop.READ)

    def _unwatch(self) -> None:
        for listening in self._listening:
            IOLoop.current().remove_handler(listening)

    def _accept(self, listening: socket.socket, events: int) -> None:
        for _ in range(AT_ONCE):
            is_full = len(self.connections) + len(self._api.left) >= self.max_connections
            idle = self._longest_idle() if is_full else None
            if is_full and idle is None:
                self._pause("the limit of connections is reached, further ones wait", limit=self.max_connections)
                return
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                if exc.errno not in _TOO_MANY:
                    raise
                self._pause("no connection can be accepted, they wait", error=exc.strerror)
                return
            if idle:
                self._tell("the limit of connections is reached, idle ones are closed", limit=self.max_connections)
                self.connections.discard(idle)
                idle.stream.close()
            with suppress(OSError):  # the connection has ended already
                self.handle_stream(self._stream(accepted), address)

    def _stream(self, accepted: socket.socket) -> TimedStream:
        sizes = {"max_buffer_size": self.max_buffer_size, "read_chunk_size": self.read_chunk_size}
        if self.tls is None or accepted.family == socket.AF_UNIX:
            return TimedStream(accepted, **sizes)
        try:
            secured = self.tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        except OSError:
            accepted.close()
            raise
        return TimedSSLStream(secured, **sizes)

    def _longest_idle(self) -> Connection | None:
        """The connection that has been idle longest, if one has been idle long enough to be closed."""
        latest = time.monotonic() - IDLE
        idle = [one for one in self.connections if one.stream.phase is Phase.IDLE and one.stream.since <= latest]
        idle.sort(key=lambda one: one.stream.since)
        return next((one for one in idle if not one.has_bytes()), None)

    def _pause(self, event: str, **more: Any) -> None:
        if self._paused:
            return
        self._paused = True
        self._unwatch()
        self._next_try = IOLoop.current().call_later(TRY_AGAIN, self._resume)
        self._tell(event, **more)

    def _tell(self, event: str, **more: Any) -> None:
        now = time.monotonic()
        if now - self._said >= SAY_AGAIN:
            self._said = now
            logger.warning(event, open=len(self.connections), **more)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            IOLoop.current().remove_timeout(self._next_try)
            self._watch(self._listening)


class Context:
    """A request's view of its connection."""

    def __init__(self, stream: IOStream, address: Any) -> None:
        self.is_closed = stream.closed
        self.close = stream.close
        has_ip = stream.socket.family in (socket.AF_INET, socket.AF_INET6)
        self.remote_ip = address[0] if has_ip else "unix"
        self.protocol = "https" if isinstance(stream, SSLIOStream) else "http"
        #: Whether the client was answered before the end of its request.
        self.answered_early = False
        #: Bytes of the answer that count until the client has taken it.
        self.untaken = 0

    def __str__(self) -> str:
        return str(self.remote_ip)


class Phase(Enum):
    """What a connection waits for."""

    HANDSHAKE = "the rest of the TLS handshake"
    IDLE = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "an answer, or that the client takes it"


class TimedStream(IOStream):
    """Notes the phase of its connection, and since when, so that no request needs timers of its own."""

    phase = Phase.IDLE
    #: The answer to a head, or a line, over its limit.
    last_words: Callable[[], bytes] = bytes
    #: Since when there was no progress, by the monotonic clock.
    since = 0.0

    def enter(self, phase: Phase) -> None:
        """A phase begins now."""
        self.phase = phase
        self.since = time.monotonic()

    def close(self, exc_info: Any = False) -> None:
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():  # the head, or the line before a chunk
            with suppress(OSError):
                if words := self.last_words():
                    self.socket.send(words)
                for _ in range(_UNREAD):  # what is not read would make it a reset connection, and the answer lost
                    if not self.socket.recv(1 << 16):
                        break
        super().close(exc_info)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        size = super().read_from_fd(buf)
        if size and self.phase is Phase.IDLE:
            self.enter(Phase.HEAD)
        return size

    def write_to_fd(self, data: memoryview) -> int:
        size = super().write_to_fd(data)
        if self.phase is Phase.ANSWER:
            self.since = time.monotonic()
        return size


class TimedSSLStream(TimedStream, SSLIOStream):
    """The same with TLS."""


class Connection(HTTP1ServerConnection, HTTPMessageDelegate):
    """One connection: a request, its answer, the next request.

    As the delegate of each request it stands before the application's, to see the request's phases.
    """

    stream: TimedStream
    _delegate: HTTPMessageDelegate

    def __init__(self, stream: TimedStream, params: HTTP1ConnectionParameters, context: Context, api: Api) -> None:
        super().__init__(stream, params, context)
        # Now: until it is served, which is in another round of the loop, it must not count as idle for ever.
        stream.enter(Phase.HANDSHAKE if isinstance(stream, TimedSSLStream) else Phase.IDLE)
        self._api = api
        self._stream = _Stream(stream, context, api)
        stream.last_words = self._stream.too_long

    def start_serving(self, delegate: HTTPServerConnectionDelegate) -> None:
        self._serving = asyncio.ensure_future(self._serve(delegate))

    async def close(self) -> None:
        self.stream.close()
        await self._serving

    def has_bytes(self) -> bool:
        """Whether bytes of a request, or the end of the connection, have come and are not read yet."""
        try:
            socket.socket.recv(self.stream.socket, 1, socket.MSG_PEEK)  # with TLS, not of what it carries
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self.stream.enter(Phase.BODY)
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self.stream.enter(Phase.ANSWER)
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()

    async def _serve(self, delegate: HTTPServerConnectionDelegate) -> None:
        try:
            if isinstance(self.stream, TimedSSLStream):
                await self._shake_hands(self.stream)
            while await self._serve_one(delegate):
                await asyncio.sleep(0)
        except StreamClosedError:
            pass
        except ssl.SSLError:
            pass  # what came was not encrypted with the connection's keys
        except Exception:
            logger.exception("a bug in a connection")
        finally:
            self.stream.close()
            delegate.on_close(self)

    async def _shake_hands(self, stream: TimedSSLStream) -> None:
        """Raises StreamClosedError. Counts a client that does not speak TLS or has no certificate that it needs."""
        try:
            await stream.wait_for_handshake()
        except ssl.SSLError as exc:
            if exc.reason:  # else the client came and went
                problem = ": ".join(filter(None, (exc.reason.lower(), getattr(exc, "verify_message", ""))))
                context = cast(Context, self.context)
                _count(self._api, context, problem.replace("_", " "), choose_request_id(None), _NO_HANDSHAKE)
            raise StreamClosedError(exc) from exc
        except OSError as exc:
            raise StreamClosedError(exc) from exc

    async def _serve_one(self, delegate: HTTPServerConnectionDelegate) -> bool:
        """Whether another request may come."""
        self.stream.enter(Phase.IDLE)
        self._stream.has_answered = False
        connection = HTTP1Connection(cast(IOStream, self._stream), False, self.params, self.context)
        self._delegate = delegate.start_request(self, connection)
        try:
            more = await connection.read_response(self)  # until the answer is taken
        finally:
            self._api.release_answer(cast(Context, self.context))
        # Tornado would take the requests that have come already, and answer none of them: this one ends the connection,
        # by its header, or since it was answered before its end.
        is_last = self._stream.is_closing or connection._disconnect_on_finish
        if is_last:
            with suppress(StreamClosedError):
                while True:  # until the client or the timer ends it
                    await self.stream.read_bytes(1 << 16, partial=True)
        return more and not is_last


class _Stream:
    """A connection's stream, as :class:`HTTP1Connection` uses it.

    Where that would answer a request that is not HTTP with a bare line, the client gets JSON, and it is counted. Where
    it would reset the connection of a client that still sends, the client has time to read its answer.
    """

    def __init__(self, stream: IOStream, context: Context, api: Api) -> None:
        self._stream = stream
        self._context = context
        self._api = api
        #: Whether an answer to the request has begun.
        self.has_answered = False
        self.is_closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, data: bytes | memoryview) -> Awaitable[None]:
        if data != _BARE:
            self.has_answered |= data[: len(_CONTINUE)] != _CONTINUE
            return self._stream.write(data)
        error = asyncio.get_running_loop().create_future()
        if self.has_answered:
            error.set_result(None)
            return error
        self._context.answered_early = True
        return self._stream.write(self._malformed(_problem()))

    async def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> bytes:
        """A head. Raises HTTPInputError: it has too many lines."""
        head = await self._stream.read_until_regex(regex, max_bytes)
        if head.count(b"\n") > MAX_HEADER_LINES:
            raise HTTPInputError(_TOO_MANY_LINES)
        return head

    def close(self, *args: Any, **options: Any) -> None:
        if self.is_closing or not self._context.answered_early or self._stream.closed():
            self._stream.close(*args, **options)
            return
        self.is_closing = True
        if not isinstance(self._stream, SSLIOStream):
            with suppress(OSError):
                self._stream.socket.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().call_later(LINGER, self._stream.close)

    def too_long(self) -> bytes:
        """Count the request; the answer to it, if none has begun."""
        answer = self._malformed("A line or the head is too long")
        return b"" if self.has_answered else answer

    def _malformed(self, problem: str) -> bytes:
        request_id = choose_request_id(None)
        _count(self._api, self._context, problem, request_id)
        content = json.dumps({"detail": _DETAIL}).encode() + b"\n"
        head = (
            "HTTP/1.1 400 Bad Request",
            f"Date: {format_timestamp(time.time())}",
            f"Server: {SERVER}",
            "Content-Type: application/json; charset=utf-8",
            f"Content-Length: {len(content)}",
            f"X-Request-ID: {request_id}",
            *(f"{name}: {value}" for name, value in SECURITY_HEADERS.items()),
            "Connection: close",
        )
        return "\r\n".join([*head, "", ""]).encode() + content


def _is_not_of_tls(record: logging.LogRecord) -> bool:
    """Not Tornado's lines about failures of TLS, which any client could fill the log with: we count and log them."""
    return "SSL" not in record.getMessage()


def _count(api: Api, context: Context, problem: str, request_id: str, detail: str = _DETAIL) -> None:
    """Count what is not HTTP as a refused batch: it may have been one."""
    now, client = datetime.now(UTC), str(context)
    api.metrics.refusals.add(Refusal(now, "none", 400, "malformed", detail, client, "", request_id, "", msg=problem))


def _problem() -> str:
    """What Tornado found wrong, called while it handles that; without what the client sent, which may be a secret."""
    error = sys.exc_info()[1]
    told = str(error) if isinstance(error, HTTPInputError) else ""
    return next((problem for problem in _PROBLEMS if told.startswith(problem)), "")
