"""The load generator: pre-encoded requests over a few keep-alive connections, by one thread that only sends and waits.

It shares the processors with what it measures, so it is made to cost little: no HTTP library, no event loop, and of an
answer it reads the status and the end.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from bench.load import Load, percentiles
from bench.rows import bodies, lives
from bench.worker import serve

#: Seconds without any answer after which it gives up.
SILENCE = 120
#: Seconds within which everything must have been flushed.
FLUSH_PATIENCE = 300


class Connection:
    """One keep-alive connection, with one request under way at most."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=10)
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
        except BlockingIOError:
            pass

    def receive(self) -> int:
        """Read what came; the status once the answer is whole, else 0."""
        data = self.socket.recv(65536)
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
    """What the answers were."""

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
    time counts from when it was due, as it would for a client that came then."""
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
    # Of all the ways to wait this one keeps to the microsecond, and eight connections are few.
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


def _lanes(load: Load) -> list[deque[bytes]]:
    return [deque() for _ in range(load.connections)]


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """``job``: the load, ``host`` and ``port``, the ``path`` for batches, the ``name`` of their list, ``headers``, and
    the ``flush_path``, empty where there is nothing to flush."""
    load = Load(**job["load"])
    host, port = job["host"], job["port"]

    def request(path: str, content: bytes) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        return f"{head}{job['headers']}Content-Length: {len(content)}\r\n\r\n".encode() + content

    fills: list[list[deque[bytes]]] = [_lanes(load)]
    if load.lives:
        # A task's updates go over one connection, which keeps them in order.
        for number, life in enumerate(lives(load.first, load.count, load.batch, job["name"])):
            fills[0][number % load.connections].extend(request(job["path"], content) for content in life)
    else:
        for number, content in enumerate(bodies(load.first, load.count, load.batch, load.revision, job["name"])):
            if load.fill and number and number * load.batch % load.fill == 0:
                fills.append(_lanes(load))
            fills[-1][0 if load.rate else number % load.connections].append(request(job["path"], content))
    connections = [Connection(host, port) for _ in range(load.connections)]

    def run() -> dict[str, Any]:
        tally = Tally()
        requests = sum(len(lane) for lanes in fills for lane in lanes)
        accepting = flushing = 0.0
        cpu = time.process_time()
        for lanes in fills:
            began = time.perf_counter()
            if load.rate:
                open_loop(connections, lanes[0], load.batch / load.rate, tally)
            else:
                closed_loop(connections, lanes, tally)
            accepted = time.perf_counter()
            if load.flush and job["flush_path"]:
                flush(connections[0], request(job["flush_path"], b""))
            accepting += accepted - began
            flushing += time.perf_counter() - accepted
        return {
            "rows": load.rows,
            "requests": requests,
            "accepting": accepting,
            "flushing": flushing,
            "latencies": percentiles(tally.latencies),
            "refused": tally.refused,
            "answer": tally.answer[:1000],
            "own_cpu": time.process_time() - cpu,
        }

    return run


if __name__ == "__main__":
    serve(prepare)
