"""Reading rows back: sessions and tasks, one or a page of them, and what is unfinished."""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlencode

from tornado_persist.errors import InvalidQuery, NoSuchRow
from tornado_persist.pipeline.reads import Found, encode
from tornado_persist.records.models import KEYS, MAX_STATUS, Kind
from tornado_persist.records.queries import FINISHED, SHOWN, Query
from tornado_persist.records.times import in_utc
from tornado_persist.web import removal
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
_PAGING = ("limit", "after", "count")
_COMMON = ("fields", "fresh")
#: No text of a row holds one, and no database can be asked for it.
_NUL = re.compile(r"[\x00\ud800-\udfff]")


class Parameters:
    """The query string of one request; every reading raises InvalidQuery for a wrong value."""

    def __init__(self, arguments: Mapping[str, list[bytes]], known: tuple[str, ...]) -> None:
        self.given: dict[str, str] = {}
        for name, values in arguments.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
                raise InvalidQuery(f"There is no parameter {name[:64]!r} here{hint}")
            if len(values) > 1:
                raise InvalidQuery(f"{name} is given more than once")
            try:
                self.given[name] = values[0].decode()
            except UnicodeDecodeError:
                raise InvalidQuery(f"{name} is no UTF-8") from None
            if _NUL.search(self.given[name]):
                raise InvalidQuery(f"{name} holds a NUL character")

    def flag(self, name: str, default: bool) -> bool:
        value = self.given.get(name)
        if value is None:
            return default
        if value not in ("true", "false", "1", "0"):
            raise InvalidQuery(f"{name} must be true or false")
        return value in ("true", "1")

    def limit(self, most: int, usual: int) -> int:
        value = self.given.get("limit")
        if value is None:
            return usual
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= most:
            raise InvalidQuery(f"limit must be a number from 1 to {most}")
        return int(value)

    def fields(self, kind: Kind) -> tuple[str, ...]:
        value = self.given.get("fields")
        if value is None:
            return ()
        names = tuple(value.split(","))
        for name in names:
            if name not in SHOWN[kind]:
                near = difflib.get_close_matches(name, SHOWN[kind], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InvalidQuery(f"fields: a {kind} has no field {name[:64]!r}{hint}")
        return names

    def since(self) -> dict[str, str]:
        found = {}
        for name, field in SINCE.items():
            if name in self.given:
                try:
                    # A + of an offset that was not encoded arrives as a blank.
                    found[field] = in_utc(re.sub(r" (?=\d\d:?\d\d$)", "+", self.given[name]))
                except ValueError:
                    raise InvalidQuery(f"{name} must be an ISO 8601 date and time") from None
        return found

    def where(self, kind: Kind, statuses: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {name: (self.given[name],) for name in FILTERS[kind] if name in self.given}
        if "status" in found:
            found["status"] = tuple(self.given["status"].split(","))
            for status in found["status"]:
                if status not in statuses:
                    raise InvalidQuery(f"status: {status[:MAX_STATUS]!r} is none of {', '.join(statuses)}")
        return found


def make_token(query: Query, key: tuple[str, ...]) -> str:
    """What ``after`` takes for the rows after ``key``; good for the same conditions alone."""
    return base64.urlsafe_b64encode(json.dumps([_conditions(query), *key]).encode()).decode().rstrip("=")


def read_token(query: Query, token: str) -> tuple[str, ...]:
    """The key in a token. Raises InvalidQuery: it is none, or of another query."""
    try:
        found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        raise InvalidQuery("after is not what an answer gave as next") from None
    keys = len(KEYS[query.kind])
    if not isinstance(found, list) or len(found) != keys + 1 or not all(isinstance(part, str) for part in found):
        raise InvalidQuery("after is not what an answer gave as next")
    if found[0] != _conditions(query) or any(map(_NUL.search, found)):
        raise InvalidQuery("after is of a query with other conditions")
    return tuple(found[1:])


def _conditions(query: Query) -> str:
    parts = [query.kind, *(sorted(map(repr, part.items())) for part in (query.where, query.without, query.since))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class ReadHandler(GetHandler):
    """A handler of reads."""

    scope = "read"

    def parameters(self, *known: str) -> Parameters:
        return Parameters(self.request.query_arguments, known)

    async def freshen(self, parameters: Parameters, default: bool) -> None:
        if parameters.flag("fresh", default):
            await self.application.reads.freshen(self.application.flush_timeout)

    async def reply_row(self, kind: Kind, key: tuple[str, ...]) -> None:
        """One row, or 404."""
        parameters = self.parameters(*_COMMON)
        fields = parameters.fields(kind)
        await self.freshen(parameters, True)
        missing = NoSuchRow(f"There is no such {kind}")
        if any(_NUL.search(part) for part in key):
            raise missing
        row = await self.application.reads.row(kind, key, fields)
        if row is None:
            raise missing
        row["pending"] = self.application.reads.pending
        self.finish(encode(row) + b"\n")

    async def reply_page(self, parameters: Parameters, query: Query, *, counts: bool, fresh: bool) -> None:
        """A page of rows, and how to get the next."""
        if parameters.given.get("after"):  # an empty one is that of a client's first round
            query = _with_after(query, read_token(query, parameters.given["after"]))
        total = parameters.flag("count", False)
        await self.freshen(parameters, fresh)
        found = await self.application.reads.page(query, counts=counts, total=total)
        token = make_token(query, found.last) if found.last else None
        url = None
        if token:
            url = f"{self.request.path}?{urlencode({**parameters.given, 'after': token})}"
        rest = {"next": token, "next_url": url, "pending": self.application.reads.pending}
        self.reply_items(found, rest if found.total is None else {**rest, "total": found.total})

    def reply_items(self, found: Found, rest: Mapping[str, object], name: str = "items") -> None:
        self.write(b'{"%s": [' % name.encode())
        self.write(b", ".join(found.rows))
        self.finish(b"], " + json.dumps(rest, ensure_ascii=False).encode()[1:] + b"\n")


def _with_after(query: Query, key: tuple[str, ...]) -> Query:
    return Query(query.kind, query.where, query.without, query.since, key, query.limit, query.fields)


class ListHandler(ReadHandler):
    """A page of rows."""

    kind: ClassVar[Kind]
    more: ClassVar[tuple[str, ...]] = ()
    filters: ClassVar[tuple[str, ...]]
    fresh = False

    def query(self, path: Mapping[str, tuple[str, ...]]) -> tuple[Parameters, Query]:
        parameters = self.parameters(*self.filters, *SINCE, *self.more, *_PAGING, *_COMMON)
        query = Query(
            self.kind,
            {**path, **parameters.where(self.kind, self.application.reads.statuses)},
            since=parameters.since(),
            limit=parameters.limit(MOST_ROWS, USUAL_LIMIT),
            fields=parameters.fields(self.kind),
        )
        return parameters, query


class Sessions(ListHandler):
    """``GET …/sessions``: in the order of their keys."""

    kind = "session"
    filters = FILTERS["session"]
    more = ("counts",)

    async def get(self, *path: str) -> None:
        parameters, query = self.query({})
        await self.reply_page(parameters, query, counts=parameters.flag("counts", False), fresh=self.fresh)


class Session(removal.DeletesSession, ReadHandler):
    """``GET …/sessions/{session_id}``: the row, its tasks by status, its progress."""

    async def get(self, *path: str) -> None:
        await self.reply_row("session", path)


class SessionTasks(ListHandler):
    """``GET …/sessions/{session_id}/tasks``: the tasks of a session, whether or not it exists."""

    kind = "task"
    filters = FILTERS["task"]

    async def get(self, *path: str) -> None:
        if any(map(_NUL.search, path)):
            raise NoSuchRow("There is no such session")
        parameters, query = self.query({"session_id": path})
        await self.reply_page(parameters, query, counts=False, fresh=self.fresh)


class Task(removal.DeletesTask, ReadHandler):
    """``GET …/sessions/{session_id}/tasks/{task_id}``."""

    async def get(self, *path: str) -> None:
        await self.reply_row("task", path)


class Tasks(ListHandler):
    """``GET …/tasks``: of all sessions; an export needs it, since a task may have no session."""

    kind = "task"
    filters = FILTERS["task"]

    async def get(self, *path: str) -> None:
        parameters, query = self.query({})
        await self.reply_page(parameters, query, counts=False, fresh=self.fresh)


class IncompleteSessions(ListHandler):
    """``GET …/recovery/incomplete-sessions``: fresh unless told otherwise, for somebody decides by it what to do."""

    kind = "session"
    filters = ("llm_provider",)
    more = ("counts",)

    async def get(self, *path: str) -> None:
        parameters, query = self.query({})
        query = Query("session", query.where, {"status": FINISHED}, query.since, None, query.limit, query.fields)
        await self.reply_page(parameters, query, counts=parameters.flag("counts", False), fresh=True)


class Restore(Handler):
    """``POST …/recovery/restore/{session_id}``: a session and its unfinished tasks, to go on with. Changes nothing."""

    scope = "read"

    async def post(self, *path: str) -> None:
        reads = self.application.reads
        parameters = Parameters(self.request.query_arguments, ("fresh",))
        if any(map(_NUL.search, path)):
            raise NoSuchRow("There is no such session")
        if parameters.flag("fresh", True):
            await reads.freshen(self.application.flush_timeout)
        session = await reads.row("session", path)
        if session is None:
            raise NoSuchRow("There is no such session")
        query = Query("task", {"session_id": path}, {"status": FINISHED}, limit=MOST_UNFINISHED, by_row=True)
        found = await reads.page(query)
        self.write(b'{"session": ' + encode(session) + b', "tasks": [' + b", ".join(found.rows))
        rest = {"truncated": found.last is not None, "pending": reads.pending}
        self.finish(b"], " + json.dumps(rest).encode()[1:] + b"\n")
