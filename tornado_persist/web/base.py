"""What every handler shares: one shape of errors, one way of reading a body within its limits, JSON answers."""

from __future__ import annotations

import functools
import json
import sys
import zlib
from datetime import datetime
from email.message import Message
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError, RequestHandler, stream_request_body

from tornado_persist import __version__
from tornado_persist.errors import BatchRefused, FieldError, InvalidBatch, NotAccepting, NotJSON
from tornado_persist.records.times import stamp
from tornado_persist.telemetry import log
from tornado_persist.web import requestid

if TYPE_CHECKING:
    from tornado_persist.web.app import Api

logger = log.get(__name__)

_encode = json.JSONEncoder(ensure_ascii=False).encode

#: Seconds after which a client that got 503 should try again.
RETRY_AFTER = 5
#: A body over the limit is read to its end and thrown away, so that the client can read the answer instead of meeting a
#: reset connection; but not past this many times the limit.
PATIENCE = 8
#: Digits of a length that nothing can have.
_DIGITS = 19


class TooLarge(HTTPError):
    """413"""

    def __init__(self, limit: int) -> None:
        super().__init__(413, reason=None)
        self.detail = f"The request body is larger than {limit} bytes"


class Unsupported(HTTPError):
    """415"""

    def __init__(self, detail: str) -> None:
        super().__init__(415)
        self.detail = detail


