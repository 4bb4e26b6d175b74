"""The client and a real service that has no room: 503 with Retry-After, until it has room again."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process import Persistd, wait_until
from tests.rows import task
from tornado_persist.client import Client

#: Small enough for the rows of a test; a journal must have room for some batches.
FULL = "[buffer]\nflush_interval = 0.2\nmax_rows = 10\n[journal]\nsegment_bytes = 100_000\nmax_bytes = 300_000\n"


@contextlib.contextmanager
def locked(service: Persistd) -> Iterator[None]:
    """Nobody else can write to the service's database meanwhile."""
    with contextlib.closing(sqlite3.connect(service.data_dir / "persist.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.execute("ROLLBACK")


def stored(service: Persistd) -> dict[str, str]:
    """Status by task, in the database."""
    service.flush()
    with contextlib.closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        return dict(database.execute("SELECT task_id, status FROM translation_tasks"))


def send(persist: Client) -> int:
    """Send each of 80 tasks twice, 800 kB in all; returns the number of calls."""
    for status in ("pending", "completed"):
        for number in range(80):
            persist.task(**task(f"{number:03}", status=status, source_text="x" * 5000))
            time.sleep(0.002)
    return 160


@pytest.mark.parametrize("retries", [0, 1000])
def test_a_full_journal_costs_what_is_counted_and_nothing_with_retries(tmp_path: Path, retries: int) -> None:
    given: list[dict[str, Any]] = []
    with Persistd(tmp_path, FULL) as service:
        service.post("task", task("first"))
        service.flush()
        persist = Client(
            service.url, retries=retries, interval=0.05, max_batch=20, on_drop=lambda rows, _: given.extend(rows)
        )
        with locked(service):
            calls = send(persist)
            wait_until(lambda: persist.stats.last_error.startswith("503: "), "a refusal")
            assert service.http.get("/health/ready").status_code == 503
            assert "journal is full" in persist.stats.last_error
        wait_until(lambda: service.http.get("/health/ready").status_code == 200, "room in the journal")
        persist.task(**task("last", status="completed"))
        assert persist.flush(30)
        persist.close()
        stats = persist.stats
        assert stats.queued == 0
        assert stats.sent + stats.merged + sum(stats.dropped.values()) == stats.calls == calls + 1
        there = stored(service)
        if retries:
            assert stats.dropped == {}
            assert there == {"first": "pending", "last": "completed"} | {f"{n:03}": "completed" for n in range(80)}
        else:
            assert stats.dropped == {"unavailable": len(given)}
            assert given
            # The last update of a task is stored, or was dropped.
            last = {row["task_id"] for row in given if row["status"] == "completed"}
            assert {name for name, status in there.items() if status == "completed"} | last == {
                "last",
                *(f"{number:03}" for number in range(80)),
            }
            assert service.stats()["client_drops"]["rows"] == len(given)


@pytest.mark.parametrize("retries", [0, 3])
def test_a_service_that_is_busy_is_asked_again_when_it_says(tmp_path: Path, retries: int) -> None:
    with Persistd(tmp_path, server="max_inflight_bytes = 2048\nmax_body_bytes = 4096\n") as service:
        address = "127.0.0.1", int(service.url.rpartition(":")[2])
        with Client(service.url, retries=retries, gzip_from=None) as persist:
            with socket.create_connection(address, 10) as other:
                # It takes the room for its body, whose end it holds back.
                head = (
                    "POST /api/v1/persistence/tasks/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2001\r\n"
                    "Expect: 100-continue\r\n\r\n"
                )
                other.sendall(head.encode())
                assert other.recv(1000).startswith(b"HTTP/1.1 100 "), "now it has the room"
                wait_until(lambda: service.post("task", task("t", source_text="x" * 500)).status_code == 503)
                began = time.monotonic()
                for number in range(3):
                    persist.task(**task(str(number)))
                assert not persist.flush(1)
                wait_until(lambda: persist.stats.last_error.startswith("503: Request bodies of"), "a refusal")
            assert persist.flush(30)
            assert persist.stats.calls == 3
            if retries:
                assert 5 <= time.monotonic() - began < 8, "Retry-After is 5 seconds"
                assert (persist.stats.sent, persist.stats.dropped) == (3, {})
            else:
                assert (persist.stats.sent, persist.stats.dropped) == (0, {"unavailable": 3})
            assert len(stored(service).keys() - {"t"}) == persist.stats.sent
