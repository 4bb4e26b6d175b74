"""The pages ``/dashboard`` and ``/docs``, and the files that they load; each page has a directory in ``assets``."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from tornado.web import HTTPError

from tornado_persist.web.base import GetHandler

_ASSETS = Path(__file__).parent / "assets"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Nothing loads from another host, and no text from a database or a client can run as a script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self'{images}; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: What Swagger UI needs besides: inline styles, and images in them.
_ALLOWED = {"dashboard": {"styles": "", "images": ""}, "docs": {"styles": " 'unsafe-inline'", "images": " data:"}}
#: Bytes below which compression does not pay.
_SMALL = 1024


class _File(NamedTuple):
    content_type: str
    content: bytes
    packed: bytes | None
    etag: str


class Asset(GetHandler):
    """``GET /dashboard/…`` and ``GET /docs/…``: what a page loads. A browser that has it gets 304."""

    scope = "read"

    async def get(self) -> None:
        page, slash, name = self.request.path.removeprefix("/").partition("/")
        file = await asyncio.to_thread(_find, f"{page}/{name}" if slash else f"{page}/index.html")
        if file is None:
            raise HTTPError(404)
        self._etag = file.etag
        self.set_header("Content-Type", file.content_type)
        self.set_header("Content-Security-Policy", _POLICY.format(**_ALLOWED[page]))
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-cache")  # ask each time, so that an upgrade shows at once
        content = file.content
        if file.packed is not None:
            self.add_header("Vary", "Accept-Encoding")
            if "gzip" in self.request.headers.get("Accept-Encoding", ""):
                self.set_header("Content-Encoding", "gzip")
                content = file.packed
        self.finish(content)

    def compute_etag(self) -> str | None:
        return getattr(self, "_etag", None)  # none for an error


class Page(Asset):
    """``GET /dashboard`` and ``GET /docs``. What they load is named relative to a path without a slash at its end."""

    async def get(self) -> None:
        if (self.request.uri or "").partition("?")[0].endswith("/"):
            self.redirect(".." + self.request.path)
        else:
            await super().get()


def _find(name: str) -> _File | None:
    """The file at this path below ``assets``; None unless it is one of the files there."""
    path = _paths().get(name)
    return None if path is None else _read(path)


@functools.cache
def _paths() -> dict[str, Path]:
    return {path.relative_to(_ASSETS).as_posix(): path for path in _ASSETS.rglob("*") if path.is_file()}


@functools.cache
def _read(path: Path) -> _File:
    """A file, cached at its first use: those of ``/docs`` are two megabytes."""
    content = path.read_bytes()
    content_type = _TYPES.get(path.suffix, "text/plain; charset=utf-8")
    # One tag for the plain and the compressed form, hence a weak one.
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content_type, content, gzip.compress(content, mtime=0) if len(content) >= _SMALL else None, etag)
