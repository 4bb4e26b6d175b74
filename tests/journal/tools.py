"""A journal driven from outside its event loop, its files as a test may touch them, and a disk that fails on demand."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tornado_persist.errors import NotAccepting
from tornado_persist.journal import HEADER_SIZE, Journal, Record
from tornado_persist.journal.record import decode
from tornado_persist.records.models import Kind

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Driver:
    """A journal in ``directory``, open and started, with an event loop that runs while a test waits for answers."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory / "journal"
        self.damaged_dir = directory / "damaged"
        self.journal = Journal(self.directory, self.damaged_dir, **options)
        self.checkpoint = self.journal.open()
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.journal.start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        assert self.journal.close(30)
        self.loop.close()

    def begin(self, body: bytes, at: datetime = T0, kind: Kind = "task", rows: int = 1) -> asyncio.Future[int]:
        """Append, and do not wait. It is written once the event loop runs."""
        return self.journal.append(kind, at, rows, body)

    def send(self, body: bytes) -> asyncio.Future[int]:
        """Append, and have it on its way; do not wait."""
        future = self.begin(body)
        self.turn()
        return future

    def turn(self) -> None:
        """Let the event loop run once."""
        self.loop.run_until_complete(asyncio.sleep(0))

    def wait(self, *futures: asyncio.Future[int]) -> list[int | BaseException]:
        async def gather() -> list[int | BaseException]:
            return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 60)

        return self.loop.run_until_complete(gather())

    def append(self, *bodies: bytes, at: datetime = T0, kind: Kind = "task", rows: int = 1) -> list[int]:
        """Append together, and wait; the sequence numbers."""
        seqs: list[int] = []
        for answer in self.wait(*[self.begin(body, at, kind, rows) for body in bodies]):
            assert isinstance(answer, int), answer
            seqs.append(answer)
        return seqs

    def refused(self, *bodies: bytes) -> list[str]:
        """Append together, and wait until all are refused; why."""
        answers = self.wait(*[self.begin(body) for body in bodies])
        assert all(isinstance(answer, NotAccepting) for answer in answers), answers
        return [str(answer) for answer in answers]

    def read(self, after: int | None = None, max_bytes: int = 1000) -> list[Record]:
        """All records after ``after`` (by default the ones that are not released), in calls of ``max_bytes``."""
        records: list[Record] = []
        at = self.journal.released if after is None else after
        while found := self.journal.read(at, max_bytes):
            records += found
            at = found[-1].seq
        return records

    def bodies(self, after: int | None = None) -> list[bytes]:
        return [record.body for record in self.read(after)]

    def segments(self) -> list[Path]:
        return sorted(self.directory.glob("*.seg"))


def fill(directory: Path, *bodies: bytes, **options: Any) -> list[Path]:
    """Make a journal that holds these, one task batch of a row each, and close it; its segments."""
    with Driver(directory, **options) as driver:
        for body in bodies:
            driver.append(body)
        return driver.segments()


def layout(segment: Path) -> list[tuple[int, int]]:
    """Offset and size of each record of an undamaged segment."""
    data = segment.read_bytes()
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < len(data):
        header = decode(data, offset)
        assert header is not None
        found.append((offset, HEADER_SIZE + header.length))
        offset += HEADER_SIZE + header.length
    return found


def flip(segment: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(segment.read_bytes())
    data[offset] ^= 1 << bit
    segment.write_bytes(data)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; fails after half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


class Disk:
    """Stands before the system calls of the journal: counts them, holds them back, makes them fail."""

    CALLS = ("writev", "fsync", "fdatasync", "ftruncate", "posix_fallocate")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count: dict[str, int] = dict.fromkeys(self.CALLS, 0)
        #: By call: the error it ends with, and how many bytes ``writev`` writes before that.
        self.failing: dict[str, tuple[int, int]] = {}
        self._free = threading.Event()
        self._free.set()
        self.held = threading.Event()
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            self.count[name] += 1
            if name in ("fsync", "fdatasync") and not self._free.is_set():
                self.held.set()
                assert self._free.wait(60)
            if name in self.failing:
                number, written = self.failing[name]
                if name == "writev" and written:
                    os.write(fd, b"".join(args[0])[:written])
                raise OSError(number, os.strerror(number))
            return real(fd, *args)

        return call

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let no sync begin within the block."""
        self._free.clear()
        self.held.clear()
        try:
            yield
        finally:
            self._free.set()

    def fail(self, *calls: str, error: int = errno.EIO, written: int = 0) -> None:
        for call in calls:
            self.failing[call] = (error, written)

    def heal(self, *calls: str) -> None:
        """Let these succeed again, or all of them."""
        for call in calls or self.CALLS:
            self.failing.pop(call, None)


class Events:
    """What was logged; a warning or an error that no test asks for fails it."""

    def __init__(self, captured: list[MutableMapping[str, Any]]) -> None:
        self.captured = captured

    def take(self, event: str) -> list[MutableMapping[str, Any]]:
        """The log lines that say this, which are then expected."""
        found = [line for line in self.captured if line["event"] == event]
        self.captured[:] = [line for line in self.captured if line["event"] != event]
        return found

    def one(self, event: str) -> MutableMapping[str, Any]:
        (line,) = self.take(event)
        return line

    def rest(self) -> list[MutableMapping[str, Any]]:
        return [line for line in self.captured if line["log_level"] not in ("debug", "info")]


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)
