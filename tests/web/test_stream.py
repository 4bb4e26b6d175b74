"""What was read too early is read again, in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tornado.iostream import StreamClosedError

from tornado_persist.web.stream import Stream

pytestmark = pytest.mark.gen_test

ALL = 1 << 20


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Stream, socket.socket]]:
    one, other = socket.socketpair()
    stream = Stream(one)
    with other:
        yield stream, other
    stream.close()


async def test_what_was_put_back_comes_before_what_comes_then() -> None:
    async with pair() as (stream, client):
        client.sendall(b"one two ")
        data = await stream.read_bytes(ALL, partial=True)
        stream.put_back(data)
        client.sendall(b"three ")
        assert await stream.read_until(b"three ") == b"one two three "


async def test_several_pieces_that_were_put_back_come_in_their_order() -> None:
    async with pair() as (stream, client):
        client.sendall(b"one two three")
        data = await stream.read_bytes(ALL, partial=True)
        stream.put_back(data)
        assert await stream.read_bytes(4) == b"one "
        rest = await stream.read_bytes(ALL, partial=True)
        assert rest == b"two three"
        stream.put_back(rest[4:])
        stream.put_back(rest[:4])
        assert await stream.read_bytes(9) == b"two three"


async def test_more_than_one_read_takes_at_a_time_is_put_back_as_a_whole() -> None:
    async with pair() as (stream, client):
        client.sendall(b"x")
        await stream.read_bytes(1)
        much = bytes(range(256)) * 1024
        assert len(much) > 2 * stream.read_chunk_size
        stream.put_back(much)
        assert await stream.read_bytes(len(much)) == much
        assert stream._returned.obj == b""


async def test_while_nobody_reads_nothing_gets_lost() -> None:
    async with pair() as (stream, client):
        client.sendall(b"one")
        stream.put_back(await stream.read_bytes(ALL, partial=True))
        client.sendall(b" two")
        await asyncio.sleep(0.05)
        assert await stream.read_bytes(7) == b"one two"


async def test_at_the_end_of_the_connection_it_ends() -> None:
    async with pair() as (stream, client):
        client.sendall(b"one")
        stream.put_back(await stream.read_bytes(ALL, partial=True))
        client.shutdown(socket.SHUT_WR)
        assert await stream.read_bytes(3) == b"one"
        with pytest.raises(StreamClosedError):
            await stream.read_bytes(1)
