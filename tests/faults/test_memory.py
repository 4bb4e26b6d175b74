"""A long outage costs disk and not memory, and waiting rows are written in the order of acceptance."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.load import TERMS
from tests.process import Persistd, wait_until
from tests.rows import task
from tests.servers import MariaDB, Postgres, Server
from tests.sinks.readers import connect_mysql

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")

#: Rows in a request.
BATCH = 1000
#: The long form: rows, and the MB that an outage may cost with the 100,000 rows in memory that are the default.
MANY, MANY_IN_MEMORY, MANY_MB = 2_000_000, 100_000, 300
#: The short form has a fifth of the rows in memory, and so of the MB.
SOME, SOME_IN_MEMORY = 300_000, 20_000
#: Seconds for the slowest server to take the rows of the long form.
DRAIN = 600

_ROW = json.dumps(task("KEY", row_index=0)).replace('"row_index": 0', '"row_index": NUMBER')


def config(server: Server, url: str, max_rows: int) -> str:
    sink = "postgres" if isinstance(server, Postgres) else "mysql"
    return f"sink = '{sink}'\n[buffer]\nmax_rows = {max_rows}\nflush_interval = 1\n[sinks.{sink}]\nurl = '{url}'\n"


def send(service: Persistd, numbers: range) -> None:
    """Tasks with these numbers, one batch after the other, so that they are accepted in this order."""
    for start in range(numbers.start, numbers.stop, BATCH):
        rows = [
            _ROW.replace("KEY", f"{n:08}").replace("NUMBER", f"{n}") for n in numbers[start - numbers.start :][:BATCH]
        ]
        content = f'{{"tasks": [{", ".join(rows)}]}}'.encode()
        response = service.http.post("/api/v1/persistence/tasks/batch", content=content)
        assert response.status_code == 200, response.text


def megabytes(service: Persistd, what: str) -> float:
    """``VmRSS``: the process's resident memory; ``VmHWM``: the most that it ever was."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{what}:"))
    return int(line.split()[1]) / 1024


def accounting(service: Persistd) -> dict[str, int]:
    rows: dict[str, int] = service.stats()["accounting"]
    assert rows["accepted"] == sum(rows[term] for term in TERMS), rows
    return rows


class Reader:
    """A reader that queries the table all the time, and must see the rows from the first on, without a gap."""

    def __init__(self, server: Server, url: str) -> None:
        self._connect: Callable[[], Any] = (
            (lambda: psycopg.connect(url, autocommit=True))
            if isinstance(server, Postgres)
            else (lambda: connect_mysql(url))
        )
        #: The numbers of rows seen, each that was new.
        self.seen: list[int] = []

    def look(self) -> None:
        """One look. One statement sees one state."""
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*), COALESCE(MAX(row_index), -1) + 1, SUM(row_index) FROM translation_tasks")
            rows, end, total = cursor.fetchone()
        assert rows == end, f"{rows} rows are there, and the last one is number {end - 1}"
        assert (total or 0) == rows * (rows - 1) // 2
        if not self.seen or rows != self.seen[-1]:
            self.seen.append(rows)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again until the context ends, and once more."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.05):
                self.look()

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                yield
            finally:
                stop.set()
        watching.result()
        self.look()


def wait_for_drain(service: Persistd) -> None:
    """Until nothing waits; the flusher goes on by itself."""
    deadline = time.monotonic() + DRAIN
    while accounting(service)["pending"]:
        assert time.monotonic() < deadline, service.stats()
        threading.Event().wait(0.1)


