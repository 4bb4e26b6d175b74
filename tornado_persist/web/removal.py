"""``DELETE`` of a session or a task. Tornado matches a path as it was sent: ``%62atch`` is a session called batch."""

from __future__ import annotations

import unicodedata

from tornado_persist.errors import NothingThere
from tornado_persist.pipeline.removal import Deleted
from tornado_persist.records.models import MAX_KEY
from tornado_persist.web import queries, schemas
from tornado_persist.web.base import Handler


class DeletesSession(Handler):
    """``DELETE …/sessions/{session_id}``: the session with its tasks and its rejected rows."""

    async def delete(self, session_id: str) -> None:
        queries.read(self.request, {})
        _refuse_no_key(session_id)
        application = self.application
        self.reply(_deleted(await application.remover.delete_session(session_id, application.flush_timeout)))


class DeletesTask(Handler):
    """``DELETE …/sessions/{session_id}/tasks/{task_id}``: the task and its rejected rows."""

    async def delete(self, session_id: str, task_id: str) -> None:
        queries.read(self.request, {})
        _refuse_no_key(session_id, task_id)
        application = self.application
        self.reply(_deleted(await application.remover.delete_task(session_id, task_id, application.flush_timeout)))


def _refuse_no_key(*parts: str) -> None:
    """No sink is asked for what cannot be a key: some refuse a NUL character, say."""
    for part in parts:
        if len(part) > MAX_KEY or any(unicodedata.category(character) == "Cc" for character in part):
            raise NothingThere(f"There is no such key: it has control characters, or more than {MAX_KEY} characters")


def _deleted(deleted: Deleted) -> schemas.Deleted:
    return {
        "status": "deleted",
        "sessions_deleted": deleted.sessions,
        "tasks_deleted": deleted.tasks,
        "rejected_dropped": deleted.rejected,
        "duration_ms": deleted.duration_ms,
    }
