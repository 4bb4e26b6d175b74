"""Durable file operations that either finish or raise ``OSError``, and the data directory with its lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from tornado_persist.errors import ConfigError, StartError

#: The most buffers that one ``writev`` takes.
IOV_MAX: int = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024

#: What an instance may be called.
INSTANCE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
#: Characters of the machine's name in a name that is made.
_HOST = 40

#: Seconds for which a start waits for commands that look at the lock.
_PROBED = 0.2
#: Bytes of the text in the lock file.
_HOLDER = 64
#: A line of /proc/PID/fdinfo/FD.
_EXCLUSIVE = re.compile(r"^lock:.*FLOCK.*WRITE", re.MULTILINE)

#: The message for a link that another user may have made.
_LINK = "a symbolic link in a directory that another user can write to is not followed"

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


def open_private(path: Path, flags: int) -> int:
    """Open a file that holds rows: a new one cannot be read by others.

    In a directory that another user can write to, no symbolic link is followed: it could lead to any file of ours.

    Raises:
        OSError: as ``os.open`` does.
    """
    if writable_by_others(path.parent):
        flags |= os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        if exc.errno == errno.ELOOP and path.is_symlink():
            raise OSError(exc.errno, _LINK, str(path)) from None
        raise


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Put a new file with this content in the place of ``path``: whoever reads it sees the old one or the new one.

    Raises:
        OSError: the old one is still there, unless only the directory could not be synced.
    """
    new = path.with_name(f"{path.name}.new")
    fd = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(fd, [content])
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    new.replace(path)
    if durable:
        fsync_directory(path.parent)


def writable_by_others(directory: Path) -> bool:
    """Whether a user other than root and this process's can put files there. The group counts as trusted."""
    status = directory.stat()
    return status.st_uid not in (0, os.geteuid()) or bool(status.st_mode & stat.S_IWOTH)


def reason(exc: OSError) -> str:
    """The operating system's message, without the error's number."""
    return exc.strerror or str(exc)


