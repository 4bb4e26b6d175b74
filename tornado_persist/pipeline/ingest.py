"""The one place where a batch is accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tornado_persist.errors import FieldError, FlushFailed, InvalidBatch, NotAccepting, SinkUnavailable
from tornado_persist.journal import HEADER_SIZE, Journal
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.deadletters import InvalidRow
from tornado_persist.records.models import Kind
from tornado_persist.records.parser import HUGE, Parser, date
from tornado_persist.records.rules import Parsed
from tornado_persist.records.times import in_utc, stamp

SetAside = Callable[[Sequence[InvalidRow]], AbstractAsyncContextManager[None]]
FindSessions = Callable[[Collection[str]], Awaitable[set[str]]]

#: A body of so many bytes is large: parsing it takes a millisecond or more.
LARGE = 1 << 16
MICROSECOND = timedelta(microseconds=1)
LONG_AGO = datetime.fromtimestamp(0, UTC)
#: The first time at which rows sent again may have been accepted. 1970 stands for never, where several write.
EARLIEST = datetime(1971, 1, 1, tzinfo=UTC)
#: How far ahead of the machine's clock a client may move the accept times.
MOST_AHEAD = timedelta(seconds=60)
#: Session ids remembered, so that the sink is not asked for the same one with every batch of its tasks.
KNOWN_SESSIONS = 100_000


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted batch: how many rows, and when, as rows hold times."""

    count: int
    at: str
    ignored: Sequence[str] = ()  #: names of fields that were dropped, see :class:`Parsed`
    ignored_rows: int = 0  #: rows that had such fields
    rejected: int = 0  #: rows that were set aside
    errors: Sequence[FieldError] = ()  #: what is wrong with these: the first errors


