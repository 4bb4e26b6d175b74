"""Where log lines go: a descriptor, or a file that is rotated. Lines that cannot be written are counted, no more."""

from __future__ import annotations

import io
import logging
import os
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

#: Seconds until a rotation that failed is tried again; until then the file grows.
_ROTATE_AGAIN = 60.0


class Stream(logging.Handler):
    """Writes each record as one line to an open descriptor, with nothing in between that could hold it back.

    A full disk, or a reader that went away, costs the lines of that time: how many they were is said in the first line
    that gets through. The logging module would print a traceback for each, and buffers would hand the line out later.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self._output = Output()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)  # a bug
            return
        self._output.write(self.fd, line, self)


class Output:
    """Lines written to a descriptor; knows how many were lost."""

    def __init__(self) -> None:
        self.lost = 0
        # Part of the last line is there, without its end.
        self._torn = False

    def write(self, fd: int, line: str, handler: logging.Handler) -> int:
        """Write one line, after one about those that were lost; returns how many bytes were written."""
        data = line.encode(errors="backslashreplace") + b"\n"
        if self.lost:
            note = logging.LogRecord(
                __name__, logging.WARNING, "", 0, "%d log lines could not be written", (self.lost,), None
            )
            data = handler.format(note).encode() + b"\n" + data
        if self._torn:
            data = b"\n" + data
        done = 0
        try:
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError:
            self.lost += 1
            self._torn = data[done - 1 : done] != b"\n" if done else self._torn
        else:
            self.lost, self._torn = 0, False
        return done


class LogFile(RotatingFileHandler):
    """The same for a file, which is rotated by its size, and can be opened anew after something else has renamed it.

    The standard library's handler names and moves the files. That a line goes out whole and once, and that the file's
    size is not asked for with each, is done here.
    """

    def __init__(self, path: Path, *, max_bytes: int, backups: int, streams: bool = False) -> None:
        """``max_bytes``: 0 never rotates; ``streams``: standard output and error go there too, and move with the file.

        Raises OSError when the file cannot be opened.
        """
        #: See ``streams``.
        self.streams = streams
        self._output = Output()
        self._size = 0
        self._rotate_not_before = 0.0
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        raw = Path(self.baseFilename).open("ab", buffering=0)  # noqa: SIM115  # the handler closes it
        stream = io.TextIOWrapper(raw)  # of which only the descriptor is used
        self._size = os.fstat(stream.fileno()).st_size
        if self.streams:
            for fd in (1, 2):
                os.dup2(stream.fileno(), fd)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)  # a bug
            return
        self._rotate(len(line))
        try:
            if self.stream is None:
                self.stream = self._open()
        except OSError:
            self._output.lost += 1
            return
        self._size += self._output.write(self.stream.fileno(), line, self)

    def reopen(self) -> None:
        """Go on in the file that has the name now, or a new one. Raises OSError, and stays with the old one then."""
        self.acquire()
        try:
            stream = self._open()
            if self.stream is not None:
                self.stream.close()
            self.stream = stream
        finally:
            self.release()

    def _rotate(self, more: int) -> None:
        if not self.maxBytes or not self._size or self._size + more < self.maxBytes:
            return
        if time.monotonic() < self._rotate_not_before:
            return
        try:
            self.doRollover()
        except OSError:
            # The directory may have become read-only: the old file is as good a place as any.
            self._rotate_not_before = time.monotonic() + _ROTATE_AGAIN
