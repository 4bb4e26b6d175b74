"""Durable file operations that either finish or raise ``OSError``, and the data directory with its lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path

from tornado_persist.errors import ConfigError, StartError

#: The most buffers that one ``writev`` takes.
IOV_MAX: int = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024

_BLOCK = 4096  # bytes: a disk loses at least this much at a time
#: Stands for bytes that the disk cannot read. Zeros would look like a tail that was never written.
_UNREADABLE = b"\xee"


def write_all(fd: int, buffers: list[bytes | memoryview]) -> None:
    """Write every buffer, in as few calls as possible; the list may be changed.

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

    A block that the disk cannot read comes back filled with another byte: the checksum over it fails, so it costs the
    record it belongs to, as other damage does.
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
    """The operating system's message, without the error's number."""
    return exc.strerror or str(exc)


class DataDir:
    """A directory that is locked while a service runs on it.

    The lock is on the directory itself, and the kernel releases it when the process ends, however it ends. Unlike a
    process id it cannot be stale, and unlike a lock file it cannot be deleted while it is held. The pid file only says
    where to send signals.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid_file = path / "persistd.pid"
        self.log_file = path / "persistd.log"
        self._fd: int | None = None

    def make(self) -> None:
        """Create the directory if it is missing, and check that files can be created in it.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as exc:
            raise ConfigError("data_dir", f"{self.path} cannot be written: {exc.strerror}") from None

    def lock(self) -> None:
        """Lock the directory for this process, until it ends or calls :meth:`unlock`.

        Raises:
            StartError: another process has locked it.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise StartError(f"data_dir {self.path} is in use by another persistd{self._pid_words()}") from None
        self._fd = fd

    def unlock(self) -> None:
        """Release the directory."""
        if self._fd is not None:
            self.pid_file.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def write_pid(self) -> None:
        """Write this process's id; to be called with the lock, once signals are handled.

        A full disk is ignored: the journal needs no new room to drain, so the start must not fail.
        """
        with contextlib.suppress(OSError):
            self.pid_file.write_text(f"{os.getpid()}\n")

    def locked(self) -> bool:
        """Whether a service, other than this object's, has the directory.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise ConfigError("data_dir", f"{self.path} cannot be read: {exc.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(fd)

    def wait_unlocked(self, timeout: float) -> bool:
        """Wait until no service has the directory; False when one still has it after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.locked():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def pid(self) -> int | None:
        """The process that has the directory; None if there is none, or it has not written its id yet."""
        if not self.locked():
            return None
        with contextlib.suppress(OSError, ValueError):
            return int(self.pid_file.read_text())
        return None

    def holder(self) -> int | None:
        """The process that the pid file names, if it is alive; for display only.

        Unlike :meth:`pid` it takes no lock, so it cannot get in the way of a start. It is wrong if a service was killed
        and another process has its id now, or if the disk had no room for the file.
        """
        try:
            pid = int(self.pid_file.read_text())
            os.kill(pid, 0)
        except PermissionError as exc:
            return pid if exc.filename is None else None
        except (OSError, ValueError):
            return None
        return pid

    def _pid_words(self) -> str:
        pid = self.pid()
        return f" (pid {pid})" if pid else ""
