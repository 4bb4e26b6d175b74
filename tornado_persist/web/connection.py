"""One client's connection, request after request: a plain batch goes the short way, all else Tornado's."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.iostream import StreamClosedError, UnsatisfiableReadError

from tornado_persist.telemetry import log
from tornado_persist.web.head import Head
from tornado_persist.web.stream import Stream

if TYPE_CHECKING:
    from tornado_persist.web.app import Api

logger = log.get(__name__)

# The handlers keep the limits of bodies, so that they can answer with 413; Tornado would only hang up.
_PARAMETERS = HTTP1ConnectionParameters(max_body_size=2**62)


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end, as Tornado asks for it."""

    remote_ip: str
    protocol: str = "http"

    def __str__(self) -> str:
        return self.remote_ip


class Connection:
    """Serves requests until the client goes, or :meth:`close`."""

    def __init__(self, stream: Stream, client: Client, application: Api) -> None:
        self._stream = stream
        self._client = client
        self._application = application
        #: When it began, or its last request, by ``time.perf_counter``.
        self.since = time.perf_counter()

    def close(self) -> None:
        """Hang up; :meth:`serve` returns soon."""
        self._stream.close()

    async def serve(self) -> None:
        """Returns when the connection is closed."""
        try:
            await self._serve()
        except (StreamClosedError, UnsatisfiableReadError):
            pass
        except Exception:
            logger.exception("a bug in a connection")
        finally:
            self._stream.close()

    async def _serve(self) -> None:
        stream, application = self._stream, self._application
        while True:
            # All that is there, as Stream.put_back wants it.
            data = await stream.read_bytes(stream.max_buffer_size, partial=True)
            self.since = time.perf_counter()
            head = Head.of(data)
            if head is not None and application.intake.takes(head):
                await self._take(head, data)
            else:
                stream.put_back(data)
                request = HTTP1Connection(stream, False, _PARAMETERS, self._client)
                if not await request.read_response(application.start_request(self, request)):
                    return
                await _let_others()

    async def _take(self, head: Head, data: bytes) -> None:
        """The short way, for the request that ``data`` begins with."""
        stream, application = self._stream, self._application
        application.requests.add(self)
        try:
            end = head.begin + head.length
            body = data[head.begin : end]
            if len(data) > end:
                stream.put_back(data[end:])
                await _let_others()
            elif len(data) < end:
                body += await stream.read_bytes(end - len(data))
            await application.intake.take(head, body, stream, self._client, self.since)
        finally:
            application.requests.discard(self)


async def _let_others() -> None:
    """A round of the event loop: many requests sent ahead, of which none waits for anything, would hold it up."""
    await asyncio.sleep(0)
