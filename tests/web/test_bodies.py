"""Compressed bodies: read within limits, and in time that grows with their length alone."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
from tornado.httputil import HTTPHeaders

from tornado_persist.web.bodies import (
    MOST_MEMBERS,
    SMALL,
    SMALL_CONTENT,
    NotCompressed,
    Refused,
    TooLarge,
    Unsupported,
    decompress,
    require_json,
)

LIMIT = 10_485_760
T = TypeVar("T")


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    " Deflate ": raw_deflate,
}


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own. ``asyncio.run`` would forget the loop that other tests have set."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def run(body: bytes, encoding: str, limit: int = LIMIT) -> bytes:
    return complete(decompress(body, HTTPHeaders({"Content-Encoding": encoding}), limit))


def random(size: int) -> bytes:
    return b"".join(zlib.crc32(b"%d" % n).to_bytes(4) for n in range(size // 4))


@pytest.mark.parametrize("encoding", PACKERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{}", random(4000), b"x" * (3 * SMALL_CONTENT), random(3 * SMALL)],
    ids=lambda data: str(len(data)),
)
def test_what_was_compressed_comes_back(encoding: str, content: bytes) -> None:
    assert run(PACKERS[encoding](content), encoding) == content


@pytest.mark.parametrize("encoding", PACKERS)
@pytest.mark.parametrize("limit", [5000, SMALL_CONTENT, SMALL_CONTENT + 1, 4 * SMALL_CONTENT])
def test_content_may_be_as_large_as_a_body_and_no_larger(encoding: str, limit: int) -> None:
    pack = PACKERS[encoding]
    assert len(run(pack(b" " * limit), encoding, limit)) == limit
    with pytest.raises(TooLarge):
        run(pack(b" " * (limit + 1)), encoding, limit)


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(50 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            run(bomb, "gzip", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", PACKERS)
def test_what_is_cut_followed_or_something_else_is_refused(encoding: str) -> None:
    packed = PACKERS[encoding](random(4000))
    for wrong in (packed[:-1], packed[:20], b"", packed + b"x", b"\xff" + packed):
        with pytest.raises(NotCompressed, match=encoding.strip().lower().removeprefix("x-")):
            run(wrong, encoding)


def test_a_gzip_body_has_so_many_members_at_most() -> None:
    member = gzip.compress(b"x")
    assert run(member * MOST_MEMBERS, "gzip") == b"x" * MOST_MEMBERS
    with pytest.raises(NotCompressed, match="more than 1000 gzip members"):
        run(member * (MOST_MEMBERS + 1), "gzip")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(b"") * 524_254 + gzip.compress(b"{}"), "gzip"),
        (b"\x00\x00\x00\xff\xff" * (LIMIT // 5), "deflate"),
        (gzip.compress(bytes(LIMIT * 8)), "gzip"),
        (gzip.compress(random(LIMIT // 2)) * 3, "gzip"),
    ],
    ids=["members", "blocks", "bomb", "random"],
)
def test_the_event_loop_goes_on_while_a_bad_body_is_refused(body: bytes, encoding: str) -> None:
    async def longest_stall() -> float:
        refusing = asyncio.create_task(refused(decompress(body, HTTPHeaders({"Content-Encoding": encoding}), LIMIT)))
        longest, last = 0.0, time.monotonic()
        while not refusing.done():
            await asyncio.sleep(0)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await refusing
        return longest

    # The machine may be busy: the best of three.
    assert min(complete(longest_stall()) for _ in range(3)) < 0.05


async def refused(reading: Awaitable[bytes]) -> None:
    with pytest.raises(Refused):
        await reading


def test_a_long_content_type_costs_nothing() -> None:
    began = time.thread_time()
    for wrong in ("application/json" + ";" * 60_000, ";" * 60_000, "application/json;charset=" + '"\\' * 100):
        for _ in range(100):
            with pytest.raises(Unsupported):
                require_json(wrong)
    assert time.thread_time() - began < 0.5
