"""The way back for a handler's answer to a request that Tornado has not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError


class Responder(HTTPConnection):
    """Puts an answer into the stream. All answers here have a known length, and leave the connection as it is."""

    def __init__(self, stream: IOStream, context: object) -> None:
        #: Where Tornado looks for the client's address.
        self.context = context
        self._stream = stream
        #: Done when the answer is.
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self._stream.set_close_callback(callback)

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        assert isinstance(start_line, ResponseStartLine)
        lines = [f"HTTP/1.1 {start_line.code} {start_line.reason}"]
        lines += [f"{name}: {value}" for name, value in headers.get_all()]
        return self.write("\r\n".join([*lines, "", ""]).encode("latin1") + (chunk or b""))

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        try:
            return self._stream.write(chunk)
        except StreamClosedError as exc:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(exc)
            future.exception()  # seldom does anybody wait for it
            return future

    def finish(self) -> None:
        self._stream.set_close_callback(None)
        if not self.finished.done():  # whoever waited may have gone
            self.finished.set_result(None)
