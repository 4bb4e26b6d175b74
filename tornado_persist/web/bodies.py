"""Request bodies: whether the headers say JSON, and decompression within limits."""

from __future__ import annotations

import asyncio
import re
import zlib

from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError

from tornado_persist.telemetry.refusals import REASONS, printable

#: Members of a gzip body at most; each costs some microseconds, however short it is.
MOST_MEMBERS = 1000
#: Bytes of a compressed body, and of its content, up to which the event loop decompresses it: a few milliseconds.
SMALL = 1 << 16
SMALL_CONTENT = 1 << 20
#: Characters of a Content-Type at most.
LONGEST_TYPE = 256

_PIECE = 1 << 14  # bytes; zlib copies what follows the end of a member, so it gets little at a time
_TYPE = re.compile(r"[ \t]*application/(?:json|[!#$%&'*+.^_`|~0-9a-z-]+\+json)[ \t]*(?:;|\Z)", re.IGNORECASE).match
_PARAMETERS = re.compile(r';([^;="]*)=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)').findall
_ESCAPE = re.compile(r"\\(.)")
_UTF8 = ("utf-8", "utf8", "us-ascii")


class Refused(HTTPError):
    """A batch that the HTTP interface refuses by itself. ``why`` is one of ``refusals.REASONS``."""

    def __init__(self, why: str, detail: str) -> None:
        super().__init__(REASONS[why])
        self.why = why
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class TooLarge(Refused):
    """413"""

    def __init__(self, limit: int) -> None:
        super().__init__("too_large", f"The request body is larger than {limit} bytes")


class Unsupported(Refused):
    """415"""

    def __init__(self, detail: str) -> None:
        super().__init__("content_type", detail)


class NotCompressed(Refused):
    """400"""

    def __init__(self, detail: str) -> None:
        super().__init__("compression", detail)


def require_json(content_type: str) -> None:
    """Raises Unsupported: this Content-Type is not JSON in UTF-8. Upper and lower case are the same."""
    if content_type == "application/json":
        return
    if len(content_type) > LONGEST_TYPE:
        raise Unsupported(f"The Content-Type is longer than {LONGEST_TYPE} characters")
    if not _TYPE(content_type):
        raise Unsupported(f"The content type must be application/json, not {printable(content_type)}")
    for name, charset in _PARAMETERS(content_type):
        plain = _ESCAPE.sub(r"\1", charset[1:-1]) if charset.startswith('"') else charset.rstrip(" \t")
        if name.strip(" \t").lower() == "charset" and plain.lower() not in _UTF8:
            raise Unsupported(f"JSON comes in UTF-8, not in {printable(plain)}")


async def decompress(body: bytes, headers: HTTPHeaders, limit: int) -> bytes:
    """The body without its Content-Encoding; a large one is decompressed in a worker thread.

    Raises:
        Unsupported: the encoding is neither gzip nor deflate.
        TooLarge: the content is over ``limit`` bytes.
        NotCompressed: the body is not what the header says.
    """
    encoding = headers.get("Content-Encoding", "")
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            wbits, members = 31, MOST_MEMBERS
        case "deflate":
            # zlib's format by the standard, raw deflate by some clients. Two bytes tell them apart.
            is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
            wbits, members = (15 if is_zlib else -15), 1
        case _:
            name = printable(encoding)
            raise Unsupported(f"A request body may be compressed with gzip or deflate, not with {name}")
    if len(body) <= SMALL:
        try:
            return _inflate(body, min(limit, SMALL_CONTENT), wbits, members)
        except TooLarge:
            if limit <= SMALL_CONTENT:
                raise
    return await asyncio.to_thread(_inflate, body, limit, wbits, members)


def _inflate(data: bytes, limit: int, wbits: int, members: int) -> bytes:
    """The content of at most so many ``members``, one after the other; never more than ``limit`` bytes."""
    name = "gzip" if wbits > 15 else "deflate"
    view, at, parts, size = memoryview(data), 0, list[bytes](), 0
    try:
        for _ in range(members):
            member = zlib.decompressobj(wbits)
            while not member.eof:
                piece = view[at : at + _PIECE]
                if not piece:
                    raise NotCompressed(f"The request body is a {name} stream that was cut")
                part = member.decompress(piece, limit - size + 1)
                size += len(part)
                if size > limit:
                    raise TooLarge(limit)
                parts.append(part)
                at += len(piece) - len(member.unused_data)
            if at == len(data):
                return b"".join(parts)
    except zlib.error as exc:
        raise NotCompressed(f"The request body is not valid {name} ({exc})") from exc
    if members > 1:
        raise NotCompressed(f"The request body has more than {members} gzip members")
    raise NotCompressed("The request body goes on after the end of its deflate stream")
