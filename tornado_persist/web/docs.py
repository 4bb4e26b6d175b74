"""The description of the interface, for programs and for people: ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
from pathlib import Path

from tornado.web import HTTPError

from tornado_persist.web.base import GetHandler
from tornado_persist.web.description import Limits, describe

_ASSETS = Path(__file__).parent / "assets" / "swagger-ui"
_FILES = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "LICENSE": "text/plain; charset=utf-8",
    "NOTICE": "text/plain; charset=utf-8",
    "swagger-ui-bundle.js.LICENSE.txt": "text/plain; charset=utf-8",
}
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tornado-persist: HTTP interface</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="docs"><noscript>The same is in <a href="openapi.json">openapi.json</a>.</noscript></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
"""
#: Nothing from elsewhere, and no script but those two files.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OpenAPI(GetHandler):
    """``GET /openapi.json``: the description, with the limits as they are now."""

    async def get(self) -> None:
        self.finish(await asyncio.to_thread(_described, self.application.limits))


class Page(GetHandler):
    """``GET /docs``: the description as a page that needs nothing from elsewhere."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(_PAGE)


class Asset(GetHandler):
    """``GET /docs/…``: what the page is made of."""

    async def get(self, name: str = "") -> None:
        if name == "start.js":
            content, compressed, kind = _START.encode(), None, "text/javascript; charset=utf-8"
        elif name in _FILES:
            content, compressed = await asyncio.to_thread(_read, name)
            kind = _FILES[name]
        else:
            raise HTTPError(404)
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "public, max-age=3600")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Vary", "Accept-Encoding")
        if compressed is not None and "gzip" in self.request.headers.get("Accept-Encoding", ""):
            self.set_header("Content-Encoding", "gzip")
            content = compressed
        self.finish(content)

    async def head(self, name: str = "") -> None:
        await self.get(name)


@functools.lru_cache(maxsize=4)
def _described(limits: Limits) -> str:
    """The description as text; making it takes long enough to be kept away from the event loop."""
    return json.dumps(describe(limits), ensure_ascii=False) + "\n"


@functools.cache
def _read(name: str) -> tuple[bytes, bytes]:
    """The file as it is, and compressed."""
    content = (_ASSETS / name).read_bytes()
    return content, gzip.compress(content, mtime=0)
