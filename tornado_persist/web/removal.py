"""``DELETE`` of a session or a task, and the cleanup.

Tornado matches a path as it was sent: the path of a session called ``batch`` is ``%62atch``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import ClassVar

from tornado_persist.errors import InvalidQuery, NotDeleted
from tornado_persist.pipeline.removal import Deleted
from tornado_persist.pipeline.retention import Ages
from tornado_persist.records.times import stamp
from tornado_persist.web import queries, schemas
from tornado_persist.web.base import Handler


class DeletesSession(Handler):
    """``DELETE …/sessions/{session_id}``: the session with its tasks and its rejected rows."""

    method_scopes: ClassVar = {"DELETE": "admin"}

    async def delete(self, session_id: str) -> None:
        queries.read(self.request, {})
        queries.require_key(session_id)
        application = self.application
        self.reply(_deleted(await application.remover.delete_session(session_id, application.flush_timeout)))


class DeletesTask(Handler):
    """``DELETE …/sessions/{session_id}/tasks/{task_id}``: the task and its rejected rows."""

    method_scopes: ClassVar = {"DELETE": "admin"}

    async def delete(self, session_id: str, task_id: str) -> None:
        queries.read(self.request, {})
        queries.require_key(session_id, task_id)
        application = self.application
        self.reply(_deleted(await application.remover.delete_task(session_id, task_id, application.flush_timeout)))


class Cleanup(Handler):
    """``POST …/sessions/cleanup``: delete old sessions now, by the ages given, or else by those of ``[retention]``."""

    scope = "admin"

    async def post(self) -> None:
        given = queries.read(self.request, _CLEANUP)
        if self._received:
            raise InvalidQuery("Parameters go into the query (?completed_days=90), not into a body")
        retention = self.application.retention
        asked = {name: given[f"{name}_days"] * _DAY for name in Ages._fields if f"{name}_days" in given}
        ages = Ages(**asked) if asked else retention.ages
        if not any(ages):
            raise NotDeleted(
                "Nothing says what is old: give completed_days, failed_days or orphans_days, or set [retention]"
            )
        now, dry_run = datetime.now(UTC), given.get("dry_run", False)
        began = time.monotonic()
        cleaned = await retention.clean(ages, now, dry_run=dry_run, trust_clock=given.get("trust_clock", False))
        before = {name: stamp(expiry.before) for name, expiry in ages.expiries(now).items()}
        answer: schemas.Cleaned = {
            "status": "dry_run" if dry_run else "cleaned",
            "rules": {
                name: {"before": before[name], "sessions": it.sessions, "tasks": it.tasks, "waiting": it.waiting}
                for name, it in cleaned.items()
            },
            "sessions": sum(it.sessions for it in cleaned.values()),
            "tasks": sum(it.tasks for it in cleaned.values()),
            "duration_ms": round((time.monotonic() - began) * 1000),
        }
        self.reply(answer)


_DAY = 86_400  # seconds
_CLEANUP: dict[str, queries.Reader] = {
    "completed_days": queries.days,
    "failed_days": queries.days,
    "orphans_days": queries.days,
    "dry_run": queries.flag,
    "trust_clock": queries.flag,
}


def _deleted(deleted: Deleted) -> schemas.Deleted:
    return {
        "status": "deleted",
        "sessions_deleted": deleted.sessions,
        "tasks_deleted": deleted.tasks,
        "rejected_dropped": deleted.rejected,
        "duration_ms": deleted.duration_ms,
    }