@stream_request_body
class Handler(RequestHandler):
    """Answers JSON, errors too. Bodies are streamed, so that a limit is kept while one comes in."""

    #: Whether the request body is kept for :meth:`body`; otherwise it is thrown away as it comes.
    takes_body: ClassVar[bool] = False
    application: Api

    def initialize(self) -> None:
        self._chunks: list[bytes] = []
        self._received = 0

    def prepare(self) -> None:
        log.request_id.set(self.request_id)
        self.application.requests.add(self)
        limit = self.application.max_body_bytes
        if (content_length(self.request.headers) or 0) > PATIENCE * limit:
            raise TooLarge(limit)

    def data_received(self, chunk: bytes) -> None:
        limit = self.application.max_body_bytes
        self._received += len(chunk)
        if self._received > limit:
            self._chunks.clear()
            if self._received > PATIENCE * limit and not self._finished:
                self.send_error(413, exc_info=(TooLarge, TooLarge(limit), None))
        elif self.takes_body:
            self._chunks.append(chunk)

    def on_finish(self) -> None:
        self.application.requests.discard(self)

    def on_connection_close(self) -> None:
        super().on_connection_close()  # ends the wait for the rest of the body
        self.application.requests.discard(self)

    def body(self) -> bytes:
        """The JSON text of the request, decompressed.

        Raises:
            Unsupported: by its headers it is not JSON, or is compressed in another way than gzip.
            TooLarge: it is over ``server.max_body_bytes``, as sent or decompressed.
            NotJSON: it is not the gzip stream that its header says it is.
        """
        limit = self.application.max_body_bytes
        if self._received > limit:
            raise TooLarge(limit)
        content_type = self.request.headers.get("Content-Type", "")
        if content_type:
            _require_json(content_type)
        body = b"".join(self._chunks)
        self._chunks.clear()
        match self.request.headers.get("Content-Encoding", "identity").strip().lower():
            case "identity" | "":
                return body
            case "gzip" | "x-gzip":
                return _gunzip(body, limit)
            case other:
                raise Unsupported(f"A request body may be compressed with gzip, not with {other}")

    @functools.cached_property
    def request_id(self) -> str:
        """The client's own id of this request, or one that was made for it."""
        return requestid.choose(self.request.headers.get("X-Request-ID"))

    def reply(self, payload: dict[str, Any], status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.finish(to_json(payload))

    def set_default_headers(self) -> None:
        for name, value in common_headers(self.request_id).items():
            self.set_header(name, value)

    def compute_etag(self) -> str | None:
        """None: hardly an answer here is worth caching."""
        return None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """``{"detail": ...}`` for every error, whatever raised it."""
        exc_info = kwargs.get("exc_info")
        status, detail, errors = _explain(status_code, exc_info[1] if exc_info else None)
        if status == 503:
            self.set_header("Retry-After", str(RETRY_AFTER))
        if status == 405:
            allowed = [m for m in self.SUPPORTED_METHODS if getattr(type(self), m.lower()) is not _UNIMPLEMENTED]
            self.set_header("Allow", ", ".join(allowed))
        self.reply(self.error_payload(detail, errors), status)

    def error_payload(self, detail: str, errors: list[FieldError]) -> dict[str, Any]:
        """The answer's body for an error; a handler may add to it."""
        return {"detail": detail}

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """A traceback for bugs alone: the client hears of everything else in the answer."""
        if not isinstance(value, HTTPError | BatchRefused):
            where = {"method": self.request.method, "path": self.request.path, "request_id": self.request_id}
            logger.error("a bug in a request handler", **where, exc_info=(typ, value, tb))


_UNIMPLEMENTED = RequestHandler.get


def common_headers(request_id: str) -> dict[str, str]:
    """The headers of every answer."""
    return {
        "Content-Type": "application/json; charset=utf-8",
        "Server": f"persistd/{__version__}",
        "X-Request-ID": request_id,
    }


def content_length(headers: HTTPHeaders) -> int | None:
    """Bytes that the body will have, if the client says so."""
    text = headers.get("Content-Length", "")
    if not text.isdecimal():
        return None
    # Python refuses to read numbers of thousands of digits; any of so many is too large.
    return int(text) if len(text) < _DIGITS else sys.maxsize


def to_json(payload: dict[str, Any]) -> str:
    """An answer's content. The line's end is for people with curl."""
    return _encode(payload) + "\n"


class GetHandler(Handler):
    """A handler of ``GET``, and so of ``HEAD``: Tornado leaves the body of that answer out."""

    async def get(self) -> None:
        raise NotImplementedError

    async def head(self) -> None:
        await self.get()


class NotFound(Handler):
    """Any path that is not in the API."""

    def not_found(self) -> None:
        raise HTTPError(404)

    get = head = post = put = patch = delete = options = not_found


def shown(at: datetime | None) -> str | None:
    """A time as it stands in answers: ISO 8601 with microseconds and ``+00:00``."""
    return stamp(at) if at else None


def _explain(status: int, exc: BaseException | None) -> tuple[int, str, list[FieldError]]:
    """Status, sentence and wrong fields for what was raised."""
    match exc:
        case InvalidBatch():
            return 422, str(exc), exc.errors
        case NotJSON():
            return 400, str(exc), []
        case NotAccepting():
            return 503, str(exc), []
        case TooLarge() | Unsupported():
            return exc.status_code, exc.detail, []
    match status:
        case 404:
            return status, "There is nothing at this path", []
        case 405:
            return status, "This path does not take this method", []
        case 500:
            return status, "Internal server error; the service's log has the details", []
    return status, HTTPStatus(status).phrase, []


def _require_json(content_type: str) -> None:
    if content_type == "application/json":
        return
    header = Message()
    header["Content-Type"] = content_type
    kind = header.get_content_type()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Unsupported(f"The content type must be application/json, not {kind}")
    charset = header.get_content_charset("utf-8")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Unsupported(f"JSON comes in UTF-8, not in {charset}")


def _gunzip(data: bytes, limit: int) -> bytes:
    """Decompress one or more gzip members, never to more than ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    try:
        while data:
            member = zlib.decompressobj(wbits=31)
            part = member.decompress(data, limit - size + 1)
            size += len(part)
            if size > limit:
                raise TooLarge(limit)
            if not member.eof:
                raise NotJSON("The request body is a gzip stream that was cut")
            parts.append(part)
            data = member.unused_data
    except zlib.error as exc:
        raise NotJSON(f"The request body is not valid gzip ({exc})") from exc
    return b"".join(parts)
