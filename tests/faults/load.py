"""Clients that load a service, and keep their own record of what it has acknowledged.

Every key belongs to one client, which sends one request at a time, so the order of a key's updates is known. Each
update carries its key's next version in a field that every update has, and some of the other fields, so that what is
stored tells which updates it is made of. An update without an answer (the process was killed) may have been taken or
not: from then on the record holds both states, until later updates make them one again.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.process import PATIENCE, AtWork
from tests.rows import body, row
from tornado_persist.records.models import KINDS, PLURALS, Fields, Kind, key_of
from tornado_persist.testing import Stored, complete

#: The field that holds an update's version.
VERSION: dict[Kind, str] = {"session": "total_tasks", "task": "row_index"}
TERMS = ("written", "merged", "rejected", "pending")


class Target(Protocol):
    """A service; its address may change when it is started again."""

    url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent (``time.monotonic()``), how long it took, and its status; None if none came.

    Before ``at`` all of it was on its way: a thread may wait long between its look at the clock and the sending.
    """

    at: float
    seconds: float
    status: int | None


class Record:
    """What the clients know: for each key every state that it may have."""

    def __init__(self) -> None:
        #: In a state a time is None when it is not known; a state that is None: the key is not stored.
        self.states: dict[Kind, dict[tuple[str, ...], list[Fields | None]]] = {kind: {} for kind in KINDS}
        #: Rows.
        self.sent = self.acknowledged = self.refused = 0
        self._lock = threading.Lock()

    def sending(self, rows: list[Fields]) -> None:
        """Call it before a request is sent."""
        with self._lock:
            self.sent += len(rows)

    def answered(self, kind: Kind, rows: list[Fields], status: int, at: datetime | None) -> None:
        """There was an answer: 200 with the accept time, or a refusal, which stored nothing."""
        with self._lock:
            if status == 200:
                self.acknowledged += len(rows)
                self._update(kind, rows, at, certain=True)
            else:
                self.refused += len(rows)
                self._update(kind, [], None, certain=True)

    def unanswered(self, kind: Kind, rows: list[Fields]) -> None:
        """There is no answer, and there will be none."""
        with self._lock:
            self._update(kind, rows, None, certain=False)

    @property
    def unknown(self) -> int:
        """Rows without an answer so far."""
        return self.sent - self.acknowledged - self.refused

    def _update(self, kind: Kind, rows: list[Fields], at: datetime | None, *, certain: bool) -> None:
        # A batch is all or nothing, so a key that occurs twice in it gets both updates or none.
        updates: dict[tuple[str, ...], list[Fields]] = {}
        for update in rows:
            updates.setdefault(key_of(kind, update), []).append(update)
        for key, given in updates.items():
            before = self.states[kind].get(key, [None])
            after = [] if certain else before[:]
            for state in before:
                for update in given:
                    state = _merged(kind, state, update, at)
                if state not in after:
                    after.append(state)
            assert len(after) < 1000, "too many updates of one key without an answer"
            self.states[kind][key] = after

    def check(self, stored: Stored) -> None:
        """``stored`` is what was acknowledged, with what was not answered or without it, and nothing else.

        Raises:
            AssertionError: it is not; the first ten differences.
        """
        wrong = list(itertools.islice(self._differences(stored), 10))
        assert not wrong, "\n".join(wrong)

    def _differences(self, stored: Stored) -> Iterator[str]:
        for kind in KINDS:
            for key in stored[kind].keys() - self.states[kind].keys():
                yield f"{kind} {key} is stored, and was never sent"
            for key, states in self.states[kind].items():
                found = stored[kind].get(key)
                if not any(_fits(found, state) for state in states):
                    yield f"{kind} {key} is stored as {found}, and should be {' or '.join(map(str, states))}"


def _merged(kind: Kind, state: Fields | None, update: Fields, at: datetime | None) -> Fields:
    if state is None:
        return {**complete(kind, update), "created_at": at, "updated_at": at}
    return {**state, **update, "updated_at": at}


def _fits(found: Fields | None, state: Fields | None) -> bool:
    if found is None or state is None:
        return found is state
    return found.keys() == state.keys() and all(
        found[name] == value or (value is None and name in ("created_at", "updated_at"))
        for name, value in state.items()
    )


@dataclass
class Client:
    """One client's choice of what to send. A subclass may send something else by its own :meth:`batch`."""

    name: str
    rng: random.Random
    #: Keys of each kind that are updated over and over.
    keys: int
    #: Rows in a batch at most.
    rows: int
    _versions: dict[str, int] = field(default_factory=dict)
    _new: Iterator[int] = field(default_factory=itertools.count)

    def batch(self) -> tuple[Kind, list[Fields]]:
        """The next request: new keys, and partial updates of old ones, also two of the same."""
        kind: Kind = self.rng.choice(("session", "task", "task"))
        return kind, [self._row(kind) for _ in range(self.rng.randint(1, self.rows))]

    def _row(self, kind: Kind) -> Fields:
        if self.rng.random() < 0.2:
            return self.update(kind, f"{self.name}-new{next(self._new)}")
        return self.update(kind, f"{self.name}-{self.rng.randrange(self.keys)}")

    def update(self, kind: Kind, key: str, **fields: Any) -> Fields:
        """The next version of a row; ``fields`` over it."""
        version = self._versions[f"{kind} {key}"] = self._versions.get(f"{kind} {key}", 0) + 1
        text = f"{key} v{version} ✓"
        optional: dict[str, Any]
        if kind == "session":
            optional = {"game_info": {"v": [version]}, "metadata": {"text": text}, "completed_tasks": version}
        else:
            optional = {"target_text": text, "context": text, "error_message": text, "duration_ms": version << 33}
            optional |= {"confidence": version % 64 / 64, "retry_count": version}
        chosen = {name: value for name, value in optional.items() if self.rng.random() < 0.3}
        for name in chosen:
            if name not in ("completed_tasks", "retry_count") and self.rng.random() < 0.2:
                chosen[name] = None
        return row(kind, key, **{VERSION[kind]: version, **chosen, **fields})


