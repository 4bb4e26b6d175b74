"""The cursor: how far the journal is released, and the caller's state at that point.

One small file of two halves, which are overwritten in turn. A crash can only damage the half that is being written; the
other one has the previous cursor. (LMDB keeps two meta pages for the same reason.) So a new cursor needs no new block,
which a full disk would refuse, and changes neither a directory nor a length: one sync of one block takes 0.2 ms on a
quiet disk, a new file that is renamed over the old one 0.5.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from tornado_persist.errors import StartError
from tornado_persist.files import fsync_directory, reason, write_all

#: Bytes of a half at least; more if the state needs it.
HALF = 16384

#: The problem of a journal without the cursor that it must have had.
MISSING = "it is missing"

_VERSION = 2
_HEAD = re.compile(rb"persistd-cursor 2 ([0-9a-f]{8}) (\d+)\n")
_ANY_VERSION = re.compile(rb"persistd-cursor (\d{1,9}) ")


class CursorDamaged(ValueError):
    """The cursor file does not hold what was written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Every record up to ``seq`` is released; ``state`` is the caller's at that point: any JSON object.

    ``latest``: the last accept time so far, in microseconds since 1970; 0 if it is not known.
    """

    seq: int
    state: dict[str, Any] = field(default_factory=dict)
    latest: int = field(default=0, compare=False)


class Cursor:
    """The file. One thread at a time writes it; a reader gets the old cursor or the new one."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "cursor"
        self._aside = directory / "cursor.new"
        #: The cursor's file names in the directory.
        self.names = frozenset((self.path.name, self._aside.name))
        #: Whether :meth:`read` found one half alone.
        self.torn = False
        # The number of the cursor on the disk; its last bit says which half it is in. A half whose write has failed is
        # written again, never the other one.
        self._number: int | None = None

    def read(self, oldest: int | None) -> Checkpoint | None:
        """What was written last; None when there is no file.

        ``oldest``: the first record that the journal still has, None when it has none. If one half is damaged, this
        tells whether a crash tore it, before any record was deleted because of it, or the disk changed it later: then
        the records after the other half's are gone, and its state would be wrong.

        Raises:
            CursorDamaged: it does not hold what was written.
            StartError: a later version wrote it.
            OSError: it cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        middle = len(content) // 2
        halves: dict[int, Checkpoint] = {}
        problem = ""
        for half in (content[:middle], content[middle:]):
            self._check_version(half)
            try:
                number, checkpoint = _decode(half)
                halves[number] = checkpoint
            except CursorDamaged as exc:
                problem = str(exc)
        if not halves:
            raise CursorDamaged(problem)
        self._number = max(halves)
        newest = halves[self._number]
        self.torn = bool(problem)
        if self.torn and (oldest is None or oldest > newest.seq + 1):
            raise CursorDamaged(f"a half of it: {problem}")
        return newest

    def load(self, oldest: int | None) -> tuple[Checkpoint, str]:
        """What was written last, or, without a usable one, a cursor before ``oldest``; and the problem, or empty.

        Raises:
            StartError: a later version wrote it.
            OSError: it cannot be read now, but may be whole.
        """
        problem = "" if oldest in (None, 1) else MISSING
        try:
            checkpoint = self.read(oldest)
        except CursorDamaged as exc:
            problem, checkpoint = str(exc), None
        except OSError as exc:
            if exc.errno not in (errno.EISDIR, errno.EIO):
                raise
            problem, checkpoint = reason(exc), None
        if checkpoint is not None:
            return checkpoint, ""
        return Checkpoint(oldest - 1 if oldest else 0), problem

    def _check_version(self, half: bytes) -> None:
        version = _ANY_VERSION.match(half)
        if version is not None and int(version[1]) > _VERSION:
            raise StartError(
                f"journal cursor {self.path} has format {int(version[1])}, "
                "which this version of tornado-persist does not know"
            )

    def write(self, checkpoint: Checkpoint) -> None:
        """Make this the cursor, durably. After an OSError it is the old or the new one."""
        number = self._newest() + 1
        if not self._overwrite(number, checkpoint):
            self._make(number, checkpoint)
        self._number = number

    def _newest(self) -> int:
        if self._number is None:
            # An OSError is raised: what cannot be read may be the newest, and must not be overwritten.
            with contextlib.suppress(CursorDamaged):
                self.read(0)
        return self._number or 0

    def _overwrite(self, number: int, checkpoint: Checkpoint) -> bool:
        """False when there is no file, or too small a one."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            size = os.fstat(fd).st_size // 2
            content = _encode(number, checkpoint)
            if size < max(HALF, len(content)):
                return False
            os.lseek(fd, number % 2 * size, os.SEEK_SET)
            write_all(fd, [content])
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return True

    def _make(self, number: int, checkpoint: Checkpoint) -> None:
        """Write a new file with this in both halves."""
        contents = {n % 2: _encode(n, checkpoint) for n in (number - 1, number)}
        size = -(-max(map(len, contents.values())) // HALF) * HALF
        fd = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, [contents[half].ljust(size) for half in (0, 1)])
            os.fsync(fd)
        finally:
            os.close(fd)
        self._aside.rename(self.path)
        fsync_directory(self.path.parent)


def _encode(number: int, checkpoint: Checkpoint) -> bytes:
    content = {"number": number, "seq": checkpoint.seq, "state": checkpoint.state, "latest": checkpoint.latest}
    body = json.dumps(content, separators=(",", ":")).encode()
    return b"persistd-cursor 2 %08x %d\n%b\n" % (crc32(body), len(body), body)


def _decode(half: bytes) -> tuple[int, Checkpoint]:
    head = _HEAD.match(half)
    if head is None:
        raise CursorDamaged("it is no cursor")
    body = half[head.end() : head.end() + int(head[2])]
    if crc32(body) != int(head[1], 16):
        raise CursorDamaged("its checksum does not hold")
    found = json.loads(body)
    return found["number"], Checkpoint(found["seq"], found["state"], found.get("latest", 0))
