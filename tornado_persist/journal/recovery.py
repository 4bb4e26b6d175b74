"""What a start does with the result of the walk: it counts records, and repairs the directory.

The service starts with any journal: it replays what it can, and logs the rest, one line each. Only what a
restart cannot fix ends the start with ``StartError``: no access, or records of a later version.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tornado_persist.errors import StartError
from tornado_persist.files import fsync_directory, make_directory, reason
from tornado_persist.journal.cursor import MISSING, Checkpoint, Cursor
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.scanner import Damage, Entry, Tail
from tornado_persist.journal.segment import Segment, first_of, segment_path
from tornado_persist.journal.state import State
from tornado_persist.journal.walk import Begin, Directory
from tornado_persist.records.models import KINDS, Kind
from tornado_persist.telemetry import log

logger = log.get(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Interrupted(Exception):
    """The start was told to stop."""


@dataclass(slots=True)
class Found:
    """The good records that are not released when the journal is opened, and their rows."""

    records: int = 0
    rows: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


class Recovery:
    """One start. It fills the state."""

    def __init__(self, directory: Path, cursor: Cursor, damaged: DamagedDirectory, state: State) -> None:
        self._directory = directory
        self._cursor = cursor
        self._damaged = damaged
        self._state = state
        self.found = Found()

    def run(self, stop: Callable[[], bool] = lambda: False) -> Checkpoint:
        """Leave a directory that can be appended to, and a state that describes it.

        Raises:
            Interrupted: ``stop`` said so, between two records; the next start does the rest.
            StartError: the directory cannot be used.
        """
        try:
            make_directory(self._directory)
            make_directory(self._damaged.path)
            if not os.access(self._directory, os.W_OK | os.X_OK):
                raise StartError(f"journal {self._directory} cannot be used: no write permission, or a read-only disk")
            firsts = self._list()
            checkpoint = self._read_cursor(firsts)
            self._state.released, self._state.latest = checkpoint.seq, checkpoint.latest
            self._walk(self._delete_released(firsts), stop)
            return self._save_cursor(checkpoint)
        except OSError as exc:
            raise StartError(f"journal {exc.filename or self._directory} cannot be used: {reason(exc)}") from None

    def _list(self) -> list[int]:
        firsts: list[int] = []
        for path in sorted(self._directory.iterdir()):
            first = first_of(path.name)
            if first is not None:
                if not stat.S_ISREG(path.stat().st_mode):
                    raise StartError(f"journal segment {path} cannot be used: it is no regular file")
                firsts.append(first)
            elif path.name not in self._cursor.names:
                logger.warning("journal ignores a file that is not its own", file=str(path))
        return firsts

    def _read_cursor(self, firsts: list[int]) -> Checkpoint:
        checkpoint, problem = self._cursor.load(firsts[0] if firsts else None)
        if problem == MISSING:
            logger.error("journal cursor missing", replay_from=checkpoint.seq + 1)
        elif problem:
            moved: str | None = None
            try:
                moved = str(self._damaged.move(self._cursor.path))
            except OSError as exc:
                problem += f"; it could not be moved away: {reason(exc)}"
            logger.error("journal cursor damaged", reason=problem, moved=moved, replay_from=checkpoint.seq + 1)
        elif self._cursor.path.exists():
            if self._cursor.torn:
                logger.warning("journal cursor torn by a crash", replay_from=checkpoint.seq + 1)
            _sync(self._cursor.path)  # before segments are deleted because of it
        return checkpoint

    def _delete_released(self, firsts: list[int]) -> list[int]:
        """Delete the segments whose records are all released, unless it is the last one; returns those left."""
        count = 0
        while count + 1 < len(firsts) and firsts[count + 1] <= self._state.released + 1:
            segment_path(self._directory, firsts[count]).unlink()
            count += 1
        if count:
            # Durably: the names of segments that may be deleted next make the tails of these void.
            fsync_directory(self._directory)
        return firsts[count:]

    def _walk(self, firsts: list[int], stop: Callable[[], bool]) -> None:
        state, released = self._state, self._state.released
        segments: list[Segment] = []
        walk = Directory(self._directory, firsts, released).walk()
        try:
            for item in walk:
                if stop():
                    raise Interrupted
                match item:
                    case Begin():
                        segments.append(Segment(item.path, item.first, item.size))
                    case Entry():
                        segments[-1].last = segments[-1].synced_last = item.seq
                        state.latest = max(state.latest, item.at)
                        if item.seq > released:
                            state.mark(item.seq, item.at)
                            self.found.records += 1
                            self.found.rows[item.kind] += item.rows
                    case Damage():
                        segments[-1].keep_file |= not self._damaged.keep(segments[-1].path, item)
                    case Tail():
                        _cut(segments[-1], item)
                    case _:
                        if not item.damaged:
                            logger.error("journal records missing", first=item.first, last=item.last)
                        state.add_gap(item.first, item.last)
        finally:
            walk.close()
        # Only now: until the tails before them were cut, the names of empty segments made those void.
        for segment in segments:
            if segment.end:
                state.segments.append(segment)
                state.bytes += segment.end
            else:
                segment.path.unlink()
                logger.warning("journal segment without a record removed", segment=segment.path.name)
        state.last = max(walk.expected - 1, released)
        if state.segments:
            if walk.expected <= released:
                logger.warning("journal ends before its cursor", last=walk.expected - 1, cursor=released)
            _sync(state.segments[-1].path)
        fsync_directory(self._directory)

    def _save_cursor(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write the cursor if it is missing or torn, or if gaps follow the last released record."""
        released = self._state.released
        try:
            if released > checkpoint.seq or self._cursor.torn or not self._cursor.path.exists():
                checkpoint = Checkpoint(released, checkpoint.state, self._state.latest)
                self._cursor.write(checkpoint)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            # Waiting rows must still reach the sink; appends will fail by themselves.
            logger.warning("journal cursor cannot be written now", error=reason(exc))
        return checkpoint


def _cut(segment: Segment, tail: Tail) -> None:
    segment.end = segment.synced = tail.offset
    segment.cut()
    why = "torn by a crash" if tail.torn else "void: the next segment begins before it"
    logger.warning("journal tail cut off", segment=segment.path.name, offset=tail.offset, bytes=tail.size, reason=why)


def _sync(path: Path) -> None:
    """Make durable what a killed process wrote: it may be in the system's memory alone."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
