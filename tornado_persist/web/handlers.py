"""The endpoints."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from tornado_persist import __version__
from tornado_persist.errors import FieldError, NotAccepting
from tornado_persist.pipeline.flusher import Flushed
from tornado_persist.pipeline.ingest import Accepted
from tornado_persist.records.models import PLURALS, Kind
from tornado_persist.web.base import RETRY_AFTER, GetHandler, Handler, shown


class Root(GetHandler):
    """``GET /``: that the service runs."""

    async def get(self) -> None:
        self.reply({"service": "Persistence Service", "status": "running", "version": __version__})


class Health(GetHandler):
    """``GET /health``: whether the service and its database are well."""

    async def get(self) -> None:
        pending = self.application.ingest.pending
        database = await self.application.flusher.sink_healthy()
        payload = {
            "status": "healthy" if database and self.application.accepting else "unhealthy",
            "database": "healthy" if database else "unhealthy",
            "buffer": {
                "sessions_count": pending("session"),
                "tasks_count": pending("task"),
                "last_flush": shown(self.application.metrics.last_flush),
            },
        }
        self.reply(payload, 200 if payload["status"] == "healthy" else 503)


class Live(GetHandler):
    """``GET /health/live``: that the process answers."""

    async def get(self) -> None:
        self.reply({"status": "alive"})


class Ready(GetHandler):
    """``GET /health/ready``: whether a batch would be accepted, be the database up or down."""

    async def get(self) -> None:
        self.application.check_accepting()
        self.reply({"status": "ready"})

    def error_payload(self, detail: str, errors: list[FieldError]) -> dict[str, Any]:
        return {"status": "not ready", "detail": detail}


class BatchHandler(Handler):
    """Takes a batch of one kind."""

    takes_body = True
    kind: ClassVar[Kind]

    def prepare(self) -> None:
        super().prepare()
        # Asked before the body comes in as well: a request that began before the shutdown is finished, later ones are
        # refused, and that has to be decided at the same moment for all of a request.
        self._refused: NotAccepting | None = None
        try:
            self.application.check_accepting()
        except NotAccepting as exc:
            self._refused = exc

    async def post(self) -> None:
        if self._refused:
            raise self._refused
        accepted = await self.application.ingest.accept(self.kind, self.body())
        self.reply(acknowledgement(accepted))

    def error_payload(self, detail: str, errors: list[FieldError]) -> dict[str, Any]:
        return {"detail": detail, "status": "rejected", "count": 0, "errors": errors}


def acknowledgement(accepted: Accepted) -> dict[str, Any]:
    """What is said to the client of a batch that was taken."""
    return {"status": "accepted", "count": accepted.count, "timestamp": accepted.at}


class SessionsBatch(BatchHandler):
    """``POST …/sessions/batch``."""

    kind = "session"


class TasksBatch(BatchHandler):
    """``POST …/tasks/batch``."""

    kind = "task"


class Flush(Handler):
    """``POST …/flush``: when it answers ``flushed``, all that was accepted before is in the sink."""

    async def post(self) -> None:
        flushed = await self.application.flusher.flush(self.application.flush_timeout)
        payload = _flush_payload(flushed)
        if flushed.error is None:
            self.reply(payload)
        else:
            self.set_header("Retry-After", str(RETRY_AFTER))
            self.reply({**payload, "status": "error", "detail": str(flushed.error)}, 503)

    def error_payload(self, detail: str, errors: list[FieldError]) -> dict[str, Any]:
        return {**_flush_payload(Flushed()), "status": "error", "detail": detail}


def _flush_payload(flushed: Flushed) -> dict[str, Any]:
    return {
        "status": "flushed",
        "sessions_written": flushed.sessions,
        "tasks_written": flushed.tasks,
        "rows_rejected": flushed.rejected,
        "duration_ms": flushed.duration_ms,
    }


class Stats(GetHandler):
    """``GET …/stats``: what waits and what was done."""

    async def get(self) -> None:
        flusher, metrics = self.application.flusher, self.application.metrics
        now = datetime.now(UTC)
        journal = self.application.journal.stats()
        pending = {kind: self.application.ingest.pending(kind) for kind in PLURALS}
        total = sum(pending.values())
        self.reply(
            {
                "buffer": {
                    **{f"{PLURALS[kind]}_count": rows for kind, rows in pending.items()},
                    "total_count": total,
                    "capacity": flusher.capacity,
                    "usage_percent": round(100 * total / flusher.capacity, 1),
                },
                "flush_info": {
                    "last_flush_time": shown(metrics.last_flush),
                    "next_flush_time": shown(flusher.next_flush),
                    "flush_count_today": metrics.flush_count_today(now),
                    "average_flush_duration_ms": metrics.average_flush_ms(),
                },
                "performance": {
                    "total_sessions_written": metrics.written("session"),
                    "total_tasks_written": metrics.written("task"),
                    "total_flush_count": metrics.flush_count,
                    "average_batch_size": metrics.average_batch_size(),
                    "uptime_seconds": int((now - metrics.started).total_seconds()),
                },
                "accounting": metrics.totals.accounting(total),
                "journal": {
                    "bytes": journal.bytes,
                    "records": journal.records,
                    "oldest_seconds": round(journal.age(now), 3),
                    "sync": journal.sync,
                },
            }
        )