def test_an_outage_costs_disk_and_not_memory_and_then_all_is_written_in_order(
    server: Server,
    url: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    long = bool(request.config.getoption("--soak"))
    count, max_rows = (MANY, MANY_IN_MEMORY) if long else (SOME, SOME_IN_MEMORY)
    most = MANY_MB * max_rows // MANY_IN_MEMORY
    if not long and isinstance(server, MariaDB):
        count //= 3  # it is the same code but for the last step, and the slower one there
    extra = 10 * BATCH
    with Persistd(tmp_path, config(server, url, max_rows)) as service:
        idle = megabytes(service, "VmRSS")
        server.stop()
        began = time.monotonic()
        send(service, range(count))
        accepted = time.monotonic() - began
        stats = service.stats()
        assert accounting(service)["pending"] == count
        assert (stats["journal"]["records"], stats["buffer"]["tasks_count"]) == (count // BATCH, count)
        assert stats["journal"]["bytes"] > count * len(_ROW)
        outage = megabytes(service, "VmHWM") - idle
        assert outage < most, f"{outage:.0f} MB more than idle"
        assert service.http.get("/health/ready").status_code == 200

        server.start()
        reader = Reader(server, url)
        began = time.monotonic()
        with reader.watching():
            # New rows wait behind the earlier ones.
            send(service, range(count, count + extra))
            wait_for_drain(service)
        drain = time.monotonic() - began
        assert reader.seen[-1] == count + extra
        assert len(reader.seen) > 3, "the reader saw it grow"
        expected = {"accepted": count + extra, "written": count + extra}
        assert accounting(service) == expected | {"merged": 0, "rejected": 0, "pending": 0}
        wait_until(lambda: service.stats()["journal"]["records"] == 0, "the journal's space to be given up")
        peak = megabytes(service, "VmHWM") - idle
        assert peak < most, f"{peak:.0f} MB more than idle"
        for line in service.log_text().splitlines():
            assert "exception" not in json.loads(line), line
    figures = {"rows": count, "idle": idle, "outage": outage, "peak": peak}
    record_testsuite_property(f"{server.scheme} outage", figures | {"accepted": accepted, "drain": drain})


def test_a_crash_in_a_long_outage_changes_neither_the_memory_nor_the_order(
    server: Server, url: str, tmp_path: Path
) -> None:
    count, max_rows = 40_000, 5_000
    with Persistd(tmp_path, config(server, url, max_rows)) as service:
        idle = megabytes(service, "VmRSS")
        server.stop()
        send(service, range(count // 2))
        service.kill()
        service.start()
        assert accounting(service)["pending"] == count // 2
        send(service, range(count // 2, count))
        assert accounting(service)["pending"] == count
        server.start()
        reader = Reader(server, url)
        with reader.watching():
            # And again, while the database receives the waiting rows.
            wait_until(lambda: accounting(service)["written"] > 0, "the first rows")
            service.kill()
            service.start()
            wait_for_drain(service)
        assert reader.seen[-1] == count
        rows = accounting(service)
        assert (rows["accepted"], rows["rejected"], rows["pending"]) == (count, 0, 0)
        assert megabytes(service, "VmHWM") - idle < MANY_MB * max_rows // MANY_IN_MEMORY + 16


#: Bytes of a large row's text, large rows in a request, and requests: in the short form and in the long one.
LARGE, LARGE_ROWS, LARGE_REQUESTS, MANY_LARGE_REQUESTS = 1_000_000, 8, 60, 260
#: Kilobytes of memory of its own that the process may have: 50 MiB when idle, the stacks of its threads, the default
#: ``buffer.max_bytes``, and some copies of a chunk.
MEMORY = 512 << 10


def test_large_rows_in_a_long_outage_and_a_crash_stay_within_the_memory(
    server: Server, url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    requests = MANY_LARGE_REQUESTS if request.config.getoption("--soak") else LARGE_REQUESTS
    count = requests * LARGE_ROWS
    limited = ("sh", "-c", f'ulimit -d {MEMORY}; exec "$@"', "sh")
    with Persistd(tmp_path, config(server, url, 100_000), prefix=limited) as service:
        server.stop()
        for start in range(0, count, LARGE_ROWS):
            response = service.post(
                "task", *(task(f"{n}", source_text=f"{n:08}" * (LARGE // 8)) for n in range(start, start + LARGE_ROWS))
            )
            assert response.status_code == 200, response.text
        assert accounting(service)["pending"] == count
        service.kill()
        service.start()
        assert accounting(service)["pending"] == count
        server.start()
        wait_for_drain(service)
        assert accounting(service) == {"accepted": count, "written": count, "merged": 0, "rejected": 0, "pending": 0}
        assert service.stop() == 0
        assert not [line for line in service.log() if "exception" in line]
    with closing(psycopg.connect(url) if isinstance(server, Postgres) else connect_mysql(url)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT COUNT(*), SUM(LENGTH(source_text)) FROM translation_tasks")
        assert cursor.fetchone() == (count, count * LARGE)
