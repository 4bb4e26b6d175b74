"""Random batches, flushes, deletes and reads, one after the other, through a running service, against a dict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.process import Persistd
from tests.rows import session, task
from tornado_persist.records.models import STATUSES, Fields
from tornado_persist.records.queries import FINISHED

PREFIX = "/api/v1/persistence"

#: The rows by their keys.
State: TypeAlias = dict[tuple[str, ...], Fields]
#: A step: its name, and what it needs.
Step: TypeAlias = tuple[Any, ...]

# In the order of keys, which is that of bytes on every database; alike to a lax collation.
IDS = ("A", "a", "a b", "é")
KEYS = ("0", "1", "10", "2", "T", "t")

ids, keys, statuses = st.sampled_from(IDS), st.sampled_from(KEYS), st.sampled_from(STATUSES)
session_fields = st.fixed_dictionaries(
    {"status": statuses}, optional={"total_tasks": st.integers(0, 9), "metadata": st.sampled_from([None, {"k": [1]}])}
)
task_fields = st.fixed_dictionaries(
    {"status": statuses, "sheet_name": st.sampled_from("SsT")},
    optional={"context": st.sampled_from(["x", None]), "retry_count": st.integers(0, 3)},
)
some = st.lists(statuses, max_size=2, unique=True).map(tuple)
fresh = st.booleans()

STEPS = st.one_of(
    st.tuples(st.just("session"), ids, session_fields),
    st.tuples(st.just("tasks"), ids, st.lists(keys, min_size=1, max_size=8), task_fields),
    st.tuples(st.just("tasks"), ids, st.lists(keys, min_size=1, max_size=8), task_fields),
    st.tuples(st.just("flush")),
    st.tuples(st.just("delete"), ids),
    st.tuples(st.just("delete task"), ids, keys),
    st.tuples(st.just("read session"), ids, fresh),
    st.tuples(st.just("read task"), ids, keys, fresh),
    st.tuples(st.just("list sessions"), some, st.integers(1, 3), fresh),
    st.tuples(st.just("list tasks"), ids, some, st.sampled_from([None, "S"]), st.integers(1, 4), fresh),
    st.tuples(st.just("restore"), ids, fresh),
)

NEW_SESSION = {"total_tasks": 0, "metadata": None}
NEW_TASK = {"context": None, "retry_count": 0}


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mysql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    """A service that also flushes of itself, at random moments as the steps see it."""
    server = {"postgres": "postgres_server", "mysql": "mariadb_server"}.get(request.param)
    table = ""
    if server is not None:
        running = request.getfixturevalue(server)
        url = running.fresh_database()
        table = f"[sinks.{request.param}]\nurl = '{url}'\n"
    config = f"sink = '{request.param}'\n[buffer]\ncapacity = 12\nflush_interval = 0.1\nmax_rows = 20\n{table}"
    with Persistd(tmp_path_factory.mktemp(request.param), config) as service:
        yield service
    if server is not None:
        running.drop(url)


examples = itertools.count()


def test_any_sequence_reads_as_a_dict_would(running: Persistd, rounds: int) -> None:
    @settings(max_examples=rounds * 5, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, max_size=25))
    def check(steps: list[Step]) -> None:
        Walk(running.http, f"{next(examples)}").follow(steps)

    check()
    assert "Traceback" not in running.log_text()


class Walk:
    """One client, alone with its rows. What it reads is fresh, or some earlier state, and never older than the last."""

    def __init__(self, http: httpx.Client, name: str) -> None:
        self._http = http
        #: Keeps the examples apart: all ids begin with it, and all sessions name it.
        self._name = name
        #: What was accepted, after each step that changed it, and from where on a read may be.
        self._states: list[State] = [{}]
        self._since = 0

    def follow(self, steps: list[Step]) -> None:
        for step in steps:
            name, *rest = step
            getattr(self, f"do_{name.replace(' ', '_')}")(*rest)
        for id in IDS:
            self.do_list_tasks(id, (), None, 3, fresh=True)
            self.do_read_session(id, fresh=True)

    # Writes

    def do_session(self, id: str, fields: Fields) -> None:
        row = session(self._id(id), llm_provider=self._name, **fields)
        self._send("sessions", [row], [(id,)], {**NEW_SESSION, "llm_provider": self._name})

    def do_tasks(self, id: str, keys: list[str], fields: Fields) -> None:
        rows = [task(key, session_id=self._id(id), row_index=KEYS[::-1].index(key), **fields) for key in keys]
        self._send("tasks", rows, [(id, key) for key in keys], NEW_TASK)

    def _send(self, kind: str, rows: list[Fields], keys: list[tuple[str, ...]], new: Fields) -> None:
        answer = self._http.post(f"{PREFIX}/{kind}/batch", json={kind: rows})
        assert answer.status_code == 200, answer.text
        state = deepcopy(self._states[-1])
        for key, row in zip(keys, rows, strict=True):
            state[key] = {**state.get(key, new), **row}
        self._states.append(state)

    def do_flush(self) -> None:
        assert self._http.post(f"{PREFIX}/flush").status_code == 200
        self._since = len(self._states) - 1

    def do_delete(self, id: str) -> None:
        gone = [key for key in self._states[-1] if key[0] == id]
        self._delete(self._path(id), gone)

    def do_delete_task(self, id: str, key: str) -> None:
        self._delete(f"{self._path(id)}/tasks/{key}", [(id, key)] if (id, key) in self._states[-1] else [])

    def _delete(self, path: str, gone: list[tuple[str, ...]]) -> None:
        answer = self._http.delete(path)
        if not gone:
            assert answer.status_code == 404, answer.text
        else:
            assert answer.status_code == 200, answer.text
            deleted = answer.json()
            sessions = sum(len(key) == 1 for key in gone)
            assert (deleted["sessions_deleted"], deleted["tasks_deleted"]) == (sessions, len(gone) - sessions)
        self._states.append({key: row for key, row in self._states[-1].items() if key not in gone})
        self._since = len(self._states) - 1

    # Reads

    def do_read_session(self, id: str, fresh: bool) -> None:
        found = self._get(self._path(id), fresh=fresh)

        def expected(state: State) -> Fields | None:
            row = state.get((id,))
            tasks = [it for key, it in state.items() if key[0] == id and len(key) == 2]
            counts = {status: sum(it["status"] == status for it in tasks) for status in STATUSES}
            return row and {**row, "tasks": counts}

        self._compare(found, expected, fresh)

    def do_read_task(self, id: str, key: str, fresh: bool) -> None:
        found = self._get(f"{self._path(id)}/tasks/{key}", fresh=fresh)
        self._compare(found, lambda state: state.get((id, key)), fresh)

    def do_list_sessions(self, statuses: tuple[str, ...], limit: int, fresh: bool) -> None:
        def expected(state: State) -> list[Fields]:
            rows = [row for key, row in sorted(state.items()) if len(key) == 1]
            return [row for row in rows if not statuses or row["status"] in statuses]

        where = {"llm_provider": self._name, **({"status": ",".join(statuses)} if statuses else {})}
        self._walk(f"{PREFIX}/sessions", where, limit, "session_id", expected, fresh)

    def do_list_tasks(self, id: str, statuses: tuple[str, ...], sheet: str | None, limit: int, fresh: bool) -> None:
        def expected(state: State) -> list[Fields]:
            rows = [row for key, row in sorted(state.items()) if len(key) == 2 and key[0] == id]
            rows = [row for row in rows if not statuses or row["status"] in statuses]
            return [row for row in rows if sheet is None or row["sheet_name"] == sheet]

        where = {"status": ",".join(statuses)} if statuses else {}
        if sheet is not None:
            where["sheet_name"] = sheet
        self._walk(f"{self._path(id)}/tasks", where, limit, "task_id", expected, fresh)

    def do_restore(self, id: str, fresh: bool) -> None:
        answer = self._http.post(f"{PREFIX}/recovery/restore/{quote(self._id(id))}", params=_flag(fresh))
        assert answer.status_code in (200, 404), answer.text
        found = answer.json() if answer.status_code == 200 else None
        if found is not None:
            # Two reads: each is of one state, the second of the same or a later one.
            self._compare(found["session"], lambda state: state.get((id,)), fresh)
            assert found["truncated"] is False

            def open_tasks(state: State) -> list[Fields]:
                rows = [row for key, row in state.items() if len(key) == 2 and key[0] == id]
                rows = [row for row in rows if row["status"] not in FINISHED]
                return sorted(rows, key=lambda row: (row["sheet_name"], row["row_index"], row["task_id"]))

            self._compare(found["tasks"], open_tasks, fresh)
        else:
            self._compare(None, lambda state: state.get((id,)), fresh)

    def _get(self, path: str, **parameters: Any) -> Fields | None:
        parameters |= _flag(parameters.pop("fresh"))
        answer = self._http.get(path, params=parameters)
        assert answer.status_code in (200, 404), answer.text
        found: Fields = answer.json()
        return found if answer.status_code == 200 else None

    def _walk(self, path: str, where: dict[str, str], limit: int, key: str, expected: Any, fresh: bool) -> None:
        last = ""
        url: str | None = str(httpx.URL(path, params={**where, "limit": str(limit), **_flag(fresh)}))
        while url is not None:
            answer = self._http.get(url)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert fresh or page["pending"] >= 0

            def this_page(state: State, last: str = last) -> tuple[list[Fields], bool]:
                rest = [row for row in expected(state) if row[key] > last]
                return rest[:limit], len(rest) > limit

            self._compare((page["items"], page["next"] is not None), this_page, fresh)
            url = page["next_url"]
            last = page["items"][-1][key] if page["items"] else last

    def _compare(self, found: Any, expected: Any, fresh: bool) -> None:
        """Some state since the last one seen is what was found; a fresh read is of the newest."""
        first = len(self._states) - 1 if fresh else self._since
        for number in range(first, len(self._states)):
            if _holds(found, expected(self._states[number])):
                self._since = number
                return
        raise AssertionError(f"{found}\nis no state of {[expected(state) for state in self._states[first:]]}")

    def _id(self, id: str) -> str:
        return f"{self._name}:{id}"

    def _path(self, id: str) -> str:
        return f"{PREFIX}/sessions/{quote(self._id(id), safe='')}"


def _holds(found: Any, expected: Any) -> bool:
    """Whether each row has the fields that it should have, and perhaps more."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(name in found and found[name] == it for name, it in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_holds, found, expected))
    return bool(found == expected)


def _flag(fresh: bool) -> dict[str, str]:
    return {"fresh": "true" if fresh else "false"}
