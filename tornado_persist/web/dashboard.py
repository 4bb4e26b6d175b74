"""The dashboard: a page, what it loads, and the figures that it shows."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tornado.web import HTTPError

from tornado_persist import __version__
from tornado_persist.history import INTERVAL, SPAN
from tornado_persist.models import KINDS
from tornado_persist.web.base import GetHandler, shown

ASSETS = Path(__file__).parent / "assets"
#: Nothing comes from another host, and nothing that a database or a client has said can run as a script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file of the page."""

    content_type: str
    content: bytes
    etag: str


def load() -> dict[str, Asset]:
    """The files by their paths below ``/dashboard/``, read once, so that no request waits for a disk."""
    assets = {}
    for file in sorted([*ASSETS.glob("*"), *ASSETS.glob("uplot/*")]):  # beside them lies what /docs loads
        if file.suffix in TYPES:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            assets[file.relative_to(ASSETS).as_posix()] = Asset(TYPES[file.suffix], content, etag)
    return assets


class AssetHandler(GetHandler):
    """Answers with a file; a browser that has it is told so."""

    def send(self, name: str) -> None:
        asset = self.application.assets.get(name)
        if asset is None:
            raise HTTPError(404)
        self._etag = asset.etag
        self.set_header("Content-Type", asset.content_type)
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-cache")  # ask each time, so that an upgrade shows at once
        self.finish(asset.content)

    def compute_etag(self) -> str | None:
        return getattr(self, "_etag", None)  # none for an error


class Dashboard(AssetHandler):
    """``GET /dashboard``: how the service is, for people."""

    async def get(self) -> None:
        self.send("dashboard.html")


class DashboardAsset(AssetHandler):
    """``GET /dashboard/…``: what the page loads."""

    async def get(self) -> None:
        self.send(self.request.path.removeprefix("/dashboard/"))


class History(GetHandler):
    """``GET …/history``: the last 15 minutes, and how it is now. Never waits for the sink."""

    async def get(self) -> None:
        app = self.application
        now = datetime.now(UTC)
        journal, waiting = app.journal.stats(), sum(map(app.ingest.pending, KINDS))
        self.set_header("Cache-Control", "no-store")
        self.reply(
            {
                "now": now.timestamp(),
                "version": __version__,
                "started": shown(app.metrics.started),
                "interval_seconds": INTERVAL,
                "span_seconds": SPAN,
                "intake": {"accepting": app.accepting, "problem": app.problem},
                "sink": self._sink(),
                "waiting": {
                    "rows": waiting,
                    "in_memory": app.ingest.in_memory,
                    "max_rows": app.ingest.max_rows,
                    "capacity": app.flusher.capacity,
                    "journal_bytes": journal.bytes,
                    "journal_max_bytes": journal.max_bytes,
                    "journal_records": journal.records,
                    "oldest_seconds": journal.age(now),
                    "next_flush": shown(app.flusher.next_flush),
                    "flush_seconds": app.flusher.interval,
                },
                "accounting": app.metrics.totals.accounting(waiting),
                "samples": app.history.columns(),
                "flushes": [{**asdict(f), "at": shown(f.at)} for f in reversed(app.metrics.flushes)],
                "incidents": [
                    {**asdict(i), "first": shown(i.first), "last": shown(i.last)} for i in app.metrics.incidents
                ],
            }
        )

    def _sink(self) -> dict[str, Any]:
        sink = self.application.flusher.sink
        return {**asdict(sink), "since": shown(sink.since), "retry_in": round(self.application.flusher.retry_in, 1)}
