"""The answer waits for the disk: the order of the process's system calls, as strace sees it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.process import PATIENCE, Persistd, wait_until
from tests.rows import body, task
from tests.tools import require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs strace, which only Linux has")

#: 4711 fdatasync(13</data/journal/1.seg>) = 0
_CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<fd>\d+)<(?P<target>[^>]*)>(?P<rest>.*)", re.DOTALL)
_RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)", re.DOTALL)
_UNFINISHED = " <unfinished ...>"


@dataclass
class Call:
    """One system call: the places in the trace where it began and ended, its file or socket, and its result."""

    name: str
    target: str
    began: int
    ended: int
    text: str

    @property
    def done(self) -> bool:
        """Whether it returned 0, as a sync has to."""
        return self.text.removesuffix(" (DELAYED)").endswith("= 0")


def parse(trace: str) -> list[Call]:
    """The calls on files and sockets. Where calls of two threads overlap, strace gives each of them in two lines."""
    calls: list[Call] = []
    open_calls: dict[str, Call] = {}
    for number, line in enumerate(trace.splitlines()):
        if resumed := _RESUMED.match(line):
            if call := open_calls.pop(resumed["pid"], None):
                call.ended = number
                call.text += resumed["rest"]
        elif begun := _CALL.match(line):
            call = Call(begun["name"], begun["target"], number, number, begun["rest"].removesuffix(_UNFINISHED))
            calls.append(call)
            if line.endswith(_UNFINISHED):
                open_calls[begun["pid"]] = call
                call.ended = sys.maxsize
    return calls


def first(calls: list[Call], after: int, names: str, *, target: str = "", text: str = "") -> Call | None:
    """The first of the calls that began after a place in the trace."""
    return next(
        (
            call
            for call in calls
            if call.began > after and call.name in names.split() and target in call.target and text in call.text
        ),
        None,
    )


def sync_before_answer(calls: list[Call], key: str) -> Call | None:
    """The sync that made the record with this key durable, if it was over before the answer was sent."""
    request = first(calls, -1, "recvfrom", text=key)
    record = first(calls, -1, "writev pwritev write", target=".seg", text=key)
    assert request
    assert record, "the record is written before the answer in any case"
    answer = first(calls, request.ended, "sendto", target=request.target, text="HTTP/1.1 200 OK")
    assert answer
    assert request.ended < record.began
    assert record.ended < answer.began
    sync = first(calls, record.ended, "fdatasync fsync", target=record.target)
    return sync if sync and sync.done and sync.ended < answer.began else None


def traced(tmp_path: Path, batches: Sequence[str], *, sync: str, clients: int = 1, delay: int = 0) -> list[Call]:
    """The calls of a service that was sent a batch for each key; ``delay``: milliseconds added to each fdatasync."""
    trace = tmp_path / "trace"
    command = [str(require("strace")), "-D", "-f", "-y", "-s", "1000", "-o", str(trace)]
    command += ["-e", "trace=recvfrom,sendto,write,writev,pwritev,fsync,fdatasync"]
    command += ["-e", f"inject=fdatasync:delay_exit={delay * 1000}"] if delay else []
    config = f"sink = 'jsonl'\n[buffer]\nflush_interval = 3600\n[journal]\nsync = '{sync}'\n"
    with Persistd(tmp_path, config, prefix=command) as service:

        def send(keys: Sequence[str]) -> None:
            with httpx.Client(base_url=service.url, timeout=PATIENCE) as http:
                for key in keys:
                    answer = http.post("/api/v1/persistence/tasks/batch", content=body("task", task(key)))
                    assert answer.status_code == 200, answer.text

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(send, [batches[n::clients] for n in range(clients)]))
        service.kill()
        end = re.compile(rf"^{service.process.pid} +\+\+\+ killed", re.MULTILINE)
        wait_until(lambda: end.search(trace.read_text()), "the end of the trace")
    return parse(trace.read_text())


KEYS = [f"key-{number:03}-" for number in range(24)]


def test_one_request_is_answered_after_its_record_is_on_the_disk(tmp_path: Path) -> None:
    calls = traced(tmp_path, KEYS[:3], sync="always")
    syncs = [sync_before_answer(calls, key) for key in KEYS[:3]]
    assert all(syncs)
    assert len({sync.began for sync in syncs if sync}) == 3, "a request that comes alone has a sync of its own"
    # The segment's name is durable as well before the first answer.
    created = first(calls, syncs[0].ended if syncs[0] else 0, "fsync", target="/journal")
    answer = first(calls, -1, "sendto", text="HTTP/1.1 200 OK")
    assert created
    assert created.done
    assert answer
    assert created.ended < answer.began


def test_each_request_of_a_group_is_answered_after_the_sync_that_they_share(tmp_path: Path) -> None:
    calls = traced(tmp_path, KEYS, sync="always", clients=8, delay=50)
    syncs = [sync_before_answer(calls, key) for key in KEYS]
    assert all(syncs)
    assert len({sync.began for sync in syncs if sync}) < len(KEYS), "some of them share one"


def test_without_sync_the_answer_does_not_wait(tmp_path: Path) -> None:
    """So the tests above can fail."""
    calls = traced(tmp_path, KEYS[:3], sync="off")
    # The first record of a segment is synced with the segment's name.
    assert [sync_before_answer(calls, key) for key in KEYS[1:3]] == [None, None]
    assert first(calls, -1, "fdatasync", target=".seg") is None


#: Calls that wait for a disk, or for a database. What is written to is told by its name: sockets and pipes do not wait.
_WAITING = "fsync,fdatasync,open,openat,rename,renameat,unlink,unlinkat,link,linkat,ftruncate,fallocate,connect"
_FILES = "read,pread64,write,pwrite64,writev,pwritev"
#: 4711 openat(AT_FDCWD</srv>, "data/persist.db", ...
_ANY_CALL = re.compile(r"(?P<tid>\d+) +(?P<name>\w+)\((?P<rest>.*)")


@pytest.mark.parametrize("sink", ["sqlite", "jsonl", "postgres", "mysql"])
def test_the_thread_of_the_event_loop_asks_no_disk_and_no_database(
    tmp_path: Path, sink: str, request: pytest.FixtureRequest
) -> None:
    """Promise 6. The log, which goes to a pipe or a file of its own, is left out."""
    trace = tmp_path / "trace"
    command = [str(require("strace")), "-D", "-f", "-y", "-s", "100", "-o", str(trace)]
    command += ["-e", f"trace={_WAITING},{_FILES}"]
    server = sink in ("postgres", "mysql")
    place = f"[sinks.{sink}]\nurl = '{request.getfixturevalue(f'{sink}_url')}'\n" if server else ""
    config = f"sink = '{sink}'\n{place}[buffer]\nmax_rows = 20\ncapacity = 10\n[journal]\nsegment_bytes = 65536\n"
    pages = ["/health", "/metrics", "/dashboard", "/dashboard/charts.js", "/docs", "/openapi.json"]
    with Persistd(tmp_path, config, prefix=command) as service:
        served = len(trace.read_text().splitlines())
        for start in range(0, 400, 10):
            rows = [task(f"t{number}", source_text="x" * 1000) for number in range(start, start + 10)]
            assert service.http.post("/api/v1/persistence/tasks/batch", content=body("task", *rows)).status_code == 200
        assert service.http.post("/api/v1/persistence/flush").status_code == 200
        for page in pages:
            assert service.http.get(page).status_code == 200
        service.kill()
        end = re.compile(rf"^{service.process.pid} +\+\+\+ killed", re.MULTILINE)
        wait_until(lambda: end.search(trace.read_text()), "the end of the trace")
        loop = str(service.process.pid)
    calls = [match for line in trace.read_text().splitlines()[served:] if (match := _ANY_CALL.match(line))]
    elsewhere = {call["name"] for call in calls if call["tid"] != loop}
    assert {"fdatasync", "fsync", "openat"} <= elsewhere, "the trace shows the threads that may wait"
    own = [call for call in calls if call["tid"] == loop]
    files, log = _FILES.split(","), tmp_path / "log"
    found = [call.group() for call in own if call["name"] not in files or _on_disk(call["rest"], log)]
    assert found == []


def _on_disk(rest: str, log: Path) -> bool:
    """Whether ``13</srv/data/x>, ...`` is of a file that is not the log."""
    target = rest.partition("<")[2].partition(">")[0]
    return target.startswith("/") and target != str(log) and not target.startswith("/dev/")
