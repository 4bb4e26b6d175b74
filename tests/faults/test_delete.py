"""Deletes under load, with SIGKILL at random moments: what was deleted stays deleted, and nothing else is."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.faults.test_kill import Place, no_errors, place
from tests.process import AtWork, Persistd, wait_until
from tests.rows import body, session, task
from tornado_persist.records.models import PLURALS, Fields, Kind

PREFIX = "/api/v1/persistence"
#: Rounds between two looks at what is stored.
LOOK_EVERY = 5


class Deleting(AtWork):
    """Clients in threads. Each makes sessions of its own, deletes some of them, and knows what came of it."""

    def __init__(self, service: Persistd, seed: int, clients: int = 4) -> None:
        self._service = service
        super().__init__(*(partial(self._work, random.Random(f"{seed} {number}")) for number in range(clients)))
        self._numbers = itertools.count()
        #: The tasks of each session that must be there, and whether its own row must be.
        self.kept: dict[str, set[str]] = {}
        #: Sessions of which no row may be there.
        self.gone: set[str] = set()
        #: Sessions whose last request had no answer: any part of them may be there.
        self.unknown: set[str] = set()

    def wait_for(self, more: int) -> None:
        """Until so many more sessions were deleted."""
        goal = len(self.gone) + more
        self.wait_until(lambda: len(self.gone) >= goal, f"{more} more deletes")

    def check(self, at: Place, data_dir: Path) -> None:
        stored = at.read(data_dir)
        sessions = {key[0] for key in stored["session"]}
        tasks: dict[str, set[str]] = {}
        for session_id, task_id in stored["task"]:
            tasks.setdefault(session_id, set()).add(task_id)
        assert not self.gone & (sessions | tasks.keys()), "deleted, and there again"
        for session_id, its_tasks in self.kept.items():
            assert session_id in sessions
            assert tasks.get(session_id, set()) == its_tasks, f"{session_id} was not deleted"
        assert sessions | tasks.keys() <= self.kept.keys() | self.unknown

    def _work(self, rng: random.Random) -> None:
        with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=self._service.url, timeout=30) as http:
            while not self.stopping.is_set():
                self._live(http, rng)
        self.stopping.wait(0.01)

    def _live(self, http: httpx.Client, rng: random.Random) -> None:
        """The life of one session."""
        session_id = f"s{next(self._numbers)}"
        keys = [f"t{number}" for number in range(rng.randint(1, 40))]
        self.unknown.add(session_id)
        self._post(http, "session", session(session_id, status="completed"))
        for start in range(0, len(keys), 15):
            self._post(http, "task", *(task(key, session_id=session_id) for key in keys[start : start + 15]))
        time.sleep(rng.choice((0, 0, 0.05, 0.2)))
        if rng.random() < 0.3:
            self.kept[session_id] = set(keys)
            self.unknown.discard(session_id)
        elif rng.random() < 0.2:
            key = rng.choice(keys)
            answer = http.delete(f"{PREFIX}/sessions/{session_id}/tasks/{key}")
            assert answer.status_code == 200, answer.text
            self.kept[session_id] = {*keys} - {key}
            self.unknown.discard(session_id)
        else:
            answer = http.delete(f"{PREFIX}/sessions/{session_id}")
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert (found["sessions_deleted"], found["tasks_deleted"]) == (1, len(keys))
            self.gone.add(session_id)
            self.unknown.discard(session_id)

    @staticmethod
    def _post(http: httpx.Client, kind: Kind, *rows: Fields) -> None:
        answer = http.post(f"{PREFIX}/{PLURALS[kind]}/batch", content=body(kind, *rows))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql"])
def test_what_was_deleted_stays_deleted_and_nothing_else_is(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    rng: random.Random,
    rounds: int,
    name: str,
) -> None:
    at = place(name, request)

    def config() -> str:
        return f"""
sink = "{name}"
[buffer]
capacity = {rng.choice((20, 100, 1000))}
flush_interval = {rng.choice((0.05, 0.5))}
max_rows = {rng.choice((200, 5000))}
flush_timeout = 30
[journal]
segment_bytes = {rng.choice((4096, 1 << 20))}
{at.table}"""

    with Persistd(tmp_path, config()) as service:
        load = Deleting(service, rng.randrange(10**9))
        for number in range(1, rounds + 1):
            with load:
                load.wait_for(3)
                time.sleep(rng.uniform(0, 0.1))
                service.kill()
                load.stopping.set()
            service.configure(config())
            service.start()
            if number % LOOK_EVERY == 0 or number == rounds:
                service.flush()
                load.check(at, service.data_dir)
        assert len(load.gone) >= 3 * rounds
        assert load.kept
        accounting = service.stats()["accounting"]
        assert accounting["accepted"] == sum(accounting[it] for it in ("written", "merged", "rejected", "pending"))
        no_errors(service)


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql"])
def test_a_delete_of_several_pieces_that_was_killed_can_be_repeated(
    tmp_path: Path, request: pytest.FixtureRequest, rng: random.Random, rounds: int, name: str
) -> None:
    """The session's own row goes last, so what is left is found by it."""
    at, tasks = place(name, request), 22_000  # a piece has 5,000 rows at most
    config = f"sink = '{name}'\n[buffer]\nflush_interval = 3600\nflush_timeout = 30\n{at.table}"
    with Persistd(tmp_path, config) as service:
        service.post("session", session("kept"))
        service.post("task", *(task(f"t{number}", session_id="kept") for number in range(10)))
        usual, in_part = 0.0, 0
        for number in range(max(5, rounds // 4)):
            service.post("session", session("big"))
            for start in range(0, tasks, 1000):
                some = (task(f"t{it}", session_id="big") for it in range(start, start + 1000))
                assert service.post("task", *some).status_code == 200
            service.flush()
            if not usual:
                began = time.monotonic()
                assert service.http.delete(f"{PREFIX}/sessions/big").json()["tasks_deleted"] == tasks
                usual = time.monotonic() - began
                service.kill()
                service.start()  # it counts from 0 again
                continue
            answers: list[httpx.Response] = []

            def delete(answers: list[httpx.Response] = answers) -> None:
                with contextlib.suppress(httpx.TransportError):
                    answers.append(httpx.delete(f"{service.url}{PREFIX}/sessions/big", timeout=30))

            thread = threading.Thread(target=delete)
            thread.start()
            if number % 2:
                wait_until(lambda: service.stats()["deleted"]["tasks"], "a piece that is gone", pause=0)
            else:
                time.sleep(rng.uniform(0.1, 1) * usual)
            service.kill()
            thread.join()
            service.start()
            stored = at.read(service.data_dir)
            left = sum(key[0] == "big" for key in stored["task"])
            in_part += 0 < left < tasks
            if answers:
                assert answers[0].status_code == 200
                assert left == 0
            assert (("big",) in stored["session"]) or left == 0
            again = service.http.delete(f"{PREFIX}/sessions/big")
            if ("big",) in stored["session"]:
                assert (again.status_code, again.json()["tasks_deleted"]) == (200, left)
            else:
                assert again.status_code == 404
            service.flush()
            kept = at.read(service.data_dir)
            assert set(kept["session"]) == {("kept",)}
            assert set(kept["task"]) == {("kept", f"t{number}") for number in range(10)}
        assert in_part
        no_errors(service)