class Ingest:
    """A batch is all or nothing; the order of the journal is the order of merging."""

    def __init__(
        self,
        parser: Parser,
        journal: Journal,
        backlog: Backlog,
        buffer: Buffer,
        *,
        set_aside: SetAside,
        added: Callable[[], None],
        find_sessions: FindSessions | None = None,
    ) -> None:
        """``set_aside`` keeps invalid rows while the others are accepted. ``added`` is called after each batch.
        ``find_sessions`` looks sessions up; without it, a task needs none.
        """
        self._parser = parser
        self._journal = journal
        self._backlog = backlog
        self._buffer = buffer
        self._set_aside = set_aside
        self._added = added
        #: Replaced when the sink changes.
        self.find_sessions = find_sessions
        self._known_sessions: dict[str, None] = {}
        self._closed_because = ""
        #: The last accept time given, and the last of a batch that was accepted.
        self._latest = self._accepted = journal.latest
        #: Batches that the journal has neither taken nor refused yet.
        self._undecided = 0
        # asyncio runs all that is ready before it polls again. Without this lock eight large bodies are parsed in one
        # round of the loop, and all other requests wait for them: the 99th percentile at 20,000 rows/s was 15 ms
        # instead of 11.
        self._large_body = asyncio.Lock()
        self._huge_body = asyncio.Lock()  # at most one is parsed in a thread, for its memory

    def close(self, reason: str) -> None:
        """Accept no new batch from now on; requests in progress are finished: see :attr:`problem`."""
        self._closed_because = reason

    def forget(self, session_ids: Iterable[str]) -> None:
        """These sessions were deleted: ask the sink again whether it has them."""
        for session_id in session_ids:
            self._known_sessions.pop(session_id, None)

    @property
    def problem(self) -> str:
        """Why no new batch is accepted now, in a sentence; empty while all is well.

        Ask before a request's body is read. :meth:`accept` does not ask again: a request that began before the shutdown
        is finished, and a journal that is full, failing or closed refuses by itself.
        """
        return self._closed_because or self._journal.problem

    async def accept(self, kind: Kind, body: bytes, *, after: str = "", at: str = "") -> Accepted:
        """Take the batch in a request body; it is durable when this returns.

        It counts as later than ``after``, the timestamp of an answer of this or another instance. So a client's updates
        stay in order where it is sent from one instance to another whose clock is behind. A batch that is refused moves
        no later one.

        ``at``: the rows were accepted then, and are sent again. They count as of that time, under all newer updates.
        Only several writers compare times; one would put the old rows over newer ones.

        Raises:
            NotJSON, InvalidBatch: see :meth:`Parser.parse`; also an unknown session, when that has to be known, and an
                ``after`` that is no time, or more than ``MOST_AHEAD`` ahead of this machine's clock: to pass it over
                would lose the order in silence; or an ``at`` that is no time, is yet to come, or has one writer.
            NotAccepting: the journal is full, failing or closed, or a session cannot be looked up.
        """
        earlier = _read_after(after) if after else LONG_AGO
        if at:
            at = self._read_at(at)
        parsed = await self._parse(kind, body)
        rows = parsed.rows
        if self.find_sessions is not None and kind == "task":
            await self._require_sessions(parsed, self.find_sessions)
        if not parsed.wrong:
            return Accepted(
                len(rows), await self._append(kind, parsed, earlier, at), parsed.ignored, parsed.ignored_rows
            )
        found = stamp(datetime.now(UTC))
        try:
            async with self._set_aside([InvalidRow(kind, row.text, row.errors, found) for row in parsed.wrong]):
                at = await self._append(kind, parsed, earlier, at)
        except FlushFailed as exc:
            raise NotAccepting(f"Rows cannot be set aside: {exc}") from exc
        errors = [error for row in parsed.wrong for error in row.errors][: InvalidBatch.MAX_ERRORS]
        return Accepted(len(rows), at, parsed.ignored, parsed.ignored_rows, len(parsed.wrong), errors)

    async def _parse(self, kind: Kind, body: bytes) -> Parsed:
        if len(body) >= HUGE:
            async with self._huge_body:
                return await asyncio.to_thread(self._parser.parse, kind, body)
        if len(body) >= LARGE:
            await self._large_body.acquire()
            asyncio.get_running_loop().call_soon(self._large_body.release)  # in the next round: one of them in each
        return self._parser.parse(kind, body)

    def mark(self) -> datetime:
        """A time: whatever was accepted up to it is merged, and what comes from now on will have a later one."""
        if not self._undecided:
            self._latest = self._accepted = max(datetime.now(UTC), self._latest + MICROSECOND)
        return self._accepted

    async def _append(self, kind: Kind, parsed: Parsed, earlier: datetime, before: str) -> str:
        """Make the rows durable and merge them; the time of their acceptance, as rows hold times: ``before``, if given.

        It is later than ``earlier`` and than all before, even if the clock was set back: accept times follow the
        journal's order.
        """
        now = self._latest = max(datetime.now(UTC), self._latest + MICROSECOND, earlier + MICROSECOND)
        at = before or stamp(now)
        body = date(parsed.body, before)
        if parsed.rows:
            self._undecided += 1
            # Appends that wait for one fsync come back in the order of their records, so this is the journal's order.
            try:
                seq = await self._journal.append(kind, now, len(parsed.rows), body)
            except NotAccepting:
                if self._undecided == 1:  # else one of the others may have a later time already
                    self._latest = self._accepted
                self._added()  # the journal may be full: a flush makes room
                raise
            finally:
                self._undecided -= 1
            self._backlog.admit(seq, kind, parsed.rows, at, HEADER_SIZE + len(body))
            if self.find_sessions is not None and kind == "session":
                self._remember(row["session_id"] for row in parsed.rows)
            self._added()
        self._accepted = max(self._accepted, now)
        return at

    def _read_at(self, at: str) -> str:
        """Raises InvalidBatch."""
        if not self._buffer.timed:
            raise InvalidBatch('X-Persist-At needs writers = "several" below the sink: one writer compares no times')
        try:
            time = in_utc(at)
        except ValueError:
            raise InvalidBatch("X-Persist-At is no ISO 8601 date and time") from None
        if not stamp(EARLIEST) <= time <= stamp(datetime.now(UTC)):
            raise InvalidBatch("X-Persist-At is yet to come, or before 1971")
        return time

    async def _require_sessions(self, parsed: Parsed, find_sessions: FindSessions) -> None:
        rows = parsed.rows
        wanted = {row["session_id"] for row in rows}
        unknown = {id for id in wanted - self._known_sessions.keys() if not self._buffer.has_session(id)}
        if unknown:
            try:
                unknown -= await find_sessions(unknown)
            except SinkUnavailable as exc:
                raise NotAccepting(f"The sink cannot be asked whether it has the tasks' sessions: {exc}") from exc
        if unknown:
            refused = InvalidBatch(
                "Session ID not found or invalid task data",
                [
                    {"loc": ["tasks", index, "session_id"], "msg": "No session with this ID was accepted"}
                    for index, row in zip(parsed.places(), rows, strict=True)
                    if row["session_id"] in unknown
                ],
            )
            refused.rows = len(rows) + len(parsed.wrong)
            raise refused
        self._remember(wanted)

    def _remember(self, session_ids: Iterable[str]) -> None:
        """These were accepted, or the sink has them."""
        for session_id in session_ids:
            self._known_sessions.pop(session_id, None)
            self._known_sessions[session_id] = None
        while len(self._known_sessions) > KNOWN_SESSIONS:
            del self._known_sessions[next(iter(self._known_sessions))]


def _read_after(after: str) -> datetime:
    """Raises InvalidBatch: it is no time, or too far ahead."""
    try:
        time = datetime.fromisoformat(in_utc(after))
    except ValueError:
        raise InvalidBatch("X-Persist-After is not the timestamp of an answer") from None
    if time - datetime.now(UTC) > MOST_AHEAD:
        seconds = f"{MOST_AHEAD.total_seconds():g}"
        raise InvalidBatch(f"X-Persist-After is more than {seconds} seconds ahead of this instance's clock")
    return time
