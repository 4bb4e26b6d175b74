"""The load generator: pre-encoded requests over a few keep-alive connections, by one thread that only sends and waits.

It shares the processors with what it measures, so it has to cost little: no HTTP library, no event loop, and of an
answer it reads only the status and the end. It reads its job, encodes every request, says ``ready``, waits for ``go``,
and answers with what it measured.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from bench.load import Load
from bench.rows import bodies, lives

#: Seconds without an answer after which it gives up.
SILENCE = 120
#: Seconds within which everything must have been flushed.
FLUSH_PATIENCE = 300


class Connection:
    """One keep-alive connection, with one request under way at most."""

    def __init__(self, host: str, port: int, certificate: str = "") -> None:
        """``certificate``: the file of the one that the service has, if it speaks TLS."""
        self.socket = socket.create_connection((host, port), timeout=10)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(certificate)
            self.socket = context.wrap_socket(self.socket)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.unsent = memoryview(b"")
        self.answer = b""
        self.since = 0.0

    def fileno(self) -> int:
        return self.socket.fileno()

    def begin(self, request: bytes, since: float) -> None:
        """Send a request; its answer time counts from ``since``."""
        self.unsent, self.answer, self.since = memoryview(request), b"", since
        self.send()

    def send(self) -> None:
        """Send as much as goes now."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass

    def receive(self) -> int:
        """Read what arrived; the status once the answer is whole, else 0."""
        try:
            data = self.socket.recv(65536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):  # part of a record
            return 0
        if not data:
            raise ConnectionError("the service closed a connection")
        self.answer += data
        head, separator, content = self.answer.partition(b"\r\n\r\n")
        if not separator:
            return 0
        fields = head.lower()
        if b"transfer-encoding: chunked" in fields:
            whole = content.endswith(b"0\r\n\r\n")
        else:
            length = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            whole = len(content) >= length
        return int(head.split(b" ", 2)[1]) if whole else 0


class Tally:
    """Counts of the answers."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.refused = 0
        self.answer = ""

    def add(self, connection: Connection, status: int, now: float) -> None:
        self.latencies.append(now - connection.since)
        if not 200 <= status < 300:
            self.refused += 1
            self.answer = self.answer or connection.answer.decode(errors="replace")


def closed_loop(connections: list[Connection], lanes: list[deque[bytes]], tally: Tally) -> None:
    """Each connection sends its lane's requests one after the other, as fast as the answers come."""
    busy: dict[Connection, deque[bytes]] = {}
    for connection, lane in zip(connections, lanes, strict=True):
        if lane:
            busy[connection] = lane
            connection.begin(lane.popleft(), time.perf_counter())
    while busy:
        for connection, status in _answers(list(busy), SILENCE):
            now = time.perf_counter()
            tally.add(connection, status, now)
            if lane := busy[connection]:
                connection.begin(lane.popleft(), now)
            else:
                del busy[connection]


def open_loop(connections: list[Connection], requests: deque[bytes], interval: float, tally: Tally) -> None:
    """Send a request every ``interval`` seconds. When all connections wait for answers it goes out late, but its answer
    time counts from when it was due, as it would for a client that sent it then."""
    idle = deque(connections)
    busy: list[Connection] = []
    due = time.perf_counter() + 0.01
    while requests or busy:
        while requests and idle and due <= time.perf_counter():
            connection = idle.popleft()
            connection.begin(requests.popleft(), due)
            busy.append(connection)
            due += interval
        wait = max(0.0, due - time.perf_counter()) if requests and idle else SILENCE
        for connection, status in _answers(busy, wait):
            tally.add(connection, status, time.perf_counter())
            busy.remove(connection)
            idle.append(connection)


def _answers(busy: list[Connection], wait: float) -> Iterator[tuple[Connection, int]]:
    # select() wakes up to the microsecond; epoll() only to the millisecond.
    readable, writable, _ = select.select(busy, [connection for connection in busy if connection.unsent], [], wait)
    if not readable and not writable and wait == SILENCE:
        raise TimeoutError(f"no answer for {SILENCE} seconds")
    for connection in writable:
        connection.send()
    for connection in readable:
        if status := connection.receive():
            yield connection, status


def flush(connection: Connection, request: bytes) -> None:
    """POST a flush until it succeeds."""
    deadline = time.monotonic() + FLUSH_PATIENCE
    while time.monotonic() < deadline:
        connection.begin(request, 0.0)
        status = 0
        while not status:
            status = next((status for _, status in _answers([connection], SILENCE)), 0)
        if status == 200:
            return
        time.sleep(0.05)
    raise TimeoutError(f"not flushed within {FLUSH_PATIENCE} seconds: {connection.answer!r}")


def prepare(job: dict[str, Any], load: Load) -> tuple[list[deque[bytes]], bytes]:
    """The requests, a list for each connection, and the flush; empty if there is nothing to flush."""

    def request(path: str, content: bytes) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: {job['host']}\r\nContent-Type: application/json\r\n"
        return f"{head}{job['headers']}Content-Length: {len(content)}\r\n\r\n".encode() + content

    lanes: list[deque[bytes]] = [deque() for _ in range(load.connections)]
    if load.lives:
        # A task's updates go over one connection, which keeps them in order.
        for number, life in enumerate(lives(load.first, load.count, load.batch, job["list_name"])):
            lanes[number % load.connections].extend(request(job["path"], content) for content in life)
    else:
        for number, content in enumerate(bodies(load.first, load.count, load.batch, job["list_name"])):
            lanes[0 if load.rate else number % load.connections].append(request(job["path"], content))
    return lanes, request(job["flush_path"], b"") if load.flush and job["flush_path"] else b""


def main() -> None:
    """Read a job, run it, write a :class:`bench.load.Sample` as JSON."""
    job = json.loads(sys.stdin.readline())
    load = Load(**job["load"])
    lanes, last = prepare(job, load)
    requests = sum(map(len, lanes))
    connections = [Connection(job["host"], job["port"], job["certificate"]) for _ in range(load.connections)]
    tally = Tally()
    gc.collect()
    gc.disable()
    os.sync()  # what others have written before goes to the disk now, not during the measurement
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        return
    began = time.perf_counter()
    if load.rate:
        open_loop(connections, lanes[0], load.batch / load.rate, tally)
    else:
        closed_loop(connections, lanes, tally)
    accepted = time.perf_counter()
    if last:
        flush(connections[0], last)
    flushed = time.perf_counter()
    times = sorted(tally.latencies)
    result = {
        "rows": load.rows,
        "requests": requests,
        "accepting": accepted - began,
        "flushing": flushed - accepted,
        "p50": times[round((len(times) - 1) * 0.5)],
        "p99": times[round((len(times) - 1) * 0.99)],
        "refused": tally.refused,
        "answer": tally.answer[:1000],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
