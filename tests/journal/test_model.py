"""The journal against a plain dict: after any sequence of events, acknowledged records are replayed in order.

A crash is a copy of the directory in which each file is cut somewhere between what was synced and what was written,
taken at any moment: also between a group's write and its sync, and between a failure and its repair. The syncs
themselves are not done, which makes no difference to the copies and a great one to the time.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.journal.tools import Driver, flip, wait_until
from tornado_persist.errors import NotAccepting
from tornado_persist.journal import HEADER_SIZE, writer
from tornado_persist.journal.record import MAGIC, decode
from tornado_persist.journal.segment import first_of

sizes = st.lists(st.sampled_from([0, 1, 30, 120]), min_size=1, max_size=6)
anywhere = st.floats(0, 1)


class FakeDisk:
    """Stands before the system calls: syncs at once, fails, and takes the pictures that crashes are made of."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failing_syncs = 0
        self.failing_write: int | None = None
        self.uncuttable = False
        self._broken_inode = 0
        #: Called before the next sync but so many of a segment.
        self.picture: Callable[[], None] | None = None
        self.picture_after = 0
        self._writev, self._ftruncate = os.writev, os.ftruncate
        patch.setattr(os, "fsync", self.sync)
        patch.setattr(os, "fdatasync", self.sync)
        patch.setattr(os, "writev", self.writev)
        patch.setattr(os, "ftruncate", self.ftruncate)

    def sync(self, fd: int) -> None:
        if self.picture is not None and os.readlink(f"/proc/self/fd/{fd}").endswith(".seg"):  # noqa: PTH115
            self.picture_after -= 1
            if self.picture_after < 0:
                picture, self.picture = self.picture, None
                picture()
        if self.failing_syncs > 0:
            self.failing_syncs -= 1
            self._broken_inode = os.fstat(fd).st_ino
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def writev(self, fd: int, buffers: list[Any]) -> int:
        if self.failing_write is not None:
            written, self.failing_write = self.failing_write, None
            os.write(fd, b"".join(buffers)[:written])
            self._broken_inode = os.fstat(fd).st_ino
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._writev(fd, buffers)

    def ftruncate(self, fd: int, length: int) -> None:
        # Where a segment has no good record it is emptied as a new one is made: that must come through at last.
        if self.uncuttable and length and os.fstat(fd).st_ino == self._broken_inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._ftruncate(fd, length)


class Picture:
    """The directory at one moment, and the part of it that survives a power cut."""

    def __init__(self, driver: Driver, target: Path) -> None:
        state = driver.journal._state
        segments = state.segments[:]
        self.last = state.last
        self.synced = {segment.path.name: segment.synced for segment in segments}
        self.synced_last = max((segment.synced_last for segment in segments), default=state.last)
        self.path = target
        for name in ("journal", "damaged"):
            (target / name).mkdir(parents=True)
            for path in (driver.directory.parent / name).iterdir():
                try:
                    (target / name / path.name).write_bytes(path.read_bytes())
                except FileNotFoundError:  # a probe's file
                    continue

    def cut(self, how: float) -> None:
        """Lose a part of what was not synced."""
        for path in (self.path / "journal").glob("*.seg"):
            synced = self.synced.get(path.name)
            if synced is None:
                continue
            size = path.stat().st_size
            os.truncate(path, synced + round(how * (size - synced)))


