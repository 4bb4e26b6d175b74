"""Limits on connections, on silence, and on what arrives at one time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import structlog
from structlog.testing import capture_logs

from tests.process import Persistd
from tests.rig import Rig, wait_until
from tests.rows import body, task
from tests.web.conftest import LIMIT
from tests.web.test_http import BATCH, answer, chunked, get, post
from tornado_persist.records.models import Batch
from tornado_persist.testing.samples import task as sample
from tornado_persist.web.app import PREFIX, Api, make_server
from tornado_persist.web.base import LONG_ANSWER
from tornado_persist.web.server import IDLE, RESERVED, Server

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open: TypeAlias = Callable[[], AbstractAsyncContextManager[Streams]]

#: ``server.max_inflight_bytes``.
INFLIGHT = 100_000


@pytest.fixture
def app(parts: Rig) -> Api:
    return parts.api(max_body_bytes=LIMIT, body_timeout=0.3, max_inflight_bytes=INFLIGHT)


@asynccontextmanager
async def serving(app: Api, **limits: float) -> AsyncIterator[tuple[Server, Open]]:
    """A server with these limits, and what opens a connection to it."""
    server = make_server(app, **limits)  # type: ignore[arg-type]
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # else the system may take an answer of megabytes
    listening.setblocking(False)
    server.add_sockets([listening])
    port = listening.getsockname()[1]

    @asynccontextmanager
    async def connect() -> AsyncIterator[Streams]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()

    try:
        async with asyncio.timeout(30):
            yield server, connect
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.mark.gen_test
async def test_past_the_limit_connections_wait_until_one_ends_and_that_is_said_once(app: Api) -> None:
    structlog.reset_defaults()
    with capture_logs() as lines:
        async with serving(app, max_connections=3) as (server, connect), contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(connect()) for _ in range(8)]
            for _, writer in opened:
                writer.write(get("/health/live"))
            for reader, writer in opened[:5]:  # each is answered, and leaves its place to the next one
                assert (await answer(reader))[0] == 200
                assert len(server.connections) <= 3
                await wait_until(lambda: len(server.connections) == 3)
                writer.close()
            assert [(await answer(reader))[0] for reader, _ in opened[5:]] == [200] * 3
    said = [line for line in lines if "limit of connections" in line["event"]]
    assert [(line["log_level"], line["limit"]) for line in said] == [("warning", 3)]


@pytest.mark.gen_test
async def test_connections_never_take_the_descriptors_that_files_need(app: Api) -> None:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    server = make_server(app, max_connections=1 << 30)
    assert server.max_connections == descriptors - RESERVED


@pytest.mark.gen_test
async def test_at_the_limit_the_connection_that_is_idle_longest_makes_room_and_no_other(app: Api) -> None:
    async with serving(app, max_connections=3) as (server, connect), contextlib.AsyncExitStack() as stack:
        first, second, busy = [await stack.enter_async_context(connect()) for _ in range(3)]
        busy[1].write(post(BATCH, b" " * 2000)[:100])
        for reader, writer in (second, first):
            writer.write(get("/health/live"))
            assert (await answer(reader))[0] == 200
        await asyncio.sleep(IDLE)
        reader, writer = await stack.enter_async_context(connect())
        writer.write(get("/health/live"))
        assert (await answer(reader))[0] == 200
        assert await second[0].read() == b"", "the other one was used later"
        first[1].write(get("/health/live"))
        assert (await answer(first[0]))[0] == 200
        assert len(server.connections) == 3


def test_1100_idle_connections_at_1024_open_files_keep_no_batch_out(tmp_path: Path) -> None:
    limited = ("sh", "-c", 'ulimit -Sn 256; ulimit -Hn 1024; exec "$@"', "sh")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with Persistd(tmp_path, prefix=limited) as service, contextlib.ExitStack() as idle:
            assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (1024, 1024)
            address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
            for _ in range(1100):
                idle.enter_context(socket.create_connection(address, timeout=30))
            for number in range(20):
                with socket.create_connection(address, timeout=30) as client:
                    client.sendall(post(BATCH, body("task", task(f"t{number}"))))
                    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert service.flush()["tasks_written"] == 20
            assert len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) < 1024 - RESERVED + 64
            assert "Traceback" not in service.log_text()
            assert service.log_text().count("the limit of connections is reached") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.gen_test
async def test_without_a_descriptor_accepting_pauses_and_goes_on(app: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    structlog.reset_defaults()
    with capture_logs() as lines, contextlib.ExitStack() as files:
        async with serving(app) as (_, connect), connect() as (reader, writer):
            waiting = socket.create_connection(writer.get_extra_info("peername"))
            files.enter_context(waiting)
            writer.write(get("/health/live"))
            assert (await answer(reader))[0] == 200
            late = socket.socket()
            files.enter_context(late)
            highest = max(late.fileno(), waiting.fileno()) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        files.callback(os.close, os.open("/dev/null", os.O_RDONLY))
                late.connect(writer.get_extra_info("peername"))
                late.sendall(get("/health/live"))
                await wait_until(lambda: any("no connection can be accepted" in line["event"] for line in lines))
                began = time.process_time()
                writer.write(get("/health/live"))
                assert (await answer(reader))[0] == 200, "the others are served"
                await asyncio.sleep(0.2)
                assert time.process_time() - began < 0.15
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            late.settimeout(10)
            assert (await asyncio.to_thread(late.recv, 1000)).startswith(b"HTTP/1.1 200 OK")
    assert len(lines) == 1


@pytest.mark.gen_test
async def test_silent_connections_and_half_heads_are_closed_and_others_stay(app: Api) -> None:
    limits = {"header_timeout": 0.3, "idle_timeout": 1.5}  # far apart: a busy machine is late
    async with serving(app, **limits) as (_, connect), connect() as silent, connect() as head, connect() as used:
        began = time.monotonic()
        head[1].write(post(BATCH, b"")[:10])
        used[1].write(get("/health/live"))

        async def ends(streams: Streams) -> float:
            assert await streams[0].read() == b""
            return time.monotonic() - began

        ended = asyncio.gather(ends(silent), ends(head))
        while not ended.done():
            assert (await answer(used[0]))[0] == 200
            await asyncio.sleep(0.1)
            used[1].write(get("/health/live"))
        of_silent, of_head = await ended
        assert 1.45 < of_silent < 5
        assert 0.25 < of_head < of_silent


@pytest.mark.gen_test
async def test_a_body_that_takes_too_long_ends_its_connection_and_is_counted(app: Api, parts: Rig) -> None:
    async with serving(app) as (_, connect), connect() as (reader, writer):
        writer.write(post(BATCH, body("task", task("a")))[:-3])
        assert await reader.read() == b""
    assert parts.metrics.refusals.by_reason["task", 408, "timeout"] == 1
    assert not app.requests
    assert app.inflight_bytes == 0


@pytest.mark.gen_test
async def test_a_client_that_goes_away_is_no_refusal(app: Api, parts: Rig) -> None:
    async with serving(app) as (_, connect):
        async with connect() as (_, writer):
            writer.write(post(BATCH, body("task", task("a")))[:-3])
            await wait_until(lambda: bool(app.requests))
        await wait_until(lambda: not app.requests)
    assert parts.metrics.refusals.batches == 0
    assert app.inflight_bytes == 0


@pytest.mark.gen_test
async def test_past_the_bytes_in_flight_a_batch_is_503_before_its_body_comes(app: Api, parts: Rig) -> None:
    whole = post(BATCH, body("task", task("a", source_text="x" * 60_000)))
    app.body_timeout = 30
    async with serving(app) as (_, connect), connect() as first, connect() as second, connect() as third:
        first[1].write(whole[:-1])
        await wait_until(lambda: app.inflight_bytes > 60_000)
        second[1].write(whole[:500])
        status, content = await answer(second[0])
        assert (status, content["status"]) == (503, "rejected")
        assert "try again" in content["detail"]
        second[1].write(whole[500:])  # a client that sends nevertheless reads the answer, and then the end
        assert await second[0].read() == b""
        third[1].write(post(BATCH, body("task", task("b"))))
        assert (await answer(third[0]))[0] == 200, "a small one has room"
        first[1].write(whole[-1:])
        assert (await answer(first[0]))[0] == 200
        assert app.inflight_bytes == 0
        third[1].write(whole)
        assert (await answer(third[0]))[0] == 200
    assert parts.metrics.refusals.by_reason["task", 503, "busy"] == 1
    assert parts.metrics.totals.accepted["task"] == 3


@pytest.mark.gen_test
async def test_a_body_without_a_length_counts_as_it_comes(app: Api) -> None:
    content = body("task", task("a", source_text="x" * 60_000))
    app.body_timeout = 30
    async with serving(app) as (_, connect), connect() as first, connect() as second:
        first[1].write(post(BATCH, content)[:-1])
        await wait_until(lambda: app.inflight_bytes > 60_000)
        second[1].write(chunked(BATCH, content))
        head = await second[0].readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in head
    await wait_until(lambda: app.inflight_bytes == 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", [f"{PREFIX}/tasks", "/docs/swagger-ui-bundle.js"])
async def test_answers_that_are_not_taken_leave_no_memory_for_more(path: str, app: Api, parts: Rig) -> None:
    await parts.runner.open()
    parts.sink.write(Batch([], [sample(f"t{number}", source_text="x" * 1_000_000) for number in range(8)]))
    app.body_timeout = 2  # of which the refusal needs a part
    async with serving(app) as (_, connect), connect() as second, connect() as third:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, second[1].get_extra_info("peername"))
            await loop.sock_sendall(slow, get(path))
            await wait_until(lambda: app.untaken_bytes > 1_700_000)
            second[1].write(get(path))
            status, content = await answer(second[0])
            assert (status, "have not taken answers" in content["detail"]) == (503, True)
            third[1].write(get("/health"))
            assert (await answer(third[0]))[0] == 200, "short ones do not count"
            await wait_until(lambda: app.untaken_bytes == 0)  # body_timeout has closed its connection
        second[1].write(get(path))
        head = await second[0].readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), "one alone may be over the limit"
        await second[0].readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        await wait_until(lambda: app.untaken_bytes == 0)


@pytest.mark.gen_test
async def test_a_client_that_takes_its_answer_slowly_makes_room_for_others(app: Api, parts: Rig) -> None:
    await parts.runner.open()
    app.body_timeout = 0.7
    parts.sink.write(Batch([], [sample(f"t{number}", source_text="x" * 1_000_000) for number in range(8)]))
    long = get(f"{PREFIX}/tasks")
    loop = asyncio.get_running_loop()

    async def take_slowly(slow: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(slow, 4096):
                await asyncio.sleep(0.02)  # 40 s for all of it

    async with serving(app) as (_, connect), connect() as (reader, writer):
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, writer.get_extra_info("peername"))
            await loop.sock_sendall(slow, long)
            await wait_until(lambda: app.untaken_bytes > 7_000_000)
            taking = asyncio.create_task(take_slowly(slow))
            status = 0
            while status != 200:
                writer.write(long)
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head.split()[1])
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                await asyncio.sleep(0.05)
            await taking


@pytest.mark.gen_test
async def test_clients_that_go_before_their_answers_count_as_connections_until_these_are_done(
    app: Api, parts: Rig
) -> None:
    await parts.runner.open()
    app.flush_timeout = 20.0
    parts.sink.write(Batch([], [sample("long", source_text="x" * LONG_ANSWER)]))
    async with serving(app, max_connections=3) as (server, connect):
        async with connect() as (reader, writer):
            writer.write(post(BATCH, body("task", task("waits"))))
            assert (await answer(reader))[0] == 200
        parts.sink.hold()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                _, writer = await stack.enter_async_context(connect())
                writer.write(get(f"{PREFIX}/tasks?fresh=true"))
            await wait_until(lambda: len(app.requests) == 3)
        await wait_until(lambda: len(app.left) == 3)
        assert not server.connections
        async with connect() as (reader, writer):
            writer.write(get("/health/live"))
            await wait_until(lambda: server._paused)
            parts.sink.release()
            assert (await answer(reader))[0] == 200
        await wait_until(lambda: not app.left)
        assert app.untaken_bytes == 0, "what nobody takes counts no more"


@pytest.mark.gen_test
async def test_a_client_that_does_not_take_its_answers_is_closed(app: Api) -> None:
    async with serving(app) as (server, connect), connect() as (_, writer):
        began = time.monotonic()
        writer.write(get("/docs/swagger-ui-bundle.js") * 20)  # more than all buffers between the two hold
        await wait_until(lambda: bool(server.connections))
        await wait_until(lambda: not server.connections)
        assert time.monotonic() - began >= app.body_timeout


@pytest.mark.gen_test
async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(app: Api) -> None:
    app.body_timeout = 0.8
    async with serving(app) as (_, connect), connect() as (reader, writer):
        for _ in range(2):
            writer.write(get("/docs/swagger-ui-bundle.js"))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while length:
                piece = await reader.read(min(length, 100_000))
                assert piece, "the connection ended before the answer did"
                length -= len(piece)
                await asyncio.sleep(0.06)


@pytest.mark.gen_test
async def test_slow_bodies_hold_no_more_than_the_limit(app: Api) -> None:
    half = post(BATCH, body("task", task("a", source_text="x" * 60_000)))[:-1]
    async with serving(app) as (server, connect), contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await stack.enter_async_context(connect())
            writer.write(half)
            assert app.inflight_bytes <= INFLIGHT
        await wait_until(lambda: len(app.requests) <= 1)
        assert sum(len(request._body) for request in app.requests) <= INFLIGHT
        await wait_until(lambda: not server.connections)
    gc.collect()
    assert app.inflight_bytes == 0


def test_the_settings_are_in_force(tmp_path: Path) -> None:
    limits = "header_timeout = '300ms'\nbody_timeout = 2\nidle_timeout = 0.3\nmax_connections = 2\n"
    with Persistd(tmp_path, server=limits + "max_inflight_bytes = 2048\nmax_body_bytes = 4096") as service:
        service.http.close()
        address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
        half = post(BATCH, b" " * 2000)[:-1]
        for sent in (b"", b"GET"):
            with socket.create_connection(address, timeout=10) as one:
                one.sendall(sent)
                assert one.recv(1000) == b""
        with socket.create_connection(address, timeout=10) as one, socket.create_connection(address, timeout=10) as two:
            one.sendall(half)
            two.sendall(post(BATCH, b" " * 2000))
            assert two.recv(1000).startswith(b"HTTP/1.1 503 ")
            with socket.create_connection(address, timeout=10) as three:
                three.sendall(get("/health/live"))
                assert three.recv(1000).startswith(b"HTTP/1.1 200 "), "when the first one is closed"
            assert one.recv(1000) == b""
        service.wait_for_log("the limit of connections is reached, further ones wait")
