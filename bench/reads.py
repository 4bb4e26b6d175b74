"""Reading back: pages of a large session, fresh reads, and reads beside writing."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from urllib.parse import quote

from bench.load import RequestsRefused
from bench.rows import body, key, task
from bench.services import PATIENCE, Service

#: The large session, and the number of its first task.
SESSION, FIRST = "large", 800_000_000
#: Reads a second beside writing, and the clients that make them.
READS, CLIENTS = 50, 5

_TASK = f"/api/v1/persistence/sessions/{SESSION}/tasks/{key(FIRST)}"


def connect(service: Service) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)


def ask(connection: http.client.HTTPConnection, path: str, rows: bytes | None = None) -> tuple[float, bytes]:
    """GET ``path``, or POST ``rows`` there; the seconds until the answer was there, and the answer."""
    began = time.perf_counter()
    connection.request("POST" if rows else "GET", path, rows)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RequestsRefused(f"{path}: {response.status} {content[:1000]!r}")
    return time.perf_counter() - began, content


def fill(service: Service, count: int) -> None:
    """Send so many tasks of the large session."""
    for start in range(FIRST, FIRST + count, 500):
        rows = [{**task(number), "session_id": SESSION} for number in range(start, min(start + 500, FIRST + count))]
        ask(connect(service), service.path, body(rows, "tasks"))


def walk(service: Service, count: int) -> list[float]:
    """The seconds of each page of the large session, from the first to the last."""
    connection, after = connect(service), ""
    times: list[float] = []
    found: list[str] = []
    while len(found) < count:
        path = service.pages.format(session=SESSION, next=quote(after), offset=len(found))
        seconds, content = ask(connection, path)
        times.append(seconds)
        page = json.loads(content)
        if not isinstance(page, list):
            after, page = page["next"] or "", page.get("items") or page["rows"]
        found += [row["task_id"] for row in page]
    if found != [key(number) for number in range(FIRST, FIRST + count)]:
        raise RequestsRefused(f"{service.name} does not show each task once, in order")
    return times


def read_one(service: Service, waiting: int, times: int) -> list[list[float]]:
    """Seconds for a row while so many rows wait to be written: fresh, and not."""
    fresh, usual, connection = [], [], connect(service)
    for _ in range(times):
        time.sleep(0.1)  # not so soon after the last flush that the next one waits
        fill(service, waiting)
        usual.append(ask(connection, f"{_TASK}?fresh=false")[0])
        fresh.append(ask(connection, _TASK)[0])
    return [fresh, usual]


@contextmanager
def reading(service: Service) -> Iterator[None]:
    """``READS`` reads a second: fresh ones of a row, and first pages, in turn."""
    done = threading.Event()

    def read(number: int) -> None:
        connection, due = connect(service), time.perf_counter() + number / READS
        paths = cycle([_TASK, service.pages.format(session=SESSION, next="")])
        while not done.wait(max(0.0, due - time.perf_counter())):
            ask(connection, next(paths))
            due += CLIENTS / READS

    with ThreadPoolExecutor(CLIENTS) as threads:
        running = [threads.submit(read, number) for number in range(CLIENTS)]
        try:
            yield
        finally:
            done.set()
        for one in running:
            one.result()
