"""Reading rows back: sessions and tasks, one or a page of them, and what is unfinished."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import urlencode

from tornado_persist.errors import InvalidQuery, NoSuchRow
from tornado_persist.pipeline.reads import encode
from tornado_persist.records.models import KEYS, Kind
from tornado_persist.records.queries import FINISHED, SHOWN, Query
from tornado_persist.web import queries, removal
from tornado_persist.web.base import GetHandler, Handler

#: Rows of a page, if the request does not say, and at most.
USUAL_LIMIT, MOST_ROWS = 100, 1000
#: Unfinished tasks of one answer, at most.
MOST_UNFINISHED = 10_000
#: Parameters that filter by a field's value, and those that name the earliest time of an update.
FILTERS: Mapping[Kind, tuple[str, ...]] = {
    "session": ("status", "llm_provider"),
    "task": ("status", "batch_id", "sheet_name", "column_name"),
}
SINCE = {"updated_since": "updated_at", "created_since": "created_at"}
_FRESH: Mapping[str, queries.Reader] = {"fresh": queries.flag}


def make_token(query: Query, key: tuple[str, ...]) -> str:
    """What ``after`` takes for the rows after ``key``; good for the same conditions alone."""
    return base64.urlsafe_b64encode(json.dumps([_conditions(query), *key]).encode()).decode().rstrip("=")


def read_token(query: Query, token: str) -> tuple[str, ...]:
    """The key in a token. Raises InvalidQuery: it is none, or of another query."""
    try:
        found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise InvalidQuery("after is not what an answer gave as next") from None
    keys = len(KEYS[query.kind])
    if not isinstance(found, list) or len(found) != keys + 1 or not all(isinstance(part, str) for part in found):
        raise InvalidQuery("after is not what an answer gave as next")
    if found[0] != _conditions(query):
        raise InvalidQuery("after is of a query with other conditions")
    key = tuple(found[1:])
    try:
        queries.require_key(*key)
    except NoSuchRow:
        raise InvalidQuery("after is not what an answer gave as next") from None
    return key


def _conditions(query: Query) -> str:
    parts = [query.kind, *(sorted(map(repr, part.items())) for part in (query.where, query.without, query.since))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class Reads(Handler):
    """A handler of reads."""

    scope = "read"

    async def freshen(self, fresh: bool) -> None:
        if fresh:
            await self.application.reads.freshen(self.application.flush_timeout)


class ReadHandler(Reads, GetHandler):
    """A handler of ``GET``."""

    async def reply_row(self, kind: Kind, key: tuple[str, ...]) -> None:
        """One row, or 404."""
        given = queries.read(self.request, {"fields": queries.some_of(SHOWN[kind]), **_FRESH})
        queries.require_key(*key)
        await self.freshen(given.get("fresh", True))
        row = await self.application.reads.row(kind, key, given.get("fields", ()))
        if row is None:
            raise NoSuchRow(f"There is no such {kind}")
        row["pending"] = self.application.reads.pending
        self.finish(encode(row) + b"\n")


class ListHandler(ReadHandler):
    """A page of rows, and how to get the next."""

    kind: ClassVar[Kind]
    filters: ClassVar[tuple[str, ...]]
    #: Unless the request says otherwise.
    fresh = False

    def conditions(self, *path: str) -> dict[str, Any]:
        """What the path says of the rows: arguments of a query."""
        return {}

    async def get(self, *path: str) -> None:
        given = queries.read(self.request, self._readers())
        queries.require_key(*path)
        stated = self.conditions(*path)
        where = {name: given[name] for name in self.filters if name in given}
        query = Query(
            self.kind,
            stated.pop("where", {})
            | {name: value if isinstance(value, tuple) else (value,) for name, value in where.items()},
            since={field: given[name] for name, field in SINCE.items() if name in given},
            limit=given.get("limit", USUAL_LIMIT),
            fields=given.get("fields", ()),
            **stated,
        )
        if given.get("after"):  # an empty one is that of a client's first round
            query = replace(query, after=read_token(query, given["after"]))
        await self.freshen(given.get("fresh", self.fresh))
        reads = self.application.reads
        found = await reads.page(query, counts=given.get("counts", False), total=given.get("count", False))
        rest: dict[str, object] = {"next": None, "next_url": None, "pending": reads.pending}
        if found.last:
            rest["next"] = token = make_token(query, found.last)
            same = {name: values[0] for name, values in self.request.query_arguments.items()}
            rest["next_url"] = f"{self.request.path}?{urlencode({**same, 'after': token})}"
        if found.total is not None:
            rest["total"] = found.total
        self.finish(b'{"items": ' + _join(found.rows) + b", " + json.dumps(rest).encode()[1:] + b"\n")

    def _readers(self) -> dict[str, queries.Reader]:
        counts = {"counts": queries.flag} if self.kind == "session" else {}
        statuses = {"status": queries.some_of(self.application.reads.statuses)}
        return {
            **{name: statuses.get(name, queries.any_text) for name in self.filters},
            **dict.fromkeys(SINCE, queries.time),
            **counts,
            "limit": queries.number(MOST_ROWS),
            "after": queries.any_text,
            "count": queries.flag,
            "fields": queries.some_of(SHOWN[self.kind]),
            **_FRESH,
        }


def _join(rows: Sequence[bytes]) -> bytes:
    return b"[" + b", ".join(rows) + b"]"


class Sessions(ListHandler):
    """``GET …/sessions``: in the order of their keys."""

    kind = "session"
    filters = FILTERS["session"]


class Session(removal.DeletesSession, ReadHandler):
    """``GET …/sessions/{session_id}``: the row, its tasks by status, its progress."""

    async def get(self, *path: str) -> None:
        await self.reply_row("session", path)


class Tasks(ListHandler):
    """``GET …/tasks``: of all sessions; an export needs it, since a task may have no session."""

    kind = "task"
    filters = FILTERS["task"]


class SessionTasks(Tasks):
    """``GET …/sessions/{session_id}/tasks``: the tasks of a session, whether or not it exists."""

    def conditions(self, *path: str) -> dict[str, Any]:
        return {"where": {"session_id": path}}


class Task(removal.DeletesTask, ReadHandler):
    """``GET …/sessions/{session_id}/tasks/{task_id}``."""

    async def get(self, *path: str) -> None:
        await self.reply_row("task", path)


class IncompleteSessions(ListHandler):
    """``GET …/recovery/incomplete-sessions``: fresh unless told otherwise, for somebody decides by it what to do."""

    kind = "session"
    filters = ("llm_provider",)
    fresh = True

    def conditions(self, *path: str) -> dict[str, Any]:
        return {"without": {"status": FINISHED}}


class Restore(Reads):
    """``POST …/recovery/restore/{session_id}``: a session and its unfinished tasks, to go on with. Changes nothing."""

    async def post(self, *path: str) -> None:
        given = queries.read(self.request, _FRESH)
        queries.require_key(*path)
        reads = self.application.reads
        await self.freshen(given.get("fresh", True))
        session = await reads.row("session", path)
        if session is None:
            raise NoSuchRow("There is no such session")
        query = Query("task", {"session_id": path}, {"status": FINISHED}, limit=MOST_UNFINISHED, by_row=True)
        found = await reads.page(query)
        rest = json.dumps({"truncated": found.last is not None, "pending": reads.pending}).encode()
        self.finish(b'{"session": ' + encode(session) + b', "tasks": ' + _join(found.rows) + b", " + rest[1:] + b"\n")
