"""The client against the real service: answers, restarts, silence, a bad network; its counts add up to the calls."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process import Persistd, wait_until
from tests.rig import run
from tests.rows import session, task
from tests.servers import free_port
from tornado_persist.client import Client, sender
from tornado_persist.client.sender import pause
from tornado_persist.client.testing import Recorder


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Persistd]:
    with Persistd(tmp_path, port=free_port()) as it:  # so that it comes back where it was
        yield it


def stored(service: Persistd) -> dict[str, str]:
    """Status by task, in the database."""
    service.flush()
    with contextlib.closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        return dict(database.execute("SELECT task_id, status FROM translation_tasks"))


def test_rows_arrive_merged_and_sessions_first(service: Persistd) -> None:
    with Client(service.url) as persist:
        persist.task(**task("t1", target_text="x"))
        persist.session(**session())
        persist.task(**task("t1", status="completed"))
        assert persist.flush(database=True)
        assert persist.stats.sent == 2
        assert persist.stats.merged == 1
    with contextlib.closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        (row,) = database.execute("SELECT status, target_text FROM translation_tasks")
    assert row == ("completed", "x")


def test_one_wrong_row_costs_one_row(service: Persistd) -> None:
    given: list[tuple[list[Any], str]] = []
    with Client(service.url, on_drop=lambda rows, reason: given.append((list(rows), reason))) as persist:
        for number in range(500):
            persist.task(**task(str(number), status="wrong" if number == 250 else "pending"))
        assert not persist.flush()
    assert persist.stats.sent == 499
    assert persist.stats.dropped == {"invalid": 1}
    assert "status" in persist.stats.last_error
    ((rows, reason),) = given
    assert (rows[0]["task_id"], reason) == ("250", "invalid")
    assert len(stored(service)) == 499


def test_many_wrong_rows_and_one_that_is_no_text(service: Persistd) -> None:
    with Client(service.url) as persist:
        for number in range(200):
            persist.task(**task(str(number), status="wrong" if number % 3 == 0 else "pending"))
        persist.task(**task("half", source_text="\ud83d"))
        persist.flush()
    assert (persist.stats.sent, persist.stats.dropped) == (133, {"invalid": 68})


@pytest.mark.parametrize("limit", ["max_batch = 60", "max_body_bytes = 20000"])
def test_a_service_that_takes_less_gets_less(tmp_path: Path, limit: str) -> None:
    with Persistd(tmp_path, server=limit) as service:
        with Client(service.url) as persist:
            for number in range(300):
                persist.task(**task(str(number), source_text="x" * 300))
            assert persist.flush()
        assert (persist.stats.sent, persist.stats.dropped) == (300, {})
        assert len(stored(service)) == 300


def test_a_row_too_large_even_alone_is_dropped(tmp_path: Path) -> None:
    with Persistd(tmp_path, server="max_body_bytes = 20000") as service:
        with Client(service.url) as persist:
            for number in range(10):
                persist.task(**task(str(number), source_text="x" * (30_000 if number == 5 else 10)))
            assert not persist.flush()
        assert (persist.stats.sent, persist.stats.dropped) == (9, {"too_large": 1})


def test_a_restart_costs_nothing_with_retries(service: Persistd) -> None:
    persist = Client(service.url, retries=1000, interval=0.02, timeout=5)
    calls = 0
    for round_ in range(3):
        for number in range(400):
            persist.task(**task(str(number), status="pending" if round_ < 2 else "completed"))
            calls += 1
            time.sleep(0.0005)
            if number == 200:
                service.kill()
            if number == 300:
                service.start()
    assert persist.flush(60)
    persist.close()
    assert persist.stats.dropped == {}
    assert persist.stats.sent + persist.stats.merged == calls
    assert stored(service) == {str(number): "completed" for number in range(400)}


def test_a_restart_without_retries_costs_what_is_counted(service: Persistd) -> None:
    persist = Client(service.url, interval=0.02)
    persist.task(**task("a"))
    assert persist.flush()
    service.kill()
    persist.task(**task("b"))
    assert not persist.flush()
    service.start()
    persist.task(**task("c"))
    assert persist.flush()
    persist.close()
    assert (persist.stats.sent, persist.stats.dropped) == (2, {"unavailable": 1})
    assert stored(service).keys() == {"a", "c"}


def test_a_connection_that_the_service_has_closed_meanwhile_costs_nothing(service: Persistd) -> None:
    persist = Client(service.url)
    persist.task(**task("a"))
    assert persist.flush()
    service.kill()
    service.start()
    persist.task(**task("b"))
    assert persist.flush()
    persist.close()
    assert (persist.stats.sent, persist.stats.dropped) == (2, {})


@pytest.mark.alone
@pytest.mark.parametrize("retries", [0, 1000])
def test_a_service_that_hangs(service: Persistd, retries: int) -> None:
    persist = Client(service.url, interval=0.02, timeout=0.3, retries=retries, max_rows=150)
    service.send(signal.SIGSTOP)
    try:
        longest = 0.0
        for number in range(300):
            before = time.perf_counter()
            persist.task(**task(str(number)))
            longest = max(longest, time.perf_counter() - before)
            time.sleep(0.004)
        assert longest < 0.25
    finally:
        service.send(signal.SIGCONT)
    assert persist.flush(60)
    persist.close()
    stats = persist.stats
    assert (stats.queued, stats.calls) == (0, 300)
    assert stats.dropped.keys() == ({"full"} if retries else {"unavailable"}) or not retries
    if retries:
        assert stats.sent == 150


class Proxy:
    """Forwards to the service, late, and cuts connections at random places."""

    def __init__(self, url: str, seed: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._to = host, int(port)
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.kind = True
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *args: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)
        for it in self._sockets:
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for it in self._sockets:
            it.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(self._to)
                self._sockets += [inner, outer]
                for one, other in ((inner, outer), (outer, inner)):
                    left = 1 << 60 if self.kind else self._random.randrange(1, 30_000)
                    thread = threading.Thread(target=self._forward, args=(one, other, left), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _forward(self, one: socket.socket, other: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := one.recv(min(left, 4096))):
                time.sleep(self._random.random() / 200)
                other.sendall(data)
                left -= len(data)
        for it in (one, other):
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("retries", [0, 1000])
def test_a_network_that_delays_and_cuts(service: Persistd, retries: int) -> None:
    with Proxy(service.url, 1) as proxy:
        proxy.kind = False
        persist = Client(proxy.url, interval=0.02, retries=retries, gzip_from=None, timeout=5)
        for number in range(600):
            persist.task(
                **task(str(number % 300), source_text="x" * 100, status="pending" if number < 300 else "failed")
            )
            time.sleep(0.001)
        persist.flush(1)
        proxy.kind = True
        persist.flush(60)
        persist.close()
    stats = persist.stats
    assert stats.sent + stats.merged + sum(stats.dropped.values()) == 600
    there = stored(service)
    if retries:
        assert stats.dropped == {}
        assert there == {str(number): "failed" for number in range(300)}
    else:
        assert stats.dropped.keys() <= {"unavailable"}
        assert len(there) >= 300 - stats.dropped.get("unavailable", 0)


def test_retry_after_is_honoured_and_newer_updates_merge_over_what_is_in_front() -> None:
    recorder = Recorder()
    recorder.fail(503, times=2)
    with Client(transport=recorder, retries=2, interval=60) as persist:
        persist.task(**task("t1", context="old", target_text="x"))
        waiting = threading.Thread(target=persist.flush)
        waiting.start()
        wait_until(lambda: recorder.requests, "the first try")
        persist.task(**task("t1", context="new"))
        waiting.join()
        assert persist.stats.sent + persist.stats.merged == 2
    assert recorder.tasks["s1", "t1"].items() >= {"context": "new", "target_text": "x"}.items()
    assert len(recorder.requests) == 3
    assert pause(1, 5, 0) == 5
    assert 5 < pause(1, 5, 1) <= 6.25
    assert [pause(failures, 0, 1) for failures in (1, 2, 3, 100)] == [0.5, 1, 2, 30]
    assert pause(1, 0, 0) == 0.25


def test_without_retries_503_is_dropped_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    recorder.fail(503, times=3)
    with Client(transport=recorder, max_batch=1) as persist:
        for number in range(3):
            persist.task(**task(str(number)))
            persist.flush()
        persist.task(**task("last"))
        assert persist.flush()
        wait_until(lambda: caplog.messages, "a warning")
        assert persist.stats.dropped == {"unavailable": 3}
        assert len(caplog.messages) == 1
    # The rest is told at the end.
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "3 unavailable" in caplog.messages[-1]
    header = recorder.requests[-1].headers["X-Persist-Dropped"]
    assert header.startswith("3; since=0; client=")


def test_only_failures_in_a_row_count() -> None:
    recorder = Recorder()
    with Client(transport=recorder, retries=1) as persist:
        for name in ("a", "b"):
            recorder.fail(503)
            persist.task(**task(name))
            assert persist.flush(20)
        assert persist.stats.dropped == {}


def test_drops_that_were_not_told_yet_are_told_when_the_minute_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "WARN_EVERY", 0.5)
    recorder = Recorder()
    recorder.fail(500, times=3)
    with Client(transport=recorder, max_batch=1, interval=600) as persist:
        for number in range(3):
            persist.task(**task(str(number)))
        # The thread wakes up for it, though nothing else happens.
        wait_until(lambda: "in all 3 refused" in "".join(caplog.messages), "the rest")


def test_what_a_client_dropped_is_reported_until_it_is_known() -> None:
    recorder = Recorder()
    recorder.fail(401)
    with Client(transport=recorder, token="secret") as persist:
        for number in range(3):
            persist.task(**task(str(number)))
            persist.flush()
    assert ["X-Persist-Dropped" in request.headers for request in recorder.requests] == [False, True, False]
    assert recorder.requests[0].headers["Authorization"] == "Bearer secret"
    assert persist.stats.dropped == {"refused": 1}


def test_bodies_are_compressed_from_two_kilobytes_on() -> None:
    recorder = Recorder()
    with Client(transport=recorder) as persist:
        persist.task(**task("small"))
        persist.flush()
        persist.task(**task("large", source_text="x" * 2000))
    assert ["Content-Encoding" in request.headers for request in recorder.requests] == [False, True]
    assert len(recorder.tasks) == 2


def test_a_full_queue_drops_new_keys_and_takes_updates() -> None:
    with Client(transport=Recorder(), max_rows=3, interval=60) as persist:
        with persist._changed:  # nothing is sent meanwhile
            for number in (0, 1, 2, 3, 0, 4, 2):
                persist.task(**task(str(number)))
        assert persist.stats.dropped == {"full": 2}
        assert persist.stats.merged == 2
        assert persist.flush()
    persist.task(**task("late"))
    assert persist.stats.dropped == {"full": 2, "closed": 1}
    assert persist.stats.calls == 8


def test_a_full_queue_is_sent_at_once() -> None:
    recorder = Recorder()
    with Client(transport=recorder, max_rows=3, interval=60) as persist:
        for number in range(3):
            persist.task(**task(str(number)))
        wait_until(lambda: persist.stats.sent == 3, "the rows")
        assert persist.tasks([task(str(number)) for number in range(20)], wait=20) == 20
        assert persist.stats.dropped == {}


def test_several_threads_and_one_order_for_each_key(service: Persistd) -> None:
    with Client(service.url, interval=0.01, max_batch=50) as persist:

        def call(name: int) -> None:
            for number in range(1000):
                last = number >= 900
                persist.task(**task(f"{name}-{number % 100}", status="completed" if last else "pending"))

        threads = [threading.Thread(target=call, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert persist.flush(60)  # the end waits for a few seconds only
    assert persist.stats.calls == 8000
    assert persist.stats.dropped == {}
    assert set(stored(service).values()) == {"completed"}


def test_in_asyncio(service: Persistd) -> None:
    async def use() -> None:
        async with Client(service.url) as persist:
            persist.session(**session())
            assert await persist.aflush(10)
            persist.task(**task())
        assert persist.stats.sent == 2

    run(use())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_close_tries_once_more_whatever_retry_after_says(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    recorder._answers.append(httpx.Response(503, headers={"Retry-After": "999999"}))
    monkeypatch.setattr(random, "random", lambda: 1.0)
    persist = Client(transport=recorder, retries=5)
    persist.task(**task())
    assert not persist.flush(0.1)
    wait_until(lambda: persist.stats.last_error, "the refusal")
    assert 350 < persist._sender._retry_at - time.monotonic() <= 375, "300 at most, and a quarter more by chance"
    if asynchronous:
        run(persist.aclose())
    else:
        persist.close()
    assert (persist.stats.sent, persist.stats.dropped) == (1, {})


def test_a_flush_ends_in_time_and_so_does_the_close() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        persist = Client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        persist.task(**task("a"))
        began = time.monotonic()
        assert not persist.flush(0.2)
        assert not run(persist.aflush(0.2))
        persist.task(**task("b"))
        persist.close(0.3)
        assert time.monotonic() - began < 3
    assert (persist.stats.queued, persist.stats.dropped) == (0, {"closed": 2})


def test_a_bad_url_is_an_error_at_once() -> None:
    for url in (
        *("localhost:8001", "ftp://localhost", "http://", "http://:8001", "http://localhost:port"),
        *("http://localhost:65536", "http://localhost:0", "http://localhost/?a=b", "http+unix:///run/persistd.sock"),
        "http://name:secret@localhost/?a=b",
    ):
        with pytest.raises(ValueError, match=r"URL|Port|port") as caught:
            Client(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://[::1]:8001/", "http://[::1]:8001/"),
        ("http://localhost/persist/", "http://localhost/persist/"),
        ("HTTPS://localhost", "https://localhost/"),
        ("http+unix://%2Frun%2Fpersistd.sock/persist", "http://localhost/persist/"),
        ("http://name:se%40cret@localhost", "http://localhost/"),
    ],
)
def test_the_path_of_the_url_is_kept_and_its_password_in_no_message(url: str, sent: str) -> None:
    recorder = Recorder()
    recorder.fail(503)
    with Client(url, transport=recorder) as persist:
        persist.task(**task())
        persist.flush()
        assert "cret" not in f"{persist} {persist.stats}"
    (request,) = recorder.requests
    assert str(request.url) == f"{sent}api/v1/persistence/tasks/batch"
    assert ("Authorization" in request.headers) == ("@" in url)


def test_a_password_is_in_no_message_without_a_service() -> None:
    with Client("http://name:secret@127.0.0.1:1") as persist:
        persist.task(**task())
        assert not persist.flush()
        assert persist.stats.last_error.startswith("http://127.0.0.1:1: ")


def test_a_token_is_sent_without_the_end_of_its_line_and_what_no_header_holds_is_an_error() -> None:
    recorder = Recorder()
    for token in ("pst_1\n", "", " \n", None):
        with Client(transport=recorder, token=token) as persist:
            persist.task(**task())
    assert [request.headers.get("Authorization") for request in recorder.requests] == ["Bearer pst_1", *[None] * 3]
    for token in ("pst_\n1", "pst_é"):
        with pytest.raises(ValueError, match="token") as caught:
            Client(token=token)
        assert "pst" not in str(caught.value)


def test_a_kept_connection_that_ends_at_the_next_request_costs_nothing() -> None:
    text = b'{"status": "accepted", "count": 1}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for requests in (2, 1):
                connection, _ = listener.accept()
                with connection:
                    for number in range(requests):
                        body = b""
                        while b"}]}" not in body:
                            data = connection.recv(1 << 16)
                            assert data, "the connection is kept"
                            body += data
                        if number == 0:
                            connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as persist:
            for name in ("a", "b"):
                persist.task(**task(name))
                assert persist.flush()
        thread.join(10)
    assert (persist.stats.sent, persist.stats.dropped) == (2, {})


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    while b"}]}" not in connection.recv(1 << 16):
                        pass
                    text = json.dumps({"status": "accepted", "count": 1}).encode()
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text)
                    )
                    connection.sendall(text)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        for options in ({"uds": str(path)}, {"url": f"http+unix://{str(path).replace('/', '%2F')}"}):
            with Client(**options) as persist:  # type: ignore[arg-type]
                persist.task(**task())
                assert persist.flush()
        thread.join(10)
