"""What waits to be sent: a dict by key, merged by the service's rule and bounded, and the counts of what became of it.

It knows no network and no thread. The client guards it by a lock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from tornado_persist.client.values import KEYS, Kind, Row

#: Why a row is dropped: the queue was full; the service refuses the row; it is too large even alone; the service
#: refuses the request; it does not answer, or answers 503; the client is closed; a fault in this package.
Reason = Literal["full", "invalid", "too_large", "refused", "unavailable", "closed", "bug"]
_Key = tuple[str, ...]


@dataclass(frozen=True)
class Stats:
    """What became of the rows given to :meth:`Client.session` and :meth:`Client.task`, since this process's start.

    ``calls == queued + sent + merged + sum(dropped.values())``, at every moment.
    """

    #: Rows that wait, or are on their way.
    queued: int = 0
    #: Rows that the service has made durable.
    sent: int = 0
    #: Updates merged into a row that waited.
    merged: int = 0
    #: Rows given up, by reason.
    dropped: Mapping[str, int] = field(default_factory=dict)
    #: The last thing that went wrong, in a sentence; empty: nothing did.
    last_error: str = ""
    #: Rows among ``sent`` that the service set aside, see its setting ``records.invalid_rows``.
    set_aside: int = 0

    @property
    def calls(self) -> int:
        """Rows given."""
        return self.queued + self.sent + self.merged + sum(self.dropped.values())


class Queue:
    """Rows that wait, the oldest first. Those of one request at most are on their way."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._waiting: dict[Kind, dict[_Key, Row]] = {"session": {}, "task": {}}
        #: The rows of the next request, of one kind; they are on their way if ``_flying``, else they wait in front.
        self._front: dict[_Key, Row] = {}
        self._front_kind: Kind = "session"
        self._flying = False
        #: Keys that are both on their way and waiting: newer updates of them came.
        self._twice = 0
        #: Rows that ever waited, and rows that were taken, by kind: rows leave in the order in which they came.
        self._came: dict[Kind, int] = {"session": 0, "task": 0}
        self._taken: dict[Kind, int] = {"session": 0, "task": 0}
        self.sent = 0
        self.merged = 0
        self.dropped: dict[str, int] = {}
        #: Rows that were dropped after they had waited.
        self.lost = 0
        self.last_error = ""
        self.set_aside = 0
        self.closed = False

    def __len__(self) -> int:
        return self.waiting + len(self._front)

    @property
    def waiting(self) -> int:
        """Rows that wait behind the next request."""
        return len(self._waiting["session"]) + len(self._waiting["task"])

    @property
    def room(self) -> bool:
        """Whether a row with a new key may come."""
        return len(self) - self._twice < self._max_rows

    @property
    def total_dropped(self) -> int:
        return sum(self.dropped.values())

    def stats(self) -> Stats:
        return Stats(len(self), self.sent, self.merged, dict(self.dropped), self.last_error, self.set_aside)

    def put(self, kind: Kind, row: Row) -> Reason | None:
        """Take a row in, or merge it into the one of its key; the reason if it is dropped.

        The row is the queue's from then on.
        """
        if self.closed:
            return self._count_dropped(1, "closed")
        key = (row["session_id"], row["task_id"]) if kind == "task" else (row["session_id"],)
        waiting = self._waiting[kind]
        older = waiting.get(key)
        in_front = self._front.get(key) if self._front and kind == self._front_kind else None
        if older is None and not self._flying:
            older = in_front
        if older is not None:
            older.update(row)
            self.merged += 1
        elif in_front is not None:
            # The first one is on its way. Its key has room already.
            waiting[key] = row
            self._twice += 1
            self._came[kind] += 1
        elif self.room:
            waiting[key] = row
            self._came[kind] += 1
        else:
            return self._count_dropped(1, "full")
        return None

    # What the sender does

    def mark(self) -> dict[Kind, int]:
        """A mark behind all rows that wait now, for :meth:`passed`."""
        return dict(self._came)

    def passed(self, mark: Mapping[Kind, int]) -> bool:
        """Whether all rows before this mark were sent or dropped."""
        return not self._front and all(self._taken[kind] >= came for kind, came in mark.items())

    def take(self, limit: int) -> tuple[Kind, list[Row]]:
        """The rows of the next request: those that were put back, else sessions, else tasks. They are on their way."""
        if not self._front:
            kind: Kind = "session" if self._waiting["session"] else "task"
            waiting = self._waiting[kind]
            self._front = dict(islice(waiting.items(), limit))
            self._front_kind = kind
            for key in self._front:
                del waiting[key]
            self._taken[kind] += len(self._front)
        self._flying = True
        return self._front_kind, list(self._front.values())

    def on_their_way(self) -> list[Row]:
        """What of the last :meth:`take` has not left."""
        return list(self._front.values())

    def put_back(self) -> None:
        """What is on its way waits again, in front; newer updates are merged over it."""
        waiting = self._waiting[self._front_kind]
        for key, row in self._front.items():
            newer = waiting.pop(key, None)
            if newer is not None:
                row.update(newer)
                self.merged += 1
                self._taken[self._front_kind] += 1
        self._twice = 0
        self._flying = False

    def accepted(self, rows: Collection[Row], set_aside: int = 0) -> None:
        """These rows, which were on their way, are durable."""
        if self._leave(rows):
            self.sent += len(rows)
            self.set_aside += set_aside

    def drop(self, rows: Collection[Row], reason: Reason) -> bool:
        """Give up these rows, which were on their way; False: they were given up already, at the close."""
        if not self._leave(rows):
            return False
        self._count_dropped(len(rows), reason)
        self.lost += len(rows)
        return True

    def close(self) -> list[Row]:
        """Give up all rows, and take no more."""
        self.closed = True
        rows = [*self._front.values(), *self._waiting["session"].values(), *self._waiting["task"].values()]
        for some in (self._front, self._waiting["session"], self._waiting["task"]):
            some.clear()
        self._twice = 0
        self._flying = False
        if rows:
            self._count_dropped(len(rows), "closed")
            self.lost += len(rows)
        return rows

    def _leave(self, rows: Collection[Row]) -> bool:
        if self.closed:
            return False
        kind = self._front_kind
        for row in rows:
            key = tuple(row[name] for name in KEYS[kind])
            del self._front[key]
            self._twice -= key in self._waiting[kind]
        if not self._front:
            self._flying = False
        return True

    def _count_dropped(self, rows: int, reason: Reason) -> Reason:
        self.dropped[reason] = self.dropped.get(reason, 0) + rows
        return reason
