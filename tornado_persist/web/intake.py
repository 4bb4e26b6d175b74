"""The short way of a batch, from its bytes into the journal and back; what does not go well goes to the handlers.

Tornado's own way costs more than all that is done with a row: a parser of all that HTTP knows, a ``RequestHandler``
with its routes, futures, rounds of the event loop. With it a request of one row takes 440 µs of processor time, the
fsync's included, and without it 250. So a batch that comes as batches do is taken here, and only success is answered.
Everything else goes Tornado's way from the beginning, and a batch that was not taken goes to the handlers as if nothing
had been: they say what is wrong with it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tornado.httputil import format_timestamp
from tornado.iostream import IOStream

from tornado_persist.pipeline.ingest import Accepted
from tornado_persist.telemetry import log
from tornado_persist.web import requestid
from tornado_persist.web.base import common_headers, to_json
from tornado_persist.web.handlers import BatchHandler, acknowledgement
from tornado_persist.web.head import Head
from tornado_persist.web.responder import Responder

if TYPE_CHECKING:
    from tornado_persist.web.app import Api

#: Bytes of a body that may be held here while it comes in. The way of a larger one costs nothing beside the rest.
MOST = 1 << 24


class Intake:
    """Takes the batches of all connections."""

    def __init__(self, application: Api, routes: Mapping[str, type[BatchHandler]]) -> None:
        """``routes``: the paths of batches, and who takes those that are not taken here."""
        self._application = application
        self._routes = routes

    def takes(self, head: Head) -> bool:
        """Whether this begins a batch as batches are."""
        return (
            head.path in self._routes
            and head.length <= min(MOST, self._application.max_body_bytes)
            and head.headers.get("content-type") == "application/json"
            and self._application.accepting
        )

    async def take(self, head: Head, body: bytes, stream: IOStream, context: object, began: float) -> None:
        """Take the batch, and answer into ``stream``. ``context``: what Tornado may know of the client; ``began``: when
        the first byte was there, by ``time.perf_counter``.

        Raises:
            StreamClosedError: the client has gone; the batch may have been taken.
        """
        handler = self._routes[head.path]
        request_id = requestid.choose(head.headers.get("x-request-id"))
        log.request_id.set(request_id)
        try:
            accepted = await self._application.ingest.accept(handler.kind, body)
        except Exception:
            await self._start_again(head, body, Responder(stream, context))
        else:
            try:
                await stream.write(_acknowledge(accepted, request_id))
            finally:
                seconds = time.perf_counter() - began
                self._application.note_answer(handler.__name__, "POST", head.path, 200, seconds, request_id)

    async def _start_again(self, head: Head, body: bytes, responder: Responder) -> None:
        handler = self._application.start_request(self, responder)
        prepared = handler.headers_received(head.start_line, head.http_headers)
        if prepared is not None:
            await prepared
        handler.data_received(body)
        handler.finish()
        await responder.finished


def _acknowledge(accepted: Accepted, request_id: str) -> bytes:
    content = to_json(acknowledgement(accepted))
    headers = common_headers(request_id)
    headers["Date"] = _date(int(time.time()))
    headers["Content-Length"] = str(len(content))
    lines = "\r\n".join([f"{name}: {value}" for name, value in headers.items()])
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{content}".encode()


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    """The header, spelt once a second instead of in 8 µs for each answer."""
    return format_timestamp(second)
