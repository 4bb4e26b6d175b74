"""What all handlers share: JSON answers, errors of one shape, limits on request bodies, request ids."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError, RequestHandler, stream_request_body

from tornado_persist import __version__
from tornado_persist.config.tokens import Scope
from tornado_persist.errors import (
    BatchRejected,
    CannotDelete,
    FieldError,
    FlushFailed,
    InvalidBatch,
    InvalidQuery,
    NoSuchRow,
    NotAccepting,
    NotDeleted,
    NothingThere,
    NotJSON,
    NotReadable,
    PersistError,
    ReadFailed,
    SinkUnavailable,
)
from tornado_persist.telemetry import log
from tornado_persist.telemetry.redaction import TOKEN_PREFIX
from tornado_persist.telemetry.refusals import DENIED, Refusal, RefusedKind, printable
from tornado_persist.web.auth import Denied
from tornado_persist.web.bodies import Refused, TooLarge, Unsupported, decompress, require_json

if TYPE_CHECKING:
    from tornado_persist.web.app import Api

logger = log.get(__name__)

_encode = json.JSONEncoder(ensure_ascii=False).encode

#: Seconds after which a client that got 503 should try again.
RETRY_AFTER = 5
#: A body over the limit is read to its end and thrown away, so that the client reads the answer instead of a reset
#: connection; but not past this many times the limit.
PATIENCE = 8
#: Bytes from which an answer is long: the others are a connection's own, and there are so many of these at most.
LONG_ANSWER = 1 << 16
#: Digits of a length that no body can have.
_DIGITS = 19
# Ids as in UUIDs and traces, safe in any log.
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}").fullmatch
# The process, then the number of the request: a hundredth of the cost of a UUID.
_PROCESS = secrets.token_hex(6)
_numbers = itertools.count(1)
SERVER = f"persistd/{__version__}"
#: In every answer; the pages have a policy of their own. Nothing is to be kept, or to be taken for a page.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
#: What a page of a trusted origin may send and read besides the usual.
_CORS_REQUEST = "Authorization, Content-Encoding, Content-Type, X-Persist-After, X-Persist-At, X-Request-ID"
_CORS_ANSWER = "Retry-After, WWW-Authenticate, X-Request-ID"


@stream_request_body
class Handler(RequestHandler):
    """Answers in JSON, errors too. Request bodies are streamed, so that a limit holds while one arrives."""

    #: Whether the request body is kept for :meth:`body`; otherwise it is thrown away as it arrives.
    takes_body = False
    #: The kind of the rows that a request brings; None: it brings no batch.
    batch_kind: ClassVar[RefusedKind | None] = None
    #: What a token must permit for this path; None: open to everybody, with tokens too. Each handler says its own.
    scope: ClassVar[Scope | None] = "admin"
    #: Methods that need another scope than :attr:`scope`.
    method_scopes: ClassVar[Mapping[str, Scope]] = {}
    application: Api

    def initialize(self) -> None:
        self._body = bytearray()
        self._received = 0
        #: Bytes of the body that count against ``server.max_inflight_bytes``.
        self._held = 0
        self._is_whole = False
        #: The name of the token that the client has shown, where one is needed.
        self.token = ""
        access = self.application.access
        if access.has_proxies:
            self.request.remote_ip = access.client_of(self.request)

    def prepare(self) -> None:
        log.request_id.set(self.request_id)
        log.client.set(None)  # that of the request before, on the same connection
        if self._answers_preflight():
            return
        self.application.requests.add(self)
        limit = self.application.max_body_bytes
        length = _content_length(self.request.headers) or 0
        try:
            scope = self.method_scopes.get(self.request.method or "", self.scope)
            self.token = self.application.access.admit(self.request, scope)
            log.client.set((self.request.remote_ip or "", self.token))
            if length > PATIENCE * limit:
                raise TooLarge(limit)
            if self.takes_body and length <= limit:
                self._hold(length)
        except Refused:
            self._answers_early()
            raise

    def _answers_preflight(self) -> bool:
        """Whether this was a browser's question what a page of a trusted origin may send."""
        headers = self.request.headers
        asked = headers.get("Access-Control-Request-Method")
        if self.request.method != "OPTIONS" or asked is None or not self._allow_origin():
            return False
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE")
        self.set_header("Access-Control-Allow-Headers", _CORS_REQUEST)
        self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)
        self._answers_early()
        self.set_header("Connection", "close")  # Tornado ends it after an answer before the request's end
        self.finish()
        return True

    def _allow_origin(self) -> bool:
        """Let a page of a trusted origin read the answer; whether the request is from one."""
        origin = self.request.headers.get("Origin")
        if origin is None or not self.application.access.trusts(origin):
            return False
        self.set_header("Access-Control-Allow-Origin", origin)
        self.set_header("Access-Control-Expose-Headers", _CORS_ANSWER)
        return True

    def check_trusted_origin(self, origin: str) -> bool:
        """Tornado asks this for a request that another origin's page sends."""
        return self.application.access.trusts(origin)

    def data_received(self, chunk: bytes) -> None:
        limit = self.application.max_body_bytes
        self._received += len(chunk)
        try:
            if self._received > PATIENCE * limit:
                raise TooLarge(limit)
            if self.takes_body and self._received <= limit:
                self._hold(self._received)
                self._body += chunk
            else:
                self._body.clear()
        except Refused as exc:
            self._body.clear()
            if not self._finished:
                self._answers_early()
                self.send_error(exc.status_code, exc_info=(type(exc), exc, None))

    def _hold(self, size: int) -> None:
        """Count so many bytes of a body as held. Raises Refused: all bodies together would be over the limit."""
        more = size - self._held
        if more > 0:
            self.application.hold(more)
            self._held = size

    def _release(self) -> None:
        self.application.inflight_bytes -= self._held
        self._held = 0

    def _answers_early(self) -> None:
        """The answer is sent before the request is complete."""
        self.request.connection.context.answered_early = True  # type: ignore[union-attr]

    def on_finish(self) -> None:
        self.application.requests.discard(self)
        self.application.left.discard(self)
        self._release()

    def on_connection_close(self) -> None:
        if self.request._body_future.done() and not self._finished:
            self.application.left.add(self)
        super().on_connection_close()  # ends the wait for the rest of the body
        self.application.requests.discard(self)
        if not self._is_whole:  # else it is accepted or refused in spite of that, and finishes then
            self._release()
            self._body.clear()
            if self.takes_body and self.request.request_time() >= self.application.body_timeout:
                self._count_refusal(408, "timeout", "The request body did not arrive in time", None)

    async def body(self) -> bytes:
        """The JSON text of the request, decompressed.

        Raises:
            Unsupported: by its headers it is not JSON, or is compressed in an unknown way. A body that a web page
                sends must say that it is JSON: no form can, and a browser asks before it sends that elsewhere.
            TooLarge: it is over ``server.max_body_bytes``, as sent or decompressed.
            NotCompressed: it is not compressed as its header says.
        """
        self._is_whole = True
        limit, headers = self.application.max_body_bytes, self.request.headers
        if self._received > limit:
            raise TooLarge(limit)
        content_type = headers.get("Content-Type", "")
        if content_type:
            require_json(content_type)
        elif "Origin" in headers:
            raise Unsupported("The content type of a request with an Origin must be application/json")
        body = bytes(self._body)
        self._body.clear()
        return await decompress(body, headers, limit)

    @functools.cached_property
    def request_id(self) -> str:
        """The client's ``X-Request-ID`` if that is at most 128 safe characters, else a new one."""
        return choose_request_id(self.request.headers.get("X-Request-ID"))

    def reply(self, payload: Mapping[str, Any], status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.finish(_encode(payload) + "\n")  # the line's end is for people with curl

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        """End the answer. A long one counts against ``server.max_inflight_bytes`` until the client has taken it.

        Raises ReadFailed: clients have not taken too many such answers.
        """
        if isinstance(chunk, bytes | str) and len(chunk) >= LONG_ANSWER and self.request.method != "HEAD":
            self.application.hold_answer(len(chunk), self.request.connection.context)  # type: ignore[union-attr]
        return super().finish(chunk)

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Server", SERVER)
        self.set_header("X-Request-ID", self.request_id)
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        if self.application.access.origins:
            self.add_header("Vary", "Origin")
            self._allow_origin()

    def compute_etag(self) -> str | None:
        """None: answers change from one request to the next."""
        return None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """``{"detail": ...}`` for every error."""
        exc_info = kwargs.get("exc_info")
        exc = exc_info[1] if exc_info else None
        status, why, detail, errors = _explain(status_code, exc)
        self._count_refusal(status, why, detail, exc)
        if why in DENIED:
            self._deny(why, detail, exc)
        if self.request.connection.context.answered_early:  # type: ignore[union-attr]
            self.set_header("Connection", "close")
        if status == 503:
            self.set_header("Retry-After", str(RETRY_AFTER))
        if status == 405:
            allowed = [m for m in self.SUPPORTED_METHODS if getattr(type(self), m.lower()) is not _UNIMPLEMENTED]
            self.set_header("Allow", ", ".join(allowed))
        self.reply(self.error_payload(detail, errors), status)

    def _deny(self, why: str, detail: str, exc: BaseException | None) -> None:
        """Count and log what this client may not do, and say how it could."""
        self._answers_early()  # Tornado itself refuses a page of another origin, before prepare()
        request = self.request
        token, challenges = (exc.token, exc.challenges) if isinstance(exc, Denied) else ("", ())
        for challenge in challenges:
            self.add_header("WWW-Authenticate", challenge)
        self.application.metrics.denials.add(
            why,
            detail=detail,
            client=request.remote_ip or "",
            token=token,
            method=request.method or "",
            path=request.path,
            request_id=self.request_id,
        )

    def _count_refusal(self, status: int, why: str, detail: str, exc: BaseException | None) -> None:
        """Count and log the error if it refuses a batch, or a request that was meant to be one."""
        kind: RefusedKind | None = self.batch_kind
        if kind is None:
            if status not in (404, 405) or isinstance(exc, PersistError) or not _is_meant_as_batch(self.request.path):
                return
            kind = "none"
        errors, rows = (exc.errors, exc.rows) if isinstance(exc, InvalidBatch) else ([], None)
        self.application.metrics.refusals.add(self.refusal(kind, status, why, detail, rows, errors))

    def refusal(
        self, kind: RefusedKind, status: int, why: str, detail: str, rows: int | None, errors: Sequence[FieldError]
    ) -> Refusal:
        """What is remembered of a refusal of this request, or of ``rows`` in it."""
        request = self.request
        return Refusal(
            at=datetime.now(UTC),
            kind=kind,
            status=status,
            reason=why,
            detail=detail,
            client=request.remote_ip or "",
            user_agent=request.headers.get("User-Agent", ""),
            request_id=self.request_id,
            path=request.path,
            rows=rows,
            loc=tuple(errors[0]["loc"]) if errors else (),
            msg=errors[0]["msg"] if errors else "",
            token=self.token,
        )

    def error_payload(self, detail: str, errors: list[FieldError]) -> Mapping[str, Any]:
        """The body of an error's answer; a handler may have another :class:`schemas.Error`."""
        return {"detail": detail}

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log a traceback, but only for bugs: the answer tells the client everything else."""
        if isinstance(value, HTTPError | PersistError):
            return
        held = self.application.bugs.take((type(self), typ), time.monotonic())
        if held is not None:  # else a client that has found a bug could fill the disk
            where = {"method": self.request.method, "path": printable(self.request.path), "request_id": self.request_id}
            logger.error("a bug in a request handler", **where, held_back=sum(held), exc_info=(typ, value, tb))


_UNIMPLEMENTED = RequestHandler.get


def choose_request_id(given: str | None) -> str:
    """``given`` if it is at most 128 safe characters, and no token, else a new id."""
    return given if given and _SAFE_ID(given) and TOKEN_PREFIX not in given else f"{_PROCESS}-{next(_numbers):x}"


def _content_length(headers: HTTPHeaders) -> int | None:
    """Bytes of the body, if the client names them."""
    text = headers.get("Content-Length", "")
    if not text.isdecimal():
        return None
    # Python refuses to read numbers of thousands of digits; any of so many is too large.
    return int(text) if len(text) < _DIGITS else sys.maxsize


class GetHandler(Handler):
    """A handler of ``GET``, and so of ``HEAD``: Tornado leaves the body of that answer out."""

    async def head(self, *path: str) -> None:
        answered = self.get(*path)
        assert answered is not None
        await answered


class NotFound(Handler):
    """Any path that is not in the API."""

    scope = None

    def not_found(self) -> None:
        raise HTTPError(404)

    get = head = post = put = patch = delete = options = not_found


#: What else handlers raise, and its status.
_STATUSES: Mapping[type[PersistError], int] = {
    NothingThere: 404,
    CannotDelete: 501,
    NotDeleted: 409,
    BatchRejected: 409,
    SinkUnavailable: 503,
    FlushFailed: 503,
}


def _is_meant_as_batch(path: str) -> bool:
    """Whether a request to a path that takes none may have brought a batch."""
    return path.startswith("/api/v1/persistence") or path.endswith("/batch")


def _explain(status: int, exc: BaseException | None) -> tuple[int, str, str, list[FieldError]]:
    """Status, reason in a word, sentence and wrong fields for what was raised."""
    match exc:
        case InvalidBatch():
            return 422, "invalid", str(exc), exc.errors
        case NotJSON():
            return 400, "not_json", str(exc), []
        case NotAccepting():
            return 503, "not_accepting", str(exc), []
        case InvalidQuery():
            return 422, "query", str(exc), []
        case NoSuchRow():
            return 404, "row", str(exc), []
        case NotReadable():
            return 501, "not_readable", str(exc), []
        case ReadFailed():
            return 503, "unreadable", str(exc), []
        case Refused():
            return exc.status_code, exc.why, exc.detail, []
        case PersistError() if found := next((code for kind, code in _STATUSES.items() if isinstance(exc, kind)), None):
            return found, "", str(exc), []
    match status:
        case 403:  # of Tornado's protection
            return status, "origin", "A web page of another origin may not do this; see server.trusted_origins", []
        case 404:
            return status, "path", "There is nothing at this path", []
        case 405:
            return status, "method", "This path does not take this method", []
        case 500:
            return status, "bug", "Internal server error; the service's log has the details", []
    return status, "malformed", HTTPStatus(status).phrase, []
