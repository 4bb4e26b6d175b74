"""What the dashboard shows."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tornado_persist import __version__
from tornado_persist.records.models import KINDS
from tornado_persist.web.base import GetHandler, shown
from tornado_persist.web.samples import INTERVAL, SPAN


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
