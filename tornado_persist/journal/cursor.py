"""The cursor file: how far the journal is released, and what its user has to know at that point."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from tornado_persist.files import fsync_directory, write_all

#: Bytes of the file, padding included; one whose state needs more is as large as that takes.
SIZE = 16384

_HEAD = re.compile(rb"persistd-cursor 1 ([0-9a-f]{8}) (\d+)\n")


class CursorDamaged(ValueError):
    """The cursor file is not what was written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Every record up to ``seq`` is released, and ``state`` is what the caller said then: any JSON object."""

    seq: int
    state: dict[str, Any] = field(default_factory=dict)


class Cursor:
    """One small file, replaced whole.

    The new content is written aside, fsynced, renamed over the old and the directory fsynced, so that a crash leaves
    the one or the other. Aside means into a file that has its blocks already: giving up journal space must be possible
    when the disk is full, or it would stay full. The replaced file is kept for that by a hard link, so that after the
    first time no block is ever asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "cursor"
        self.reserve = directory / "cursor.reserve"
        self._replaced = directory / "cursor.old"
        #: The names that are the cursor's in the directory.
        self.names = frozenset(path.name for path in (self.path, self.reserve, self._replaced))

    def read(self) -> Checkpoint | None:
        """What was written last; None when there is no file.

        Raises:
            CursorDamaged: it does not hold what was written.
            OSError: it cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        head = _HEAD.match(content)
        if head is None:
            raise CursorDamaged("it is no cursor")
        body = content[head.end() : head.end() + int(head[2])]
        if crc32(body) != int(head[1], 16):
            raise CursorDamaged("its checksum does not hold")
        found = json.loads(body)
        return Checkpoint(found["seq"], found["state"])

    def prepare(self) -> None:
        """See to it that the reserve is there. Raises OSError."""
        if self.reserve.exists():
            self._replaced.unlink(missing_ok=True)  # a crash came between link and rename
        elif self._replaced.exists():
            self._replaced.rename(self.reserve)  # ... between rename and rename
        if not self.reserve.exists() or self.reserve.stat().st_size < SIZE:
            self._write_reserve(b"")

    def write(self, checkpoint: Checkpoint) -> None:
        """Make this the cursor, durably. After an OSError it is the old or the new one."""
        body = json.dumps({"seq": checkpoint.seq, "state": checkpoint.state}, separators=(",", ":")).encode()
        self._write_reserve(b"persistd-cursor 1 %08x %d\n%b\n" % (crc32(body), len(body), body))
        with contextlib.suppress(OSError):  # no cursor yet, or a file system without hard links
            self._replaced.unlink(missing_ok=True)
            os.link(self.path, self._replaced)
        self.reserve.rename(self.path)
        with contextlib.suppress(OSError):  # else the next one makes it
            if self._replaced.exists():
                self._replaced.rename(self.reserve)
        fsync_directory(self.path.parent)
        with contextlib.suppress(OSError):
            self.prepare()

    def _write_reserve(self, content: bytes) -> None:
        fd = self._open_reserve()
        try:
            size = max(SIZE, os.fstat(fd).st_size, len(content))
            write_all(fd, [content.ljust(size)])  # never shorter: the blocks are what it is for
            os.fsync(fd)
        finally:
            os.close(fd)

    def _open_reserve(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.reserve, flags, 0o666)
        if os.fstat(fd).st_nlink > 1:
            # A crash left a second name of the cursor itself, which must not be written into.
            os.close(fd)
            self.reserve.unlink()
            fd = os.open(self.reserve, flags, 0o666)
        return fd
