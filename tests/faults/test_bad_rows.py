"""Rows that a real database rejects: only these are set aside, once each, and all others are stored."""

from __future__ import annotations

import contextlib
import json
import math
import random
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.load import TERMS
from tests.process import Persistd, wait_until
from tests.rig import rig
from tests.rows import row, session, task
from tests.servers import PASSWORD, Server, database_of
from tests.sinks.readers import TABLES, read_mysql, read_postgres, read_sqlite
from tornado_persist.errors import BatchRejected, SinkUnavailable
from tornado_persist.records.models import KINDS, Fields, Kind
from tornado_persist.testing import FlakySink, Stored

MANUAL = "[buffer]\nflush_interval = 3600\ncapacity = 1000000\n"
ROWS = 5000
#: Rows that the table rejects after :meth:`Place.forbid`.
FORBIDDEN = "forbidden"
#: The log line after a crash between setting rows aside and writing the cursor.
CUT = "rejected rows that will be tried again cut off"


class Place(ABC):
    """A database that the service writes to, with its owner's right to change the tables."""

    #: The driver's code for a row that breaks the rule.
    code: str
    #: The configuration's.
    sink: str
    options = ""

    @abstractmethod
    def read(self) -> Stored: ...

    @abstractmethod
    def execute(self, sql: str) -> None:
        """Run statements as the owner."""

    def forbid(self) -> None:
        """Add a rule to both tables, which are in use, that rows with a status of FORBIDDEN's kind break."""
        for kind in KINDS:
            self.execute(f"ALTER TABLE {TABLES[kind]} ADD CONSTRAINT rule_{kind} CHECK ({_rule(kind)})")

    def allow(self) -> None:
        """Drop the rule."""
        for kind in KINDS:
            self.execute(f"ALTER TABLE {TABLES[kind]} DROP CONSTRAINT rule_{kind}")

    def refused(self) -> int:
        """How many writes the database has refused for breaking a rule, by its own count; 0 if it has none."""
        return 0

    def end_writers(self) -> int:
        """End connections in mid-write; how many."""
        return 0


