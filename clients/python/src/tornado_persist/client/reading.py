"""Reading rows back. Unlike writing it waits for the answer, and raises where there is none."""

from __future__ import annotations

import asyncio
import difflib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Union, cast
from urllib.parse import quote

import httpx

from tornado_persist.client.connection import PREFIX, Address, Broken, Unavailable, checked, request
from tornado_persist.client.values import Key, Text, Time, to_json

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

#: Rows of one request, unless ``limit`` says otherwise.
_PAGE = 500

_Some: TypeAlias = Union[str, Sequence[str]]


class ReadFailed(Exception):
    """The service gave no answer, or not what was asked for; the text says why."""

    def __init__(self, message: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        #: Of the answer; 0: there was none.
        self.status = status
        #: Seconds after which to ask again, if the service says so; else 0.
        self.retry_after = retry_after


class NotFound(ReadFailed):
    """There is no such session or task."""


class StoredSession(TypedDict, total=False):
    """A session as it is stored. ``fields`` may leave fields out; times are ISO 8601 in UTC."""

    session_id: str
    filename: str
    file_path: str
    status: str
    llm_provider: str
    game_info: dict[str, Any] | None
    metadata: dict[str, Any] | None
    total_tasks: int
    completed_tasks: int
    failed_tasks: int
    processing_tasks: int
    extra: dict[str, Any] | None
    created_at: str
    updated_at: str
    tasks: dict[str, int]  #: stored tasks by status; in lists with ``counts``
    progress: float  #: percent; as ``tasks``


class StoredTask(TypedDict, total=False):
    """A task as it is stored. ``fields`` may leave fields out; times are ISO 8601 in UTC."""

    task_id: str
    session_id: str
    batch_id: str
    sheet_name: str
    row_index: int
    column_name: str
    source_text: str
    status: str
    target_text: str | None
    context: str | None
    confidence: float | None
    error_message: str | None
    retry_count: int
    start_time: str | None
    end_time: str | None
    duration_ms: int | None
    extra: dict[str, Any] | None
    created_at: str
    updated_at: str


class Restored(TypedDict):
    """A session and its unfinished tasks."""

    session: StoredSession
    tasks: list[StoredTask]
    truncated: bool  #: whether there are more


class Shown(TypedDict, total=False):
    """What to read of a row, and whether all accepted before is written first."""

    fields: _Some
    fresh: bool


class _Filters(Shown, total=False):
    updated_since: Time
    created_since: Time
    limit: int  #: rows of one request, at most 1,000; all are iterated


class IncompleteFilters(_Filters, total=False):
    """Which unfinished sessions; ``counts``: each with ``tasks`` and ``progress``."""

    llm_provider: Text
    counts: bool


class SessionFilters(IncompleteFilters, total=False):
    """Which sessions."""

    status: _Some


class TaskFilters(_Filters, total=False):
    """Which tasks."""

    status: _Some
    batch_id: Key
    sheet_name: Text
    column_name: Text


class Reader:
    """The reading half of a client. Its connection is its own, so that no read holds up what is sent."""

    _address: Address

    def _begin_reading(self) -> None:
        #: Reentrant: a signal handler may close the client while its thread is in here.
        self._reading = threading.RLock()
        self._http: httpx.Client | None = None
        self._ended = False

    def _end_reading(self) -> None:
        with self._reading:
            http, self._http, self._ended = self._http, None, True
        if http is not None:
            http.close()

    # Synchronous

    def get_session(self, session_id: Key, **shown: Unpack[Shown]) -> StoredSession:
        """A session, with its tasks by status and its progress.

        It shows at least all that the service had accepted, unless ``fresh`` is False; call :meth:`flush` before to see
        what waits in this client. Like every read it waits up to ``timeout`` seconds for the service.

        Raises:
            NotFound: there is none.
            ReadFailed: another answer, or none.
            TypeError: there is no such keyword.
        """
        return cast(StoredSession, self._row(f"/sessions/{_part(session_id)}", _query(shown, Shown)))

    def get_task(self, session_id: Key, task_id: Key, **shown: Unpack[Shown]) -> StoredTask:
        """A task; see :meth:`get_session`."""
        path = f"/sessions/{_part(session_id)}/tasks/{_part(task_id)}"
        return cast(StoredTask, self._row(path, _query(shown, Shown)))

    def iter_sessions(self, **filters: Unpack[SessionFilters]) -> Iterator[StoredSession]:
        """Sessions in the order of their keys, asked for page by page.

        ``fresh``: see at least all that was accepted before the first page; off unless it is given.

        Raises:
            ReadFailed: an answer is no page, or there is none; while it is iterated.
            TypeError: there is no such filter.
        """
        return cast("Iterator[StoredSession]", self._rows("/sessions", _query(filters, SessionFilters)))

    def iter_tasks(self, session_id: Key | None, **filters: Unpack[TaskFilters]) -> Iterator[StoredTask]:
        """Tasks of a session, None: of all; see :meth:`iter_sessions`. A session that is not stored may have tasks."""
        path = "/tasks" if session_id is None else f"/sessions/{_part(session_id)}/tasks"
        return cast("Iterator[StoredTask]", self._rows(path, _query(filters, TaskFilters)))

    def incomplete_sessions(self, **filters: Unpack[IncompleteFilters]) -> Iterator[StoredSession]:
        """Sessions that are neither completed nor failed; see :meth:`iter_sessions`. Fresh unless told otherwise."""
        path = "/recovery/incomplete-sessions"
        return cast("Iterator[StoredSession]", self._rows(path, _query(filters, IncompleteFilters)))

    def restore(self, session_id: Key) -> Restored:
        """A session and its unfinished tasks, at most 10,000, by sheet and row; raises as :meth:`get_session`."""
        return cast(Restored, self._row(f"/recovery/restore/{_part(session_id)}", {}, "POST"))

    # The same for asyncio: in a thread, as the event loop must not wait

    async def aget_session(self, session_id: Key, **shown: Unpack[Shown]) -> StoredSession:
        """:meth:`get_session` for asyncio."""
        return await asyncio.to_thread(self.get_session, session_id, **shown)

    async def aget_task(self, session_id: Key, task_id: Key, **shown: Unpack[Shown]) -> StoredTask:
        """:meth:`get_task` for asyncio."""
        return await asyncio.to_thread(self.get_task, session_id, task_id, **shown)

    def aiter_sessions(self, **filters: Unpack[SessionFilters]) -> AsyncIterator[StoredSession]:
        """:meth:`iter_sessions` for asyncio."""
        return cast("AsyncIterator[StoredSession]", self._arows("/sessions", _query(filters, SessionFilters)))

    def aiter_tasks(self, session_id: Key | None, **filters: Unpack[TaskFilters]) -> AsyncIterator[StoredTask]:
        """:meth:`iter_tasks` for asyncio."""
        path = "/tasks" if session_id is None else f"/sessions/{_part(session_id)}/tasks"
        return cast("AsyncIterator[StoredTask]", self._arows(path, _query(filters, TaskFilters)))

    def aincomplete_sessions(self, **filters: Unpack[IncompleteFilters]) -> AsyncIterator[StoredSession]:
        """:meth:`incomplete_sessions` for asyncio."""
        query = _query(filters, IncompleteFilters)
        return cast("AsyncIterator[StoredSession]", self._arows("/recovery/incomplete-sessions", query))

    async def arestore(self, session_id: Key) -> Restored:
        """:meth:`restore` for asyncio."""
        return await asyncio.to_thread(self.restore, session_id)

    # Requests

    def _rows(self, path: str, query: dict[str, str]) -> Iterator[Any]:
        while True:
            page = self._page(path, query)
            yield from page["items"]
            if page["next"] is None:
                return
            query = _next(query, page)

    async def _arows(self, path: str, query: dict[str, str]) -> AsyncIterator[Any]:
        while True:
            page = await asyncio.to_thread(self._page, path, query)
            for row in page["items"]:
                yield row
            if page["next"] is None:
                return
            query = _next(query, page)

    def _page(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        page = self._read("GET", path, {"limit": str(_PAGE), **query})
        if not isinstance(page.get("items"), list) or "next" not in page:
            raise ReadFailed(f"{self._address.url}{PREFIX}{path}: the answer is no page of rows", 200)
        return page

    def _row(self, path: str, query: dict[str, str], method: str = "GET") -> dict[str, Any]:
        row = self._read(method, path, query)
        row.pop("pending", None)
        return row

    def _read(self, method: str, path: str, query: dict[str, str]) -> dict[str, Any]:
        with self._reading:
            if self._ended:
                raise ReadFailed("the client is closed")
            if self._http is None:
                self._http = self._address.connect()
            http = self._http
        try:
            try:
                response = request(http, method, PREFIX + path, params=query)
            except Broken:
                # A kept connection may be one that the service has closed meanwhile; no read changes anything.
                response = request(http, method, PREFIX + path, params=query)
        except Unavailable as exc:
            raise ReadFailed(str(exc)) from exc
        data, problem, after = checked(response)
        if response.status_code == 404:
            raise NotFound(problem, 404)
        if response.status_code != 200 or not data:
            raise ReadFailed(problem, response.status_code, after)
        return data


def _part(key: Key) -> str:
    """A key as one part of a path: nothing in it is read as a path, not even two dots."""
    return quote(str(to_json(key)), safe="").replace(".", "%2E")


def _query(given: Mapping[str, object], kind: Any) -> dict[str, str]:
    """Keywords as parameters of the query. Raises TypeError: there is no such keyword."""
    known = kind.__optional_keys__  # all are
    found = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"there is no filter {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        plain = to_json(value)
        if isinstance(plain, list):
            plain = ",".join(map(str, plain))
        found[name] = str(plain).lower() if isinstance(plain, bool) else str(plain)
    return found


def _next(query: dict[str, str], page: dict[str, Any]) -> dict[str, str]:
    """The query of the page after this one; what was to be written has been."""
    return {**query, "after": page["next"], "fresh": "false"}
