"""The endpoints that back ends and monitors call: batches, flush, figures, health."""

from __future__ import annotations

from typing import ClassVar, cast

from tornado_persist import __version__
from tornado_persist.errors import FieldError, NotAccepting
from tornado_persist.pipeline.flusher import Flushed
from tornado_persist.records.models import Kind
from tornado_persist.records.times import stamp
from tornado_persist.web import schemas
from tornado_persist.web.base import RETRY_AFTER, GetHandler, Handler, accounting, refused, shown


class Root(GetHandler):
    """``GET /``: that the service runs."""

    async def get(self) -> None:
        running: schemas.Running = {"service": "Persistence Service", "status": "running", "version": __version__}
        self.reply(running)


class Health(GetHandler):
    """``GET /health``: whether the service and its database are healthy."""

    async def get(self) -> None:
        snapshot = await self.application.health.ping()
        health: schemas.Health = {
            "status": "healthy" if snapshot.healthy else "unhealthy",
            "database": "healthy" if snapshot.sink.up else "unhealthy",
            "buffer": {
                "sessions_count": snapshot.waiting.sessions,
                "tasks_count": snapshot.waiting.tasks,
                "last_flush": shown(self.application.metrics.last_flush),
            },
        }
        self.reply(health, 200 if snapshot.healthy else 503)


class Live(GetHandler):
    """``GET /health/live``: that the process answers."""

    async def get(self) -> None:
        alive: schemas.Alive = {"status": "alive"}
        self.reply(alive)


class Ready(GetHandler):
    """``GET /health/ready``: whether a batch would be accepted, whether or not the database is up."""

    async def get(self) -> None:
        problem = self.application.health.snapshot().problem
        if problem:
            raise NotAccepting(problem)
        ready: schemas.Ready = {"status": "ready"}
        self.reply(ready)

    def error_payload(self, detail: str, errors: list[FieldError]) -> schemas.NotReady:
        return {"status": "not ready", "detail": detail}


class BatchHandler(Handler):
    """Accepts a batch of one kind."""

    kind: ClassVar[Kind]

    def prepare(self) -> None:
        super().prepare()
        # Asked once, before the body arrives: the shutdown finishes requests that have begun, and refuses later ones.
        self._problem = self.application.ingest.problem
        self.takes_body = not self._problem

    async def post(self) -> None:
        if self._problem:
            raise NotAccepting(self._problem)
        batch = await self.application.ingest.accept(self.kind, await self.body())
        accepted: schemas.Accepted = {"status": "accepted", "count": batch.count, "timestamp": batch.at}
        self.reply(accepted)

    def error_payload(self, detail: str, errors: list[FieldError]) -> schemas.Rejected:
        return {"detail": detail, "status": "rejected", "count": 0, "errors": errors}


class SessionsBatch(BatchHandler):
    """``POST …/sessions/batch``."""

    kind = batch_kind = "session"


class TasksBatch(BatchHandler):
    """``POST …/tasks/batch``."""

    kind = batch_kind = "task"


class Flush(Handler):
    """``POST …/flush``: when it answers ``flushed``, all rows accepted before it are in the sink or rejected."""

    async def post(self) -> None:
        flushed = await self.application.flusher.flush(self.application.flush_timeout)
        if flushed.error is None:
            self.reply(_flushed(flushed))
        else:
            self.set_header("Retry-After", str(RETRY_AFTER))
            self.reply(_flush_error(flushed, str(flushed.error)), 503)

    def error_payload(self, detail: str, errors: list[FieldError]) -> schemas.FlushError:
        return _flush_error(Flushed(), detail)


def _flushed(flushed: Flushed) -> schemas.Flushed:
    return {
        "status": "flushed",
        "sessions_written": flushed.sessions,
        "tasks_written": flushed.tasks,
        "rows_rejected": flushed.rejected,
        "duration_ms": flushed.duration_ms,
    }


def _flush_error(flushed: Flushed, detail: str) -> schemas.FlushError:
    return {**_flushed(flushed), "status": "error", "detail": detail}


class Stats(GetHandler):
    """``GET …/stats``: what waits and what was done."""

    async def get(self) -> None:
        self.reply(self._stats())

    def _stats(self) -> schemas.Stats:
        metrics, snapshot = self.application.metrics, self.application.health.snapshot()
        now, waiting = snapshot.at, snapshot.waiting
        return {
            "buffer": {
                "sessions_count": waiting.sessions,
                "tasks_count": waiting.tasks,
                "total_count": waiting.rows,
                "capacity": waiting.capacity,
                "usage_percent": round(100 * waiting.rows / waiting.capacity, 1),
            },
            "flush_info": {
                "last_flush_time": shown(metrics.last_flush),
                "next_flush_time": stamp(snapshot.next_flush),
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
            "accounting": accounting(metrics.totals, waiting.rows),
            "journal": {
                "bytes": waiting.journal_bytes,
                "records": waiting.journal_records,
                "oldest_seconds": round(waiting.oldest_seconds, 3),
                "sync": cast(schemas.Sync, snapshot.sync),
            },
            "refused": refused(metrics.refusals),
        }
