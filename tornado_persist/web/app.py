"""The application: its routes, the parts that handlers use, and the HTTP server."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from ssl import SSLContext
from typing import Any

from tornado.httputil import HTTPServerRequest, split_host_and_port
from tornado.web import Application, RequestHandler

from tornado_persist.errors import ReadFailed
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.health import Health
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.pipeline.reads import Reads
from tornado_persist.pipeline.removal import Remover
from tornado_persist.pipeline.retention import Retention
from tornado_persist.records.models import STATUSES
from tornado_persist.records.rules import UnknownFields
from tornado_persist.telemetry import log
from tornado_persist.telemetry.metrics import Metrics
from tornado_persist.telemetry.refusals import Quota, printable
from tornado_persist.web import handlers, history, openapi, pages, prometheus, reading, removal
from tornado_persist.web.auth import Access
from tornado_persist.web.base import Handler, NotFound
from tornado_persist.web.bodies import Refused
from tornado_persist.web.server import Context, Server

PREFIX = openapi.PREFIX

#: Every path and its handler. Tornado looks from the top: batches come first.
ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (rf"{PREFIX}/tasks/batch", handlers.TasksBatch),
    (rf"{PREFIX}/sessions/batch", handlers.SessionsBatch),
    (rf"{PREFIX}/flush", handlers.Flush),
    (rf"{PREFIX}/stats", handlers.Stats),
    (rf"{PREFIX}/history", history.History),
    (rf"{PREFIX}/sessions/cleanup", removal.Cleanup),
    (r"/", handlers.Root),
    (r"/health", handlers.Health),
    (r"/health/live", handlers.Live),
    (r"/health/ready", handlers.Ready),
    (r"/metrics", prometheus.Metrics),
    (r"/openapi\.json", openapi.OpenAPI),
    (r"/dashboard", pages.Page),
    (r"/dashboard/.+", pages.Asset),
    (r"/docs", pages.Page),
    (r"/docs/.+", pages.Asset),
    (rf"{PREFIX}/sessions", reading.Sessions),
    (rf"{PREFIX}/sessions/([^/]+)", reading.Session),
    (rf"{PREFIX}/sessions/([^/]+)/tasks", reading.SessionTasks),
    (rf"{PREFIX}/sessions/([^/]+)/tasks/([^/]+)", reading.Task),
    (rf"{PREFIX}/tasks", reading.Tasks),
    (rf"{PREFIX}/recovery/incomplete-sessions", reading.IncompleteSessions),
    (rf"{PREFIX}/recovery/restore/([^/]+)", reading.Restore),
]

#: A request target that is a URL, as clients of proxies send it.
_ABSOLUTE = re.compile(r"https?://([\w.:\[\]-]+)(?=/|\Z)", re.IGNORECASE | re.ASCII).match

logger = log.get(__name__)


class Api(Application):
    """The HTTP interface of one service."""

    def __init__(
        self,
        ingest: Ingest,
        flusher: Flusher,
        health: Health,
        remover: Remover,
        retention: Retention,
        metrics: Metrics,
        reads: Reads,
        *,
        access: Access | None = None,
        max_body_bytes: int,
        flush_timeout: float,
        body_timeout: float = 60.0,
        max_inflight_bytes: int = 134_217_728,
        max_batch: int = 1000,
        unknown_fields: UnknownFields = "ignore",
        statuses: tuple[str, ...] = STATUSES,
    ) -> None:
        """``access``: who may send requests, by default everybody.

        ``flush_timeout``: seconds that ``POST /flush`` waits at most; ``body_timeout``: that a body may take.

        ``max_inflight_bytes``: of all bodies at one time, and of all long answers that are not taken yet.

        ``max_batch``, ``unknown_fields`` and ``statuses``, which the parser of ``ingest`` applies, are for the
        description.
        """
        self.access = access or Access()
        self.ingest = ingest
        self.flusher = flusher
        self.health = health
        self.remover = remover
        self.retention = retention
        self.metrics = metrics
        self.reads = reads
        self.prometheus = prometheus.Exporter(health, metrics)
        #: The service takes a sample every ``history.INTERVAL`` seconds.
        self.sampler = history.Sampler(health, metrics)
        self.max_body_bytes = max_body_bytes
        self.flush_timeout = flush_timeout
        self.body_timeout = body_timeout
        self._max_inflight_bytes = max_inflight_bytes
        #: Bytes of the bodies that are announced, arriving, or not answered yet.
        self.inflight_bytes = 0
        #: Bytes of long answers that clients have not taken yet.
        self.untaken_bytes = 0
        #: Since when, by the monotonic clock.
        self._untaken_since: dict[Context, float] = {}
        self._max_batch = max_batch
        self._unknown_fields = unknown_fields
        self._statuses = statuses
        #: Which tracebacks are logged.
        self.bugs = Quota()
        #: The requests in progress, from their headers to the end of the answer.
        self.requests: set[Handler] = set()
        #: Those whose clients have gone before the answer: each counts as a connection, for it takes memory like one.
        self.left: set[Handler] = set()
        super().__init__(list(ROUTES), default_handler_class=NotFound, cross_origin_protection=True)
        # From the start: to Prometheus, a series that appears with its first 500 has not increased.
        for _, answers in ROUTES:
            for method in answers.SUPPORTED_METHODS:
                if getattr(answers, method.lower()) is not RequestHandler.get:
                    metrics.requests.labels(answers.__name__, method, 500)

    @property
    def limits(self) -> openapi.Limits:
        """The limits on requests now."""
        return openapi.Limits(
            self._max_batch,
            self.max_body_bytes,
            self.flush_timeout,
            self._unknown_fields,
            self._statuses,
            tokens=bool(self.access.tokens),
        )

    def hold(self, size: int) -> None:
        """Count so many bytes more of bodies. Raises Refused: that would be too many; a body alone always fits."""
        if self.inflight_bytes and self.inflight_bytes + size > self._max_inflight_bytes:
            raise Refused("busy", f"Request bodies of {self.inflight_bytes} bytes are being worked on; try again later")
        self.inflight_bytes += size

    def hold_answer(self, size: int, context: Context) -> None:
        """Count so many bytes of a long answer until :meth:`release_answer`.

        Raises ReadFailed: clients that do not take their answers hold too many; one alone always fits.
        """
        if context.is_closed():
            return  # nobody takes it, so it is not kept, and nothing would release it
        if self.untaken_bytes and self.untaken_bytes + size > self._max_inflight_bytes:
            long_ago = time.monotonic() - self.body_timeout
            for slow in [it for it, since in self._untaken_since.items() if since < long_ago]:
                slow.close()  # else a few clients that take a byte at a time would keep all others out
            raise ReadFailed(f"Clients have not taken answers of {self.untaken_bytes} bytes yet; try again later")
        self.untaken_bytes += size
        context.untaken += size
        self._untaken_since[context] = time.monotonic()

    def release_answer(self, context: Context) -> None:
        """The client has taken the answer, or is gone."""
        self.untaken_bytes -= context.untaken
        context.untaken = 0
        self._untaken_since.pop(context, None)

    async def finish_requests(self, timeout: float) -> None:
        """Refuse new batches, and wait until all requests in progress are answered, ``timeout`` seconds at most."""
        self.ingest.close("The service is shutting down")
        deadline = time.monotonic() + timeout
        while self.requests and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """The handler of a request, whose path may be of a base URL that ends in a slash, or a whole URL."""
        path = request.path
        if not path.startswith("/") and (absolute := _ABSOLUTE(path)):
            # By RFC 9112 the Host header does not count then.
            request.headers["Host"] = request.host = absolute[1]
            request.host_name = split_host_and_port(request.host.lower())[0]
            path = path[absolute.end() :]
        if request.headers.get("Expect", "").lower() == "100-continue":
            request.headers["Expect"] = "100-continue"  # Tornado knows only this one
        request.path = "/" + "/".join(filter(None, path.split("/"))) if path[-1:] in ("/", "") or "//" in path else path
        return super().find_handler(request, **kwargs)

    def log_request(self, handler: RequestHandler) -> None:
        """Count, time and log every answer; Tornado calls this at its end."""
        request, status = handler.request, handler.get_status()
        method, path = request.method or "", request.path
        seconds = max(0.0, request.request_time())  # by the wall clock, which may be set back
        self.metrics.answered(type(handler).__name__, method, status, seconds)
        if log.debugging(__name__):  # asked first: a line that is thrown away costs 25 µs
            method, path = printable(method), printable(path)
            more = {"client": request.remote_ip, "ms": round(seconds * 1000, 1)}
            if isinstance(handler, Handler):
                more["request_id"] = handler.request_id
                if handler.token:
                    more["token"] = handler.token
            logger.debug("request", method=method, path=path, status=status, **more)


def make_server(
    application: Api,
    *,
    max_connections: int = 1000,
    header_timeout: float = 10.0,
    idle_timeout: float = 120.0,
    tls: SSLContext | None = None,
) -> Server:
    """The HTTP server of ``application``, with its limits; it listens nowhere yet. Timeouts in seconds.

    ``tls`` is for connections over TCP.
    """
    return Server(
        application,
        max_connections=max_connections,
        header_timeout=header_timeout,
        body_timeout=application.body_timeout,
        idle_timeout=idle_timeout,
        tls=tls,
        # The handlers limit bodies, to answer 413 in JSON; Tornado would close the connection without a word.
        max_body_size=sys.maxsize,
    )
