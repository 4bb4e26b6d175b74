"""What open() finds: the cursor, every record after it, and all that is not as it was written.

Whatever is found, the service starts: what can be replayed is, what cannot is named in one line of the log. Only what
a restart cannot cure and must not destroy ends it, by ``StartError``: no access, or records of a later version.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from tornado_persist.errors import StartError
from tornado_persist.files import fsync_directory, make_directory, reason
from tornado_persist.journal.cursor import Checkpoint, Cursor, CursorDamaged
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.scanner import Damage, Entry, Scanner, Tail
from tornado_persist.journal.segment import Segment, first_of, segment_path
from tornado_persist.journal.state import Ledger
from tornado_persist.records.models import KINDS, Kind
from tornado_persist.telemetry import log

logger = log.get(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class Found:
    """What waits in the journal when it is opened: good records that are not released, and their rows."""

    records: int = 0
    rows: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


class Recovery:
    """One start's look through the directory; fills the ledger."""

    def __init__(self, directory: Path, cursor: Cursor, damaged: DamagedDirectory, ledger: Ledger) -> None:
        self._directory = directory
        self._cursor = cursor
        self._damaged = damaged
        self._ledger = ledger
        self.found = Found()
        # The lowest number that has not been seen, and whether damage since then explains why.
        self._next = 1
        self._explained = False

    def run(self) -> Checkpoint:
        """Leave a directory that can be appended to, and a ledger that says what is in it.

        Raises:
            StartError: the directory cannot be worked with.
        """
        try:
            make_directory(self._directory)
            make_directory(self._damaged.path)
            if not os.access(self._directory, os.W_OK | os.X_OK):
                raise StartError(f"journal {self._directory} cannot be used: no write permission, or a read-only disk")
            firsts = self._list()
            checkpoint = self._read_cursor(firsts)
            firsts = self._drop_released(firsts, checkpoint.seq)
            self._scan(firsts, checkpoint.seq)
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
        problem = ""
        try:
            checkpoint = self._cursor.read(firsts[0] if firsts else None)
        except CursorDamaged as exc:
            problem = str(exc)
        except OSError as exc:
            if exc.errno not in (errno.EISDIR, errno.EIO):
                raise
            problem = reason(exc)
        else:
            if checkpoint is not None:
                if self._cursor.torn:
                    logger.warning("journal cursor torn by a crash", replay_from=checkpoint.seq + 1)
                _make_durable(self._cursor.path)  # before anything is given up by it
                return checkpoint
            if not firsts or firsts[0] == 1:
                return Checkpoint(0)
        start = firsts[0] - 1 if firsts else 0
        if problem:
            moved: str | None = None
            try:
                moved = str(self._damaged.move(self._cursor.path))
            except OSError as exc:
                problem += f"; it could not be moved away: {reason(exc)}"
            logger.error("journal cursor damaged", reason=problem, moved=moved, replay_from=start + 1)
        else:
            logger.error("journal cursor missing", replay_from=start + 1)
        return Checkpoint(start)

    def _drop_released(self, firsts: list[int], released: int) -> list[int]:
        """Delete the segments that another one follows whose records, all of them, are released."""
        count = 0
        while count + 1 < len(firsts) and firsts[count + 1] <= released + 1:
            segment_path(self._directory, firsts[count]).unlink()
            count += 1
        if count:
            # For good: what is void in these is so by the names of segments that may be removed next.
            fsync_directory(self._directory)
        return firsts[count:]

    def _scan(self, firsts: list[int], released: int) -> None:
        ledger = self._ledger
        ledger.released = released
        self._next = firsts[0] if firsts and firsts[0] <= released else released + 1
        empty: list[Path] = []
        for first, limit in zip(firsts, [*firsts[1:], None], strict=False):
            path = segment_path(self._directory, first)
            self._expect(first)
            segment = self._scan_segment(path, first, limit)
            if segment.end:
                ledger.segments.append(segment)
                ledger.bytes += segment.end
                top = first + 1
            else:
                empty.append(path)
                top = first
            self._next = max(self._next, top)
        # Only now: while something was left to be cut, their names made it void.
        for path in empty:
            path.unlink()
            logger.warning("journal segment without a record removed", segment=path.name)
        if ledger.segments and self._next <= released:
            logger.warning("journal ends before its cursor", last=self._next - 1, cursor=released)
        if ledger.segments:
            _make_durable(ledger.segments[-1].path)
        fsync_directory(self._directory)
        ledger.last = max(self._next - 1, released)

    def _scan_segment(self, path: Path, first: int, limit: int | None) -> Segment:
        size = path.stat().st_size
        scanner = Scanner(path, first)
        last, keep = first - 1, False
        try:
            while (item := scanner.next(size, limit, torn_tail=limit is None)) is not None:
                if isinstance(item, Entry):
                    self._take(item)
                    last = item.seq
                elif isinstance(item, Damage):
                    keep |= not self._damaged.keep(path, item)
                    self._explained = True
                else:
                    size = self._cut(path, item)
            if self._explained:
                # At least one record was here; its number must not be given again.
                self._hole(max(scanner.expected - 1, self._next) if limit is None else limit - 1)
        finally:
            scanner.close()
        segment = Segment(path, first, size, last)
        segment.keep = keep
        return segment

    def _take(self, entry: Entry) -> None:
        self._expect(entry.seq)
        self._next = entry.seq + 1
        if entry.seq > self._ledger.released:
            self._ledger.mark(entry.seq, entry.at)
            self.found.records += 1
            self.found.rows[entry.kind] += entry.rows

    def _expect(self, seq: int) -> None:
        """The next record has this number, or a later one."""
        if seq <= self._next:
            return
        if not self._explained and seq - 1 > self._ledger.released:
            first = max(self._next, self._ledger.released + 1)
            logger.error("journal records missing", first=first, last=seq - 1)
        self._hole(seq - 1)

    def _hole(self, last: int) -> None:
        """No record up to ``last`` that is still to come."""
        if last >= self._next:
            self._ledger.add_hole(self._next, last)
            self._next = last + 1
        self._explained = False

    def _cut(self, path: Path, tail: Tail) -> int:
        """Durably remove the end of a segment; its length after that."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, tail.offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        why = "torn by a crash" if tail.torn else "void: the next segment begins before it"
        logger.warning("journal tail cut off", segment=path.name, offset=tail.offset, bytes=tail.size, reason=why)
        return tail.offset

    def _save_cursor(self, checkpoint: Checkpoint) -> Checkpoint:
        """Have a whole cursor, and holes that follow the last released record released for good."""
        released = self._ledger.released
        try:
            if released > checkpoint.seq or self._cursor.torn or not self._cursor.path.exists():
                checkpoint = Checkpoint(released, checkpoint.state)
                self._cursor.write(checkpoint)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            # What waits must be written to the sink all the same; appending will find out for itself.
            logger.warning("journal cursor cannot be written now", error=reason(exc))
        return checkpoint


def _make_durable(path: Path) -> None:
    """What a killed process wrote is in the system's memory, and perhaps nowhere else."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
