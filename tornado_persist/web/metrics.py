"""``GET /metrics``."""

from __future__ import annotations

from tornado_persist.web.base import GetHandler


class Metrics(GetHandler):
    """``GET /metrics``: what Prometheus scrapes. Never waits for the sink."""

    async def get(self) -> None:
        app = self.application
        accept = self.request.headers.get("Accept", "")
        content_type, text = await app.exposition.render(accept, accepting=app.accepting)
        self.set_header("Content-Type", content_type)
        self.finish(text)
