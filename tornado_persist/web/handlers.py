"""The endpoints that back ends and monitors call: batches, flush, figures, health."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar, cast

from tornado_persist import __version__
from tornado_persist.errors import FieldError, NotAccepting
from tornado_persist.pipeline.flusher import Flushed
from tornado_persist.pipeline.health import HealthSnapshot
from tornado_persist.records.models import Kind
from tornado_persist.records.times import stamp
from tornado_persist.telemetry.clients import HEADER
from tornado_persist.web import schemas
from tornado_persist.web.answers import (
    accounting,
    client_drops,
    instance,
    refused,
    reloads,
    rounded,
    shown,
    sink,
    waiting,
)
from tornado_persist.web.base import RETRY_AFTER, GetHandler, Handler


class Root(GetHandler):
    """``GET /``: that the service runs."""

    scope = None

    async def get(self) -> None:
        running: schemas.Running = {"service": "Persistence Service", "status": "running", "version": __version__}
        self.reply(running)


class Health(GetHandler):
    """``GET /health``: whether the service and its database are healthy; figures only for who may read."""

    scope = None

    async def get(self) -> None:
        snapshot = await self.application.health.ping()
        status = 200 if snapshot.healthy else 503
        brief: schemas.BriefHealth = {
            "status": "healthy" if snapshot.healthy else "unhealthy",
            "database": "healthy" if snapshot.sink.up else "unhealthy",
        }
        if not self.application.access.may(self.request.headers, "read"):
            self.reply(brief, status)
            return
        health: schemas.Health = {
            **brief,
            "buffer": {
                "sessions_count": snapshot.waiting.sessions,
                "tasks_count": snapshot.waiting.tasks,
                "last_flush": shown(self.application.metrics.last_flush),
            },
            "reason": snapshot.reason,
            "accepting": snapshot.accepting,
            "sink": sink(snapshot),
            "waiting": waiting(snapshot),
            "disk_free_bytes": snapshot.disk_free,
            "rejected_open_rows": snapshot.open_rows,
            "refused": refused(self.application.metrics.refusals),
            "reloads": reloads(snapshot),
            "caution": snapshot.caution,
            "instance": instance(snapshot),
        }
        self.reply(health, status)


class Live(GetHandler):
    """``GET /health/live``: that the process answers."""

    scope = None

    async def get(self) -> None:
        alive: schemas.Alive = {"status": "alive"}
        self.reply(alive)


class Ready(GetHandler):
    """``GET /health/ready``: whether a batch would be accepted, whether or not the database is up."""

    scope = None

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
    scope = "write"

    def prepare(self) -> None:
        # Asked once, before the body arrives: the shutdown finishes requests that have begun, and refuses later ones.
        self._problem = self.application.ingest.problem
        self.takes_body = self.request.method == "POST" and not self._problem
        super().prepare()

    async def post(self) -> None:
        if self._problem:
            raise NotAccepting(self._problem)
        after = self.request.headers.get("X-Persist-After", "")
        at = self.request.headers.get("X-Persist-At", "")
        batch = await self.application.ingest.accept(self.kind, await self.body(), after=after, at=at)
        if dropped := self.request.headers.get(HEADER):
            self._note_dropped(dropped)
        accepted: schemas.Accepted = {"status": "accepted", "count": batch.count, "timestamp": batch.at}
        if batch.ignored:
            accepted["ignored"] = list(batch.ignored)
            self.application.metrics.dropped.add(self.kind, batch.ignored_rows, batch.ignored)
        if batch.rejected:
            accepted["rejected"] = batch.rejected
            accepted["errors"] = [schemas.WrongField(loc=error["loc"], msg=error["msg"]) for error in batch.errors]
            told = self.refusal(self.kind, 200, "set_aside", "", batch.rejected, batch.errors)
            self.application.metrics.refusals.set_aside(told)
        self.reply(accepted)

    def _note_dropped(self, header: str) -> None:
        """Count what the client says it has dropped. Only here: a refused request will say it again."""
        request = self.request
        client, program = request.remote_ip or "", request.headers.get("User-Agent", "")
        self.application.metrics.client_drops.report(header, datetime.now(UTC), client, program)

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

    scope = "flush"

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

    scope = "read"

    async def get(self) -> None:
        self.reply(self._stats(await self.application.health.look()))

    def _stats(self, snapshot: HealthSnapshot) -> schemas.Stats:
        metrics, now, waits = self.application.metrics, snapshot.at, snapshot.waiting
        return {
            "buffer": {
                "sessions_count": waits.sessions,
                "tasks_count": waits.tasks,
                "total_count": waits.rows,
                "in_memory": waits.in_memory,
                "max_rows": waits.max_rows,
                "memory_bytes": waits.memory_bytes,
                "memory_max_bytes": waits.memory_max_bytes,
                "capacity": waits.capacity,
                "usage_percent": round(100 * waits.rows / waits.capacity, 1),
            },
            "flush_info": {
                "last_flush_time": shown(metrics.last_flush),
                "next_flush_time": stamp(waits.next_flush),
                "flush_count_today": metrics.flush_count_today(now),
                "average_flush_duration_ms": metrics.average_flush_ms(),
            },
            "performance": {
                "total_sessions_written": metrics.written("session"),
                "total_tasks_written": metrics.written("task"),
                "total_flush_count": metrics.flush_count,
                "average_batch_size": metrics.average_batch_size(),
                "uptime_seconds": int(snapshot.uptime),
            },
            "accounting": accounting(metrics.totals, waits.rows),
            "journal": {
                "bytes": waits.journal_bytes,
                "max_bytes": waits.journal_max_bytes,
                "full_in_seconds": rounded(waits.journal_full_in),
                "records": waits.journal_records,
                "oldest_seconds": round(waits.oldest_seconds, 3),
                "sync": cast(schemas.Sync, snapshot.sync),
            },
            "refused": refused(metrics.refusals),
            "deleted": {
                "sessions": metrics.deletions.total("session"),
                "tasks": metrics.deletions.total("task"),
                "last_retention": shown(metrics.deletions.last_run),
                "retention_problem": metrics.deletions.problem,
            },
            "client_drops": client_drops(metrics.client_drops),
            "health": {
                "instance": snapshot.instance.name,
                "status": "healthy" if snapshot.healthy else "unhealthy",
                "reason": snapshot.reason,
                "sink": snapshot.sink.name,
                "sink_address": snapshot.sink.address,
                "disk_free_bytes": snapshot.disk_free,
                "rejected_open_rows": snapshot.open_rows,
            },
        }
