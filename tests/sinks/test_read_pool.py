"""The threads that read: what callers are told when reads take too long, and when the pool is closed."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.rig import wait_until
from tornado_persist.errors import NotReadable, ReadFailed, SinkUnavailable
from tornado_persist.sinks import reader
from tornado_persist.sinks.reader import ReadPool
from tornado_persist.telemetry import log
from tornado_persist.testing import MemorySink

GO = threading.Event()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reader, "READ_TIMEOUT", 0.0)  # and half a second of grace
    GO.clear()
    yield
    GO.set()


def make_pool() -> ReadPool:
    sink = MemorySink()
    sink.open()
    return ReadPool(sink.reader, sink.name)


def blocked(of: Any) -> bool:
    return GO.wait(30)


@pytest.mark.gen_test
async def test_a_read_that_waited_for_others_is_not_told_that_it_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()
    slow = [asyncio.create_task(pool.read(blocked)) for _ in range(reader.THREADS)]
    lists = asyncio.create_task(pool.read(lambda reader: 1))
    await asyncio.sleep(0.01)
    with monkeypatch.context() as patient:  # there is one thread that slow lists cannot hold
        patient.setattr(reader, "READ_TIMEOUT", 30.0)
        assert [await pool.read(lambda reader: 2, one_row=True) for _ in range(3)] == [2, 2, 2]
    with pytest.raises(ReadFailed, match="Other reads have kept the database busy"):
        await lists
    for one in slow:
        with pytest.raises(ReadFailed, match="The read took more than"):
            await one
    GO.set()
    monkeypatch.setattr(reader, "READ_TIMEOUT", 30.0)
    assert await pool.read(lambda reader: 1) == 1
    await pool.close()


@pytest.mark.gen_test
async def test_reads_that_wait_for_a_pool_that_is_closed_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_TIMEOUT", 30.0)
    pool = make_pool()
    reads = [asyncio.create_task(pool.read(blocked)) for _ in range(reader.THREADS + 2)]
    await asyncio.sleep(0.01)
    await pool.close(timeout=0.05)
    for read in reads:
        with pytest.raises(ReadFailed, match="The sink was closed"):
            await read
    with pytest.raises(ReadFailed, match="The sink is closed"):
        await pool.read(lambda reader: 1)
    with pytest.raises(NotReadable):
        await ReadPool(lambda: None, "other").read(lambda reader: 1)


@pytest.mark.gen_test
async def test_a_client_with_many_reads_keeps_no_other_from_being_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_TIMEOUT", 30.0)
    pool = make_pool()
    order: list[str] = []

    async def read(name: str, address: str, token: str, function: Callable[[Any], Any] = id) -> None:
        log.client.set((address, token))

        def noted(of: Any) -> None:
            order.append(name)
            function(of)

        await pool.read(noted)

    loop = asyncio.get_running_loop()
    busy = [loop.create_task(read("busy", "127.0.0.1", "", blocked)) for _ in range(reader.THREADS)]
    await wait_until(lambda: len(order) == reader.THREADS)
    greedy = [loop.create_task(read("greedy", f"127.0.0.{number}", "one")) for number in range(100)]
    await asyncio.sleep(0)
    others = [loop.create_task(read(name, "127.0.0.1", name)) for name in ("other", "")]
    await asyncio.sleep(0)
    GO.set()
    await asyncio.gather(*busy, *greedy, *others)
    assert max(order.index("other"), order.index("")) < reader.THREADS + 10
    await pool.close()


@pytest.mark.gen_test
async def test_a_connection_that_has_broken_meanwhile_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_TIMEOUT", 30.0)
    pool = make_pool()
    uses: Counter[Any] = Counter()

    def read(by: Any) -> int:
        uses[by] += 1
        if uses[by] == 2:
            raise SinkUnavailable("the server has closed it")
        return 1

    while max(uses.values(), default=0) < 2:
        assert await pool.read(read) == 1
    await pool.close()
