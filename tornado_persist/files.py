"""What is asked of the file system where data have to last, in calls that either finish or raise ``OSError``."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: Buffers that one ``writev`` takes at most.
IOV_MAX: int = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024

_BLOCK = 4096  # bytes: a disk loses no less than this at a time
#: Stands for bytes that the disk does not give any more. It is not zero, which would look like a tail never written.
_UNREADABLE = b"\xee"


def write_all(fd: int, buffers: list[bytes | memoryview]) -> None:
    """Write every buffer, in as few calls as the system takes; the list is used up.

    Raises:
        OSError: any part of it may have been written.
    """
    start = 0
    while start < len(buffers):
        written = os.writev(fd, buffers[start : start + IOV_MAX])
        while start < len(buffers) and written >= len(buffers[start]):
            written -= len(buffers[start])
            start += 1
        if written:
            buffers[start] = memoryview(buffers[start])[written:]


def read_at(fd: int, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset``, fewer only at the end of the file.

    A block that the disk cannot read comes back filled with another byte: the checksum over it then fails, and it costs
    the record it belongs to, as any other damage does.
    """
    try:
        return _pread(fd, offset, size)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
    parts: list[bytes] = []
    for start in range(offset, min(offset + size, os.fstat(fd).st_size), _BLOCK):
        wanted = min(_BLOCK, offset + size - start)
        try:
            parts.append(_pread(fd, start, wanted))
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            parts.append(_UNREADABLE * wanted)
    return b"".join(parts)


def _pread(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def make_directory(directory: Path) -> None:
    """Make the directory and its missing parents, each durable in its own parent."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def fsync_directory(directory: Path) -> None:
    """Make the names in the directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # some file systems have no fsync for directories
            raise
    finally:
        os.close(fd)


def reason(exc: OSError) -> str:
    """What the operating system says, without the error's number."""
    return exc.strerror or str(exc)
