"""What one client may send within the limits, against a service in a process of its own: how long the others wait for
their answers, and the memory that it takes.
"""

from __future__ import annotations

import gzip
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.process import Persistd, wait_until
from tests.records.test_bodies import HEAVY, SIZE, TASK
from tests.rows import body, task
from tests.web.test_http import BATCH, get, post
from tornado_persist.web.app import PREFIX

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has"),
]

#: Seconds that another client may wait for its answer. Measured: 0.08 on two cores.
STALL = 0.25
#: Seconds until what is not worth reading is refused. Measured: 0.002 and 0.007.
REFUSED = 0.05
#: MiB of memory more than when idle. Measured: 150.
MEMORY = 400

KEEP = '[records]\nunknown_fields = "keep"\ninvalid_rows = "set_aside"\n'


@pytest.fixture(scope="module", params=["", KEEP], ids=["default", "keep"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    with Persistd(tmp_path_factory.mktemp("attacked"), request.param) as service:
        yield service


class Stalls:
    """Another client, which asks all the time: its longest wait, in seconds."""

    def __init__(self, service: Persistd) -> None:
        self.longest = 0.0
        self._service = service

    @contextmanager
    def watching(self) -> Iterator[None]:
        done = threading.Event()
        watching = threading.Thread(target=self._watch, args=(done,))
        watching.start()
        try:
            yield
        finally:
            done.set()
            watching.join()

    def _watch(self, done: threading.Event) -> None:
        with connect(self._service) as client:
            while not done.wait(0.003):
                began = time.monotonic()
                client.sendall(get("/health/live"))
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
                self.longest = max(self.longest, time.monotonic() - began)


def connect(service: Persistd) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=30)


def attack(service: Persistd, request: bytes) -> int:
    """Send one request, and flush if it was accepted; its status."""
    with connect(service) as client:
        client.sendall(request)
        status = int(client.recv(4096).split()[1])
    if status == 200:
        service.flush()
    return status


def stall(service: Persistd, request: bytes, *statuses: int) -> float:
    """The longest wait of another client meanwhile. The machine may be busy: the best of three."""
    shortest = float("inf")
    for _ in range(3):
        stalls = Stalls(service)
        with stalls.watching():
            assert attack(service, request) in statuses
        shortest = min(shortest, stalls.longest)
        if shortest < STALL:
            break
    return shortest


def mebibytes(service: Persistd, what: str) -> float:
    """``VmRSS``: the process's memory; ``VmHWM``: the most that it ever was."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{what}:")) / 1024


#: Bodies that took the longest before they were parsed in a thread: see HEAVY.
MORE = [
    ("session", HEAVY[0][1], b',"\\\\u0000"', b"]}}]}"),
    ("session", HEAVY[0][1], b"," + b"1" * 4300, b"]}}]}"),
    ("session", HEAVY[0][1], b"," + b"[" * 18 + b'"\\\\"' + b"]" * 18, b"]}}]}"),
    ("task", TASK + b', "x": [0', b"," + b"[" * 18 + b"]" * 18, b"]}]}"),
    ("task", TASK + b', "x": {"a": 0', b',"a":{"a":[]}', b"}}]}"),
    ("task", b'{"tasks": [{"task_id": "1"', b',"a":[]', b"}]}"),
]


@pytest.mark.parametrize("number", range(len(HEAVY) + len(MORE)))
def test_no_request_holds_the_others_or_takes_much_memory(service: Persistd, number: int) -> None:
    kind, start, piece, end = [*HEAVY, *MORE][number]
    content = start + piece * ((SIZE - len(start) - len(end)) // len(piece)) + end
    request = post(f"{PREFIX}/{kind}s/batch", content)
    before = mebibytes(service, "VmRSS")
    assert stall(service, request, 200, 400, 422) < STALL
    assert mebibytes(service, "VmHWM") - before < MEMORY


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(b"") * 524_254 + gzip.compress(b"{}"), gzip.compress(bytes(SIZE * 8)), gzip.compress(b" " * SIZE)],
    ids=["members", "bomb", "blanks"],
)
def test_no_compressed_body_holds_the_others(service: Persistd, packed: bytes) -> None:
    assert stall(service, post(BATCH, packed, "Content-Encoding: gzip"), 400, 413) < STALL


@pytest.mark.parametrize("size", [1 << 20, SIZE], ids=["1 MiB", "10 MiB"])
def test_a_body_of_many_gzip_members_is_refused_at_once(service: Persistd, size: int) -> None:
    member = gzip.compress(b"")
    packed = member * ((size - 100) // len(member)) + gzip.compress(b"{}")
    request = post(BATCH, packed, "Content-Encoding: gzip")
    shortest = float("inf")
    for _ in range(5):
        with connect(service) as client:
            client.sendall(request[:-1])
            time.sleep(0.1)  # until it has read what came
            began = time.monotonic()
            client.sendall(request[-1:])
            assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
            shortest = min(shortest, time.monotonic() - began)
    assert shortest < REFUSED


def test_hundreds_of_slow_bodies_and_half_heads_take_little_memory_and_leave_the_log_quiet(tmp_path: Path) -> None:
    started = post(BATCH, body("task", task("slow", source_text="x" * (9 << 20))))[: 1 << 20]
    with Persistd(tmp_path, server="header_timeout = 2.0\nbody_timeout = 2.0\nmax_connections = 500\n") as service:
        before, lines = mebibytes(service, "VmRSS"), len(service.log())
        with ExitStack() as stack:
            for sent in (started, b"GET /health HTTP/1.1\r\nHost: loc"):
                for _ in range(200):
                    client = stack.enter_context(connect(service))
                    client.settimeout(0.05)
                    with suppress(OSError):  # what is over server.max_inflight_bytes is refused and not read
                        client.sendall(sent)
            # Meanwhile it answers others.
            assert service.http.get("/health/live").status_code == 200
            assert service.post("task", task("good")).status_code in (200, 503)
            assert mebibytes(service, "VmHWM") - before < MEMORY
            wait_until(lambda: service.post("task", task("good")).status_code == 200, "room for bodies")
        told = [line for line in service.log()[lines:] if line["event"] != "request"]
        assert len(told) < 50
        assert "Traceback" not in service.log_text()


def test_clients_that_go_away_within_large_bodies_leave_no_memory_behind(service: Persistd) -> None:
    content = body("task", task("gone", source_text="x" * (5 << 20)))
    chunk = b"%x\r\n%b" % (len(content), content[:-9])
    head = f"POST {BATCH} HTTP/1.1\r\nHost: localhost\r\n"
    requests = [
        post(BATCH, content)[:-9],
        post(BATCH, gzip.compress(content, 0), "Content-Encoding: gzip")[:-9],
        post(BATCH, content, "Content-Type: application/json; charset=utf-8")[:-9],
        post(BATCH, content, "Expect: 100-continue")[:-9],
        f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk,
    ]
    before = mebibytes(service, "VmRSS")
    for _ in range(20):  # each way takes 100 MiB, if it is kept
        for request in requests:
            with connect(service) as client:
                client.sendall(request)
    assert mebibytes(service, "VmRSS") - before < 150
    assert service.http.get("/health/live").status_code == 200


def test_a_long_header_and_a_long_name_cost_nothing(service: Persistd) -> None:
    row = body("task", task("a", **{"k" * 5_000_000: 1, "status": "no"}))
    for request, statuses in (
        (post(BATCH, body("task", task("a")), "Content-Type: application/json" + ";" * 60_000), (415, 400)),
        (post(BATCH, row), (422,)),
    ):
        assert stall(service, request, *statuses) < STALL
    answer = service.http.post(BATCH, content=row)
    assert len(answer.content) < 10_000