class SQLite(Place):
    sink, code = "sqlite", "SQLITE_CONSTRAINT_TRIGGER"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "data" / "persist.db"

    def read(self) -> Stored:
        return read_sqlite(self.path)

    def execute(self, sql: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(sql)

    def forbid(self) -> None:
        for kind in KINDS:
            for event in ("INSERT", "UPDATE"):
                self.execute(
                    f"CREATE TRIGGER rule_{kind}_{event} BEFORE {event} ON {TABLES[kind]}"
                    f" WHEN NOT ({_rule(kind, 'NEW.')}) BEGIN SELECT RAISE(ABORT, 'the rule is broken'); END"
                )

    def allow(self) -> None:
        for kind in KINDS:
            for event in ("INSERT", "UPDATE"):
                self.execute(f"DROP TRIGGER rule_{kind}_{event}")


class OnServer(Place):
    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url
        self.options = f"[sinks.{self.sink}]\nurl = '{url}'\n"

    def execute(self, sql: str) -> None:
        self.server.admin(sql, database_of(self.url))

    def end_writers(self) -> int:
        return self.server.end_writers(self.url)


class OnPostgres(OnServer):
    sink, code = "postgres", "23514"

    def read(self) -> Stored:
        return read_postgres(self.url)

    def refused(self) -> int:
        return self.server.log.read_text(errors="replace").count("violates check constraint")


class OnMariaDB(OnServer):
    sink, code = "mysql", "4025"

    def read(self) -> Stored:
        return read_mysql(self.url)

    def refused(self) -> int:
        # A ping ends with a rollback, too; there are few of them.
        return int(self.server.admin("SHOW GLOBAL STATUS LIKE 'Com_rollback'")[0][1])


def _rule(kind: Kind, prefix: str = "") -> str:
    column = "filename" if kind == "session" else "sheet_name"
    return f"{prefix}{column} <> '{FORBIDDEN}'"


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    match request.param:
        case "sqlite":
            return SQLite(tmp_path)
        case "postgres":
            server: Server = request.getfixturevalue("postgres_server")
            return OnPostgres(server, request.getfixturevalue("postgres_url"))
        case _:
            server = request.getfixturevalue("mariadb_server")
            return OnMariaDB(server, request.getfixturevalue("mysql_url"))


def serve(directory: Path, place: Place) -> Persistd:
    """A service that writes there, when it is told to."""
    return Persistd(directory, f"sink = '{place.sink}'\n{MANUAL}{place.options}")


def bad(kind: Kind, key: str) -> Fields:
    return session(key, filename=FORBIDDEN) if kind == "session" else task(key, sheet_name=FORBIDDEN, context="好")


def send(service: Persistd, kind: Kind, rows: Sequence[Fields]) -> None:
    for start in range(0, len(rows), 1000):
        response = service.post(kind, *rows[start : start + 1000])
        assert response.status_code == 200, response.text


def put_aside(service: Persistd) -> list[dict[str, Any]]:
    """The entries of rejected.jsonl."""
    file = service.data_dir / "rejected.jsonl"
    if not file.exists():
        return []
    content = file.read_text(encoding="utf-8")
    assert content == "" or content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def keys(entries: Sequence[dict[str, Any]], kind: Kind = "task") -> list[str]:
    """The keys put aside, as often as they are there."""
    return sorted(entry["row"][f"{kind}_id"] for entry in entries if entry["kind"] == kind)


def assert_settled(service: Persistd, *, accepted: int, rejected: int) -> None:
    rows = service.stats()["accounting"]
    assert rows["accepted"] == sum(rows[term] for term in TERMS), rows
    assert (rows["accepted"], rows["rejected"], rows["pending"]) == (accepted, rejected, 0), rows


def assert_no_bug(service: Persistd) -> None:
    for line in service.log_text().splitlines():
        assert "exception" not in json.loads(line), line
    assert PASSWORD not in service.log_text()


def most_refused(bad_rows: int, rows: int) -> int:
    """Writes with a bad row in them when each that is refused is halved: k rows among n, on ⌈log₂ n⌉ + 1 levels."""
    return bad_rows * (math.ceil(math.log2(rows)) + 1)


def test_seven_bad_rows_of_five_thousand_are_put_aside_and_all_others_stored(place: Place, tmp_path: Path) -> None:
    chosen = random.Random(7).sample(range(ROWS), 7)
    wanted = sorted(f"{number:04}" for number in chosen)
    with serve(tmp_path, place) as service:
        send(service, "task", [task("first")])
        service.flush()
        place.forbid()
        before = place.refused()
        rows = [
            bad("task", f"{number:04}") if number in chosen else task(f"{number:04}", row_index=number)
            for number in range(ROWS)
        ]
        send(service, "task", rows)
        flushed = service.flush()
        refused = place.refused() - before
        assert (flushed["status"], flushed["rows_rejected"], flushed["tasks_written"]) == ("flushed", 7, ROWS - 7)
        entries = put_aside(service)
        assert keys(entries) == wanted
        for entry in entries:
            assert entry.keys() >= {"kind", "row", "sink", "code", "message", "at"}
            assert entry["row"] == bad("task", entry["row"]["task_id"]), "as it was sent, to be sent again"
            assert (entry["sink"], entry["code"]) == (place.sink, place.code)
            assert "rule" in entry["message"]
            assert datetime.fromisoformat(entry["at"]).tzinfo is not None
        stored = place.read()["task"]
        assert {id for _, id in stored} == {"first", *(f"{number:04}" for number in range(ROWS))} - set(wanted)
        if not isinstance(place, SQLite):
            assert 7 <= refused <= most_refused(7, ROWS) + 5, "five rollbacks may be the pings'"
        assert [line["rows"] for line in service.log("rows rejected")] == [7]
        assert_settled(service, accepted=ROWS + 1, rejected=7)
        assert service.http.get("/health").status_code == 200, "a bad row is no outage"
        # The rule is dropped, and the rows set aside are sent again.
        place.allow()
        send(service, "task", [entry["row"] for entry in entries])
        assert service.flush()["tasks_written"] == 7
        assert {row["sheet_name"] for key, row in place.read()["task"].items() if key[-1] in wanted} == {FORBIDDEN}
        assert len(put_aside(service)) == 7
        assert_settled(service, accepted=ROWS + 8, rejected=7)
        assert_no_bug(service)


def test_bad_sessions_and_bad_tasks_of_one_flush_are_told_apart(place: Place, tmp_path: Path) -> None:
    with serve(tmp_path, place) as service:
        send(service, "task", [task("first")])
        service.flush()
        place.forbid()
        for kind in KINDS:
            send(service, kind, [row(kind, f"{number}") for number in range(100)])
            send(service, kind, [bad(kind, key) for key in ("7", "42", "new")])
        flushed = service.flush()
        assert (flushed["sessions_written"], flushed["tasks_written"], flushed["rows_rejected"]) == (98, 98, 6)
        entries = put_aside(service)
        stored = place.read()
        for kind in KINDS:
            assert keys(entries, kind) == ["42", "7", "new"]
            assert {key[-1] for key in stored[kind]} - {"first"} == {f"{number}" for number in range(100)} - {"7", "42"}
        # A good row and a bad update of it were one row by then, and are refused as one; sent again it is good.
        send(service, "session", [session("7", filename="good")])
        service.flush()
        assert place.read()["session"][("7",)]["filename"] == "good"
        assert_settled(service, accepted=208, rejected=6)
        assert_no_bug(service)


def test_a_bad_update_leaves_the_stored_row_as_it_was(place: Place, tmp_path: Path) -> None:
    with serve(tmp_path, place) as service:
        send(service, "task", [task("a", context="old"), task("b", context="old")])
        service.flush()
        place.forbid()
        send(service, "task", [task("b", context="new"), bad("task", "a")])
        assert service.flush()["rows_rejected"] == 1
        assert {key[-1]: row["context"] for key, row in place.read()["task"].items()} == {"a": "old", "b": "new"}


def test_a_crash_while_rows_are_put_aside_leaves_each_there_once(
    place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rounds = (request.config.getoption("--soak") or 20) // 6
    dice = random.Random(5)
    wanted: list[str] = []
    good: set[str] = set()
    with serve(tmp_path, place) as service:
        file = service.data_dir / "rejected.jsonl"
        # The tables are there as soon as the sink was opened, before the first flush of this data directory.
        wait_until(lambda: service.http.get("/health").status_code == 200, "the sink to be open")
        place.forbid()
        for round in range(5 * rounds):
            rows = [task(f"{round}-{number}") for number in range(100)]
            for number in (3, 50, 99):
                rows[number] = bad("task", f"{round}-{number}")
            send(service, "task", rows)
            if round % 2:
                # An operator has repaired those rows and moves the file away; a new one is started.
                file.unlink()
                wanted.clear()
            wanted += [f"{round}-{number}" for number in (3, 50, 99)]
            good |= {row["task_id"] for row in rows} - set(wanted)
            kill_when_it_grows(
                service, service.data_dir / "rejected.jsonl", dice.choice((0, 0, 0.001, 0.003, 0.01)) if round else 0
            )
            service.start()
            service.flush()
            assert Counter(keys(put_aside(service))) == Counter(wanted)
            assert {id for _, id in place.read()["task"]} == good
            assert_settled(service, accepted=100 * (round + 1), rejected=3 * (round + 1))
            if round >= rounds - 1 and service.log(CUT):
                break
        assert service.log(CUT), "no crash came between the file and the cursor"
        assert_no_bug(service)


def kill_when_it_grows(service: Persistd, file: Path, after: float) -> None:
    """Start a flush, and ``kill -9`` the service so many seconds after the file has become longer."""

    def flush() -> None:
        with contextlib.suppress(httpx.TransportError):  # it is killed
            httpx.post(f"{service.url}/api/v1/persistence/flush", timeout=60)

    def length() -> int:
        return file.stat().st_size if file.exists() else 0

    before = length()
    client = threading.Thread(target=flush)
    client.start()
    deadline = time.monotonic() + 30
    while length() == before:
        assert time.monotonic() < deadline, "nothing was put aside"
    threading.Event().wait(after)
    service.kill()
    client.join()


def test_lines_added_to_the_refused_rows_survive_a_restart_and_a_crash(tmp_path: Path) -> None:
    added = b'{"note": "asked the team about these"}\n'
    rejected = tmp_path / "data" / "rejected.jsonl"
    with Persistd(tmp_path, MANUAL) as service:
        with contextlib.closing(sqlite3.connect(service.data_dir / "persist.db")) as connection:
            connection.execute(
                "CREATE TRIGGER rule BEFORE INSERT ON translation_tasks WHEN NEW.source_text = 'bad'"
                " BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        service.post("task", task("a", source_text="bad"))
        service.flush()
        with rejected.open("ab") as file:
            file.write(added)
        assert service.stop() == 0
        service.start()
        before = rejected.read_bytes()
        assert before.endswith(added)
        service.post("task", task("b", source_text="bad"))
        service.flush()
        service.post("task", task("c"))
        service.kill()
        service.start()
        service.flush()
        lines = rejected.read_bytes().splitlines(keepends=True)
        assert b"".join(lines[:2]) == before
        assert [json.loads(line)["row"]["task_id"] for line in lines[2:]] == ["b"]


@pytest.mark.parametrize("place", ["postgres", "mysql"], indirect=True)
def test_connections_that_end_during_the_search_for_bad_rows_change_nothing_of_it(place: Place, tmp_path: Path) -> None:
    wanted = sorted(f"{number:04}" for number in random.Random(9).sample(range(ROWS), 7))
    with serve(tmp_path, place) as service:
        wait_until(lambda: service.http.get("/health").status_code == 200, "the sink to be open")
        place.forbid()
        send(
            service,
            "task",
            [bad("task", key) if key in wanted else task(key) for key in (f"{n:04}" for n in range(ROWS))],
        )
        # Then the flush fails, and the next one continues with the rest.
        ended = 0
        flushing = threading.Thread(target=lambda: httpx.post(f"{service.url}/api/v1/persistence/flush", timeout=60))
        flushing.start()
        deadline = time.monotonic() + 30
        while ended < 3 and flushing.is_alive() and time.monotonic() < deadline:
            ended += place.end_writers()
        flushing.join()
        wait_until(lambda: service.http.post("/api/v1/persistence/flush").status_code == 200, "the flush")
        assert ended > 0
        assert keys(put_aside(service)) == wanted
        assert {id for _, id in place.read()["task"]} == {f"{number:04}" for number in range(ROWS)} - set(wanted)
        assert_settled(service, accepted=ROWS, rejected=7)
        assert_no_bug(service)


# How many writes it costs, exactly


class PickySink(FlakySink):
    """Refuses some tasks, in a chosen way."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: set[str] = set()
        self.refuse: Callable[[], Exception] = lambda: BatchRejected("no", code="23514")

    def write(self, batch: Any) -> None:
        if any(row["task_id"] in self.bad for row in batch.tasks):
            self.calls.append("refused")
            raise self.refuse()
        super().write(batch)


def tries(bad: Sequence[bool], *, known: bool = False) -> tuple[int, int]:
    """Refused and successful writes when a chunk with these bad rows is halved; ``known``: some are bad."""
    if not any(bad):
        return 0, 1
    if len(bad) == 1:
        return 1, 0
    first, second = bad[: len(bad) // 2], bad[len(bad) // 2 :]
    halves = tries(first), tries(second, known=not any(first))
    return sum(refused for refused, _ in halves) + (not known), sum(written for _, written in halves)


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("count", [1, 2, 7, 50])
async def test_k_bad_rows_of_n_cost_about_k_times_log_n_writes(tmp_path: Path, count: int) -> None:
    sink = PickySink()
    async with rig(tmp_path, sink, max_batch=ROWS, capacity=ROWS * 2) as it:
        sink.bad = {f"{number}" for number in random.Random(count).sample(range(ROWS), count)}
        await it.add(*(f"{number}" for number in range(ROWS)))
        flushed = await it.flusher.flush_once()
        assert (flushed.tasks, flushed.rejected, flushed.error) == (ROWS - count, count, None)
        refused, written = sink.calls.count("refused"), sink.calls.count("write")
        assert refused <= most_refused(count, ROWS)
        assert (refused, written) == tries([f"{number}" in sink.bad for number in range(ROWS)])
        assert it.stored() == [f"{number}" for number in range(ROWS) if f"{number}" not in sink.bad], "in order"
        assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == count


@pytest.mark.gen_test(timeout=60)
async def test_an_outage_with_rows_at_hand_that_would_be_refused_puts_none_of_them_aside(tmp_path: Path) -> None:
    sink = PickySink()
    sink.refuse = lambda: SinkUnavailable("the table is missing", code="42P01")
    async with rig(tmp_path, sink, max_batch=ROWS, capacity=ROWS * 2) as it:
        sink.bad = {"17"}
        await it.add(*(f"{number}" for number in range(1000)))
        for _ in range(20):
            assert (await it.flusher.flush_once()).error is not None
        # After a failure few rows are tried, so the rows before the bad one are written.
        assert it.pending() == 1000 - len(it.stored())
        assert int(max(it.stored(), key=int)) < 17
        assert sink.calls.count("refused") == 20, "one try each: an outage is not bisected"
        assert not (tmp_path / "rejected.jsonl").exists()
        sink.bad.clear()
        while it.pending():
            assert (await it.flusher.flush_once()).error is None
        assert sorted(it.stored(), key=int) == [f"{number}" for number in range(1000)]