class Machine(RuleBasedStateMachine):
    @initialize(
        sync=st.sampled_from(["always", "always", "interval"]), segment_bytes=st.sampled_from([1, 150, 400, 10**6])
    )
    def begin(self, sync: str, segment_bytes: int) -> None:
        self.options = {"sync": sync, "segment_bytes": segment_bytes}
        self.patch = pytest.MonkeyPatch()
        self.disk = FakeDisk(self.patch)
        self.patch.setattr(writer, "TRY_EVERY", 0.02)
        self.patch.setattr(writer, "SYNC_EVERY", 3600.0)
        self.logs = structlog.testing.capture_logs()
        self.events = self.logs.__enter__()
        self.root = Path(tempfile.mkdtemp())
        self.names = itertools.count()
        self.bodies = itertools.count()
        #: What is acknowledged and not released, by sequence number.
        self.records: dict[int, bytes] = {}
        self.released = 0
        self.driver = Driver(self.fresh_path(), **self.options)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()
            self.logs.__exit__(None, None, None)
            self.patch.undo()
            shutil.rmtree(self.root)
            assert not [line for line in self.events if "exc_info" in line]

    def fresh_path(self) -> Path:
        return self.root / str(next(self.names))

    def make(self, sizes: list[int]) -> list[bytes]:
        return [b"%d:" % next(self.bodies) + b"x" * size for size in sizes]

    def picture(self) -> Picture:
        return Picture(self.driver, self.fresh_path())

    def reopen(self, path: Path) -> dict[int, bytes]:
        """Start there, and return what is replayed."""
        self.driver = Driver(path, **self.options)
        assert self.driver.checkpoint.seq >= self.released
        self.released = self.driver.checkpoint.seq
        records = self.driver.read(max_bytes=200)
        assert self.driver.journal.found.records == len(records)
        return {record.seq: record.body for record in records}

    def no_damage(self) -> None:
        assert not [
            line for line in self.events if line["event"] in ("journal record damaged", "journal records missing")
        ]

    # Events

    @rule(sizes=sizes)
    def append(self, sizes: list[int]) -> None:
        bodies = self.make(sizes)
        seqs = self.driver.append(*bodies)
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert seqs[0] > max(self.records, default=self.released)
        self.records.update(zip(seqs, bodies, strict=True))

    @rule(part=anywhere)
    def release(self, part: float) -> None:
        seqs = [self.released, *self.records]
        seq = seqs[round(part * (len(seqs) - 1))]
        assert self.driver.journal.release(seq, {"seq": seq})
        self.records = {other: body for other, body in self.records.items() if other > seq}
        # Damaged records that follow are released with it.
        self.released = self.driver.journal.released
        assert seq <= self.released < min(self.records, default=self.released + 1)

    @rule(part=anywhere, max_bytes=st.integers(1, 300))
    def read(self, part: float, max_bytes: int) -> None:
        seqs = [self.released, *self.records]
        after = seqs[round(part * (len(seqs) - 1))]
        found = [(record.seq, record.body) for record in self.driver.read(after, max_bytes)]
        assert found == [(seq, body) for seq, body in self.records.items() if seq > after]

    @rule()
    def restart(self) -> None:
        self.driver.close()
        assert self.reopen(self.driver.directory.parent) == self.records
        self.no_damage_is_new()

    @rule(sizes=sizes, syncs=st.integers(0, 3), how=anywhere)
    def crash_during_a_group(self, sizes: list[int], syncs: int, how: float) -> None:
        taken: list[Picture] = []
        self.disk.picture, self.disk.picture_after = lambda: taken.append(self.picture()), syncs
        bodies = self.make(sizes)
        first = self.driver.journal.last + 1
        self.driver.append(*bodies)
        self.disk.picture = None
        picture = taken[0] if taken else self.picture()
        self.after(picture, how, {**self.records, **dict(enumerate(bodies, first))})

    @rule(
        sizes=sizes,
        failing_syncs=st.integers(0, 4),
        written=st.sampled_from([None, 0, 10, HEADER_SIZE, 2 * HEADER_SIZE + 5, 10**6]),
        uncuttable=st.booleans(),
        crash=st.booleans(),
        how=anywhere,
    )
    def be_refused(
        self, sizes: list[int], failing_syncs: int, written: int | None, uncuttable: bool, crash: bool, how: float
    ) -> None:
        self.disk.failing_syncs, self.disk.failing_write, self.disk.uncuttable = failing_syncs, written, uncuttable
        bodies = self.make(sizes)
        answers = self.driver.wait(*[self.driver.begin(body) for body in bodies])
        picture = self.picture() if crash else None
        self.disk.uncuttable = False
        for answer, body in zip(answers, bodies, strict=True):
            if isinstance(answer, int):
                self.records[answer] = body
            else:
                assert isinstance(answer, NotAccepting)
        wait_until(lambda: not self.driver.journal.problem)
        self.disk.failing_syncs, self.disk.failing_write = 0, None
        if picture is not None:
            self.after(picture, how, self.records)

    @precondition(lambda self: self.records)
    @rule(which=anywhere, place=anywhere, bit=st.integers(0, 7))
    def flip_a_bit(self, which: float, place: float, bit: int) -> None:
        self.driver.close()
        seq = list(self.records)[round(which * (len(self.records) - 1))]
        segment = max(path for path in self.driver.segments() if (first_of(path.name) or 0) <= seq)
        data = segment.read_bytes()
        offset = data.find(MAGIC)
        while (header := decode(data, offset)) is None or header.seq != seq:
            offset = data.index(MAGIC, offset + 1)
        flip(segment, offset + round(place * (HEADER_SIZE + header.length - 1)), bit)
        known = set(os.listdir(self.driver.damaged_dir))  # noqa: PTH208
        del self.records[seq]
        assert self.reopen(self.driver.directory.parent) == self.records
        assert set(os.listdir(self.driver.damaged_dir)) > known  # noqa: PTH208
        # Void records that came after it may be set aside too, but nothing that counts.
        lines = [line for line in self.events if line["event"] == "journal record damaged"]
        assert [line["offset"] <= offset < line["offset"] + line["bytes"] for line in lines].count(True) == 1
        self.events.clear()

    def after(self, picture: Picture, how: float, possible: dict[int, bytes]) -> None:
        """Go on from a crash. All that was promised is there, then perhaps some of what was on its way."""
        self.driver.close()
        picture.cut(how)
        promised = picture.last if self.options["sync"] == "always" else picture.synced_last
        found = self.reopen(picture.path)
        expected = {seq: body for seq, body in possible.items() if seq > self.released}
        assert list(found.items()) == list(expected.items())[: len(found)]
        assert set(found) >= {seq for seq in expected if seq <= promised}
        self.records = found
        self.no_damage_is_new()

    def no_damage_is_new(self) -> None:
        self.no_damage()
        self.events.clear()

    @invariant()
    def the_figures_agree(self) -> None:
        if hasattr(self, "driver"):
            stats = self.driver.journal.stats()
            assert stats.records == len(self.records)
            assert (stats.oldest is None) == (not self.records)
            assert self.driver.journal.released == self.released
            assert bool(self.driver.segments()) >= bool(self.records)


TestJournal = Machine.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