class DataDir:
    """A directory that is locked while a service runs on it.

    The lock is on a regular file that is open for writing, because network file systems pass only such locks on to
    other hosts; and on the directory too, so that a deleted lock file does not let a second service of this host in.
    The kernel releases both when the process ends, however it ends. What the file says about its holder is believed
    only of a process that has the file open: the number alone may be another process's by now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file = path / "lock"
        self.pid_file = path / "persistd.pid"
        self.log_file = path / "persistd.log"
        self.note_file = path / "service.json"
        self.name_file = path / "instance"
        self._fds: list[int] = []

    def make(self) -> None:
        """Create the directory if it is missing, and check that files can be created in it.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            self.path.mkdir(0o750, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._refuse_links()
        except OSError as exc:
            raise ConfigError("data_dir", f"{self.path} cannot be written: {reason(exc)}") from None

    def exists(self) -> bool:
        """Whether the directory is there and can be used; False if :meth:`make` would create it. Creates nothing.

        Raises:
            ConfigError: it cannot be used, or not be created.
        """
        try:
            place = next(path for path in (self.path, *self.path.parents) if path.exists())
            if not place.is_dir():
                raise _os_error(errno.ENOTDIR)
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                raise _os_error(errno.EROFS)
            if not os.access(place, os.W_OK | os.X_OK):
                raise _os_error(errno.EACCES)
            if place != self.path:
                return False
            self._refuse_links()
        except OSError as exc:
            raise ConfigError("data_dir", f"{self.path} cannot be written: {reason(exc)}") from None
        return True

    def _refuse_links(self) -> None:
        """Refuse symbolic links that another user may have made: SQLite, for one, would write through them.

        Raises:
            ConfigError: there is one.
        """
        if not writable_by_others(self.path):
            return
        for directory, directories, files in os.walk(self.path):
            for name in (*directories, *files):
                if os.path.islink(os.path.join(directory, name)):  # noqa: PTH114, PTH118 - there may be many
                    raise ConfigError("data_dir", f"{Path(directory, name)}: {_LINK}; remove it, or run as its user")

    def open_log(self) -> BinaryIO:
        """The background service's log, to append to. Raises OSError."""
        return os.fdopen(open_private(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")

    def lock(self) -> None:
        """Lock the directory for this process, until it ends or calls :meth:`unlock`.

        Raises:
            StartError: another process has locked it, or it cannot be locked.
        """
        deadline = time.monotonic() + _PROBED
        while not self._try_lock():
            # Another command may just be looking whether a service runs.
            if time.monotonic() > deadline:
                pid = self.holder()
                words = f" (pid {pid})" if pid else ""
                raise StartError(f"data_dir {self.path} is in use by another persistd{words}")
            time.sleep(0.02)
        self._write_holder()

    def _try_lock(self) -> bool:
        try:
            if not self._others_can_open():
                self._fds.append(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
                with contextlib.suppress(OSError):  # the file's lock decides where directories have none
                    if not _flock(self._fds[0], fcntl.LOCK_EX):
                        return self._give_back()
            while True:
                fd = open_private(self.lock_file, os.O_RDWR | os.O_CREAT)
                self._fds.append(fd)
                if not _flock(fd, fcntl.LOCK_EX):
                    return self._give_back()
                # The file that was locked may have been deleted or replaced meanwhile.
                if _same(os.fstat(fd), self.lock_file):
                    return True
                os.close(self._fds.pop())
        except OSError as exc:
            self._give_back()
            raise StartError(f"data_dir {self.path} cannot be locked: {reason(exc)}") from None

    def _give_back(self) -> bool:
        while self._fds:
            os.close(self._fds.pop())
        return False

    def unlock(self) -> None:
        """Release the directory."""
        if self._fds:
            with contextlib.suppress(OSError):
                self.pid_file.unlink(missing_ok=True)
            self._give_back()

    def write_pid(self) -> None:
        """Write this process's id; to be called with the lock, once signals are handled.

        A full disk is ignored: the journal needs no new room to drain, so the start must not fail.
        """
        with contextlib.suppress(OSError):
            fd = open_private(self.pid_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")

    def note(self, **facts: object) -> None:
        """Replace what this process says of itself to commands; to be called with the lock.

        ``url`` is where it answers; ``left`` are the rows in the journal after its end. A full disk is ignored.
        """
        with contextlib.suppress(OSError):
            replace_file(self.note_file, json.dumps(facts).encode() + b"\n", durable=False)

    def noted(self) -> dict[str, object]:
        """The last service's :meth:`note`; empty if it cannot be read."""
        return _read_object(self.note_file)

    def instance_name(self) -> str:
        """The name that the instance of this directory keeps, also on another machine; to be called with the lock.

        Made at the first start: the machine's name and four random characters. On a full disk the start must not fail;
        then the next one makes another name.
        """
        with contextlib.suppress(OSError, UnicodeDecodeError):
            kept = self.name_file.read_text(encoding="ascii").strip()
            if re.fullmatch(INSTANCE_NAME, kept):
                return kept
        host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname().partition(".")[0]).strip("-")[:_HOST]
        name = f"{host or 'persistd'}-{secrets.token_hex(2)}"
        with contextlib.suppress(OSError):
            replace_file(self.name_file, f"{name}\n".encode("ascii"))
        return name

    def _write_holder(self) -> None:
        # Always of one length, and over the old text: a full disk has room for that.
        text = json.dumps({"pid": os.getpid()}).ljust(_HOLDER - 1) + "\n"
        with contextlib.suppress(OSError):
            os.pwrite(self._fds[-1], text.encode(), 0)

    def locked(self) -> bool:
        """Whether a service, other than this object's, has the directory.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return (not self._others_can_open() and self._held(self.path)) or self._held(self.lock_file)
        except OSError as exc:
            raise ConfigError("data_dir", f"{self.path} cannot be read: {reason(exc)}") from None

    def _others_can_open(self) -> bool:
        """Whether any user can open, and so lock, the directory: then its lock says nothing."""
        return self.path.exists() and bool(self.path.stat().st_mode & stat.S_IROTH)

    @staticmethod
    def _held(path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _flock(fd, fcntl.LOCK_SH)
        except OSError as exc:
            if path.is_dir():  # the file's lock decides
                return False
            raise OSError(exc.errno, f"its lock: {reason(exc)}") from None
        finally:
            os.close(fd)

    def wait_unlocked(self, timeout: float) -> bool:
        """Wait until no service holds the lock; False if one still does after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.locked():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def holder(self) -> int | None:
        """The process that holds the lock, if it is visible from here. Takes no lock, not even briefly.

        None if no process holds it, or if the holder is in another container, on another host, or another user's.
        """
        pid = _read_object(self.lock_file).get("pid")
        if isinstance(pid, int) and pid > 0 and self._has_open(pid):
            return pid
        try:
            pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        except OSError:
            return None
        return next((pid for pid in pids if self._has_open(pid, locked=True)), None)

    def _has_open(self, pid: int, *, locked: bool = False) -> bool:
        """Whether a process has the lock file open (or, if the file was deleted, the directory); and has ``locked`` it.

        Where the system has no /proc, a living process is believed.
        """
        try:
            fds = list(Path(f"/proc/{pid}/fd").iterdir())
        except FileNotFoundError:
            return not Path("/proc/self/fd").is_dir() and _alive(pid)
        except OSError:
            return False
        for fd in fds:
            try:
                status = fd.stat()
                if not (_same(status, self.lock_file) or _same(status, self.path)):
                    continue
                if not locked and stat.S_ISREG(status.st_mode):
                    return True
                if _EXCLUSIVE.search(Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text(encoding="ascii")):
                    return True
            except OSError:
                continue
        return False


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flock(fd: int, kind: int) -> bool:
    """Take a lock; False if another process has it. Raises OSError for any other failure."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(status: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(status, path.stat())
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno == errno.EPERM
    return True