class Load(AtWork):
    """Clients in threads. It may be started and stopped several times; the record is kept::

        load = Load(service, seed=1)
        with load:
            ...
        load.record.check(read_sqlite(...))

    Leaving the block raises what went wrong in the threads: an answer that is neither 200 nor 503, a 503 without
    Retry-After, or an accounting that does not balance.
    """

    def __init__(
        self,
        target: Target,
        *,
        seed: int,
        clients: int = 4,
        keys: int = 20,
        rows: int = 10,
        pause: float = 0.0,
        make: Callable[..., Client] = Client,
        watch: bool = True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """``context``: for TLS.

        ``pause``: a client's, in seconds, after an answer; ``make`` makes a client of its four fields; ``watch``:
        read ``/stats`` all the while, and check it.
        """
        self._target = target
        self.record = Record()
        #: All answers so far, in the order in which they came.
        self.answers: list[Answer] = []
        #: How often ``/stats`` was read.
        self.readings = 0
        made = [make(f"c{n}", random.Random(f"{seed} {n}"), keys, rows) for n in range(clients)]
        super().__init__(*(partial(self._load, client) for client in made), *([self._read] if watch else []))
        self._pause = pause
        self._context = context

    def count(self, status: int | None = 200) -> int:
        """Answers of this status so far."""
        return sum(answer.status == status for answer in self.answers[:])

    def wait_for(self, count: int, status: int = 200) -> None:
        """Until so many more answers of this status have come."""
        goal = self.count(status) + count
        self.wait_until(lambda: self.count(status) >= goal, f"{count} more answers with {status}")

    # In the threads.

    def _connect(self) -> http.client.HTTPConnection | None:
        address = urlsplit(self._target.url)
        host, port = address.hostname or "", address.port
        if self._context:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=PATIENCE, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        try:
            connection.connect()
        except OSError:
            connection.close()
            self.stopping.wait(0.01)
            return None
        return connection

    def _load(self, client: Client) -> None:
        connection = self._connect()
        if connection is not None:
            with closing(connection):
                while not self.stopping.is_set() and self._send(connection, client):
                    pass

    def _send(self, connection: http.client.HTTPConnection, client: Client) -> bool:
        """One request; False when the connection is broken."""
        kind, rows = client.batch()
        self.record.sending(rows)
        times = [time.monotonic()]
        path, content = f"/api/v1/persistence/{PLURALS[kind]}/batch", body(kind, *rows)
        answer = _exchange(connection, "POST", path, content, sent=lambda: times.append(time.monotonic()))
        status, headers, payload = answer or (None, {}, {})
        self.answers.append(Answer(times[-1], time.monotonic() - times[0], status))
        if status is None:
            self.record.unanswered(kind, rows)
            return False
        at = payload["timestamp"] if status == 200 else None
        self.record.answered(kind, rows, status, at)
        assert status in (200, 503), f"{status}: {payload}"
        if status == 503:
            assert int(headers["Retry-After"]) > 0
        self.stopping.wait(max(self._pause, 0.01 if status == 503 else 0.0))
        return True

    def _read(self) -> None:
        connection = self._connect()
        if connection is not None:
            with closing(connection):
                while not self.stopping.wait(0.01) and self._look(connection):
                    pass

    def _look(self, connection: http.client.HTTPConnection) -> bool:
        """Read the accounting; False when the connection is broken."""
        least = self.record.acknowledged
        answer = _exchange(connection, "GET", "/api/v1/persistence/stats")
        if answer is not None:
            balanced(answer[2]["accounting"], least, self.record)
            self.readings += 1
        return answer is not None


def balanced(accounting: dict[str, int], least: int, record: Record) -> None:
    """Promise 4; and what was accepted is between what was acknowledged before and what may have been taken by now."""
    assert accounting["accepted"] == sum(accounting[term] for term in TERMS), f"it does not balance: {accounting}"
    assert min(accounting.values()) >= 0, accounting
    most = record.sent - record.refused
    assert least <= accounting["accepted"] <= most, f"{accounting} with {least} to {most} rows accepted"


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    content: bytes | None = None,
    sent: Callable[[], None] = lambda: None,
) -> tuple[int, dict[str, str], dict[str, Any]] | None:
    """Status, headers and JSON of the answer; None if the connection broke before it was whole."""
    try:
        connection.request(method, path, content)
        sent()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())
    except TimeoutError:
        raise  # a service must not leave a client waiting
    except (OSError, http.client.HTTPException):
        return None
