"""The routes, and what the handlers need."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from tornado.web import Application, RequestHandler

from tornado_persist import log
from tornado_persist.errors import NotAccepting
from tornado_persist.flusher import Flusher
from tornado_persist.ingest import Ingest
from tornado_persist.journal import Journal
from tornado_persist.metrics import Metrics
from tornado_persist.web import description, docs, handlers
from tornado_persist.web.base import Handler, NotFound
from tornado_persist.web.description import Limits

PREFIX = description.PREFIX

logger = log.get(__name__)


class Api(Application):
    """The HTTP interface of one service."""

    def __init__(
        self,
        ingest: Ingest,
        flusher: Flusher,
        journal: Journal,
        metrics: Metrics,
        *,
        max_body_bytes: int,
        flush_timeout: float,
        max_batch: int = 1000,
        unknown_fields: Literal["ignore", "reject"] = "ignore",
    ) -> None:
        """``flush_timeout``: seconds that ``POST /flush`` waits at most.

        ``max_batch`` and ``unknown_fields`` are what the parser of ``ingest`` was told, for the description.
        """
        self.ingest = ingest
        self.flusher = flusher
        self.journal = journal
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.flush_timeout = flush_timeout
        self._max_batch = max_batch
        self._unknown_fields = unknown_fields
        #: Handlers at work, from the request's headers to the end of the answer.
        self.requests: set[Handler] = set()
        self._draining = False
        super().__init__(
            [
                (r"/", handlers.Root),
                (r"/health", handlers.Health),
                (r"/health/live", handlers.Live),
                (r"/health/ready", handlers.Ready),
                (rf"{PREFIX}/sessions/batch", handlers.SessionsBatch),
                (rf"{PREFIX}/tasks/batch", handlers.TasksBatch),
                (rf"{PREFIX}/flush", handlers.Flush),
                (rf"{PREFIX}/stats", handlers.Stats),
                (r"/openapi\.json", docs.OpenAPI),
                (r"/docs", docs.Page),
                (r"/docs/(.+)", docs.Asset),
            ],
            default_handler_class=NotFound,
            log_function=_log_request,
        )

    def check_accepting(self) -> None:
        """Whether a batch that comes now would be taken.

        Raises:
            NotAccepting: it would not, and why.
        """
        if self._draining:
            raise NotAccepting("The service is shutting down")
        self.ingest.check()

    @property
    def limits(self) -> Limits:
        """What requests are held to now."""
        return Limits(self._max_batch, self.max_body_bytes, self.flush_timeout, self._unknown_fields)

    @property
    def accepting(self) -> bool:
        """Whether a batch that comes now would be taken."""
        try:
            self.check_accepting()
        except NotAccepting:
            return False
        return True

    async def finish_requests(self, timeout: float) -> None:
        """Refuse new batches, and wait until the requests at work are answered, ``timeout`` seconds at most."""
        self._draining = True
        deadline = time.monotonic() + timeout
        while self.requests and time.monotonic() < deadline:
            await asyncio.sleep(0.01)


def _log_request(handler: RequestHandler) -> None:
    if not log.debugging(__name__):
        return
    logger.debug(
        "request",
        method=handler.request.method,
        path=handler.request.path,
        status=handler.get_status(),
        ms=round(handler.request.request_time() * 1000, 1),
        request_id=handler.request_id if isinstance(handler, Handler) else "",
    )
