"""Clients of several instances behind a balancer, and the state that their acknowledged updates make.

Each client has sessions of its own, and all share a few: updates of one row come through several instances. A request
without a good answer is sent again until it has one, as clients should. A copy of it that was taken all the same has an
earlier accept time and the same fields, so it changes nothing but ``created_at``.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import httpx

from tests.process import AtWork
from tests.rows import body, session, task
from tornado_persist.records.models import KINDS, PLURALS, Fields, Kind, key_of
from tornado_persist.testing import FIELDS, Stored, complete

#: Sessions that all clients update.
SHARED = 5


class Update(NamedTuple):
    at: str
    kind: Kind
    fields: Fields
    again: bool  #: it was sent more than once


class Clients(AtWork):
    """Threads that send until the context ends."""

    def __init__(self, url: str, *, seed: int, count: int = 6, rows: int = 20, pause: float = 0.1) -> None:
        """``rows`` in a batch at most; ``pause`` seconds after an answer."""
        self._url, self._rows, self._pause = url, rows, pause
        self.updates: list[Update] = []
        #: Of each good answer the time at which it came.
        self.answered: list[float] = []
        super().__init__(*(partial(self._send_all, f"c{n}", random.Random(f"{seed} {n}")) for n in range(count)))

    @property
    def longest_gap(self) -> float:
        """Seconds without a good answer to any client."""
        return max(later - earlier for earlier, later in itertools.pairwise(self.answered))

    def _send_all(self, name: str, rng: random.Random) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as http:
            for version in itertools.count(1):
                if self.stopping.is_set():
                    return
                shared = rng.random() < 0.3
                number = rng.randrange(SHARED if shared else 30)
                session_id = f"shared-{number}" if shared else f"{name}-{number}"
                kind, rows = self._batch(rng, session_id, f"{name} v{version}")
                # What is shared comes through another instance for each client.
                header = name if shared else session_id
                self._send(http, kind, rows, header)
                self.stopping.wait(self._pause)

    def _batch(self, rng: random.Random, session_id: str, text: str) -> tuple[Kind, list[Fields]]:
        if rng.random() < 0.4:
            fields = {"game_info": {"text": text}, "metadata": {"text": text}, "completed_tasks": rng.randrange(1000)}
            return "session", [session(session_id, filename=text, **_some(rng, fields))]
        chosen = rng.sample(range(40), rng.randint(1, self._rows))
        fields = {"target_text": text, "context": text, "error_message": text, "retry_count": rng.randrange(1000)}
        return "task", [
            task(f"t{number}", session_id=session_id, source_text=text, **_some(rng, fields)) for number in chosen
        ]

    def _send(self, http: httpx.Client, kind: Kind, rows: list[Fields], header: str) -> None:
        path, content = f"/api/v1/persistence/{PLURALS[kind]}/batch", body(kind, *rows)
        for attempt in range(200):
            try:
                answer = http.post(path, content=content, headers={"X-Session-ID": header})
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == 200:
                at = answer.json()["timestamp"]
                self.updates += [Update(at, kind, row, attempt > 0) for row in rows]
                self.answered.append(time.monotonic())
                return
            assert answer is None or answer.status_code >= 500, answer.text
            time.sleep(0.1)
        raise AssertionError("no good answer in 200 tries")


def _some(rng: random.Random, fields: Fields) -> Fields:
    """Some of the fields, and some of them null."""
    chosen = {name: value for name, value in fields.items() if rng.random() < 0.5}
    for name in chosen.keys() - {"completed_tasks", "retry_count"}:
        if rng.random() < 0.2:
            chosen[name] = None
    return chosen


def check(stored: Stored, updates: list[Update]) -> None:
    """``stored`` is the updates, merged in the order of their accept times.

    Raises:
        AssertionError: it is not; the first ten differences.
    """
    wrong = list(itertools.islice(_differences(stored, updates), 10))
    assert not wrong, "\n".join(wrong)


def _differences(stored: Stored, updates: list[Update]) -> Iterator[str]:
    by_key: dict[Kind, dict[tuple[str, ...], list[Update]]] = {kind: defaultdict(list) for kind in KINDS}
    for update in sorted(updates, key=lambda update: update.at):
        by_key[update.kind][key_of(update.kind, update.fields)].append(update)
    for kind in KINDS:
        for key in stored[kind].keys() - by_key[kind].keys():
            yield f"{kind} {key} is stored, and no update of it was acknowledged"
        for key, given in by_key[kind].items():
            found = stored[kind].get(key)
            if found is None:
                yield f"{kind} {key} is not stored, and {len(given)} updates were acknowledged"
                continue
            for name in FIELDS[kind]:
                wanted = _values(kind, name, given)
                right = found[name] in wanted
                if name == "created_at" and any(update.again for update in given):
                    right = found[name] <= wanted[0]
                if not right:
                    yield f"{kind} {key}: {name} is {found[name]!r} and should be {wanted} of {len(given)} updates"


def _values(kind: Kind, name: str, given: list[Update]) -> list[object]:
    """The values that a field may have: more than one if two updates were accepted in the same microsecond."""
    if name == "created_at":
        return [given[0].at]
    if name == "updated_at":
        return [given[-1].at]
    having = [update for update in given if name in update.fields]
    if not having:
        return [complete(kind, {})[name]]
    return [update.fields[name] for update in having if update.at == having[-1].at]
