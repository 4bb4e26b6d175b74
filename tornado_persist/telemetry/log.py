"""The log: structlog events, for people on a terminal and as JSON lines elsewhere; to a stream or a rotated file.

The standard library's loggers (Tornado's, the drivers') use the same format. Every line has the name of the instance,
one that belongs to a request also the request's id and its client, and no line has a password of the configuration.
"""

from __future__ import annotations

import io
import logging
import os
import time
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

from tornado_persist.files import open_private
from tornado_persist.telemetry.redaction import mask

Format = Literal["auto", "console", "json"]

#: Seconds until a rotation that failed is tried again; until then the file grows.
_ROTATE_AGAIN = 60.0

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT

#: Stands for standard output where a file could be named.
STDOUT = Path("-")

#: The name of this instance, in every line; empty until the data directory is locked.
instance = ""
#: The id of the current request; empty outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")
#: Who sends the current request: its address, and the name of its token, which may be empty; None outside of one.
client: ContextVar[tuple[str, str] | None] = ContextVar("client", default=None)


def configure(
    level: str,
    style: Format,
    file: Path | None = None,
    *,
    max_bytes: int = 0,
    backups: int = 5,
    streams: Path | None = None,
) -> None:
    """Send every event of at least ``level`` to ``file``, or to standard error, or to standard output (``STDOUT``).

    The file is rotated at ``max_bytes`` (0: never), and so many ``backups`` are kept. ``streams`` is the file that
    standard output and error are, for :func:`reopen`. May be called again. Raises OSError when a file cannot be opened.
    """
    handler: logging.Handler
    terminal = False
    if file is None or file == STDOUT:
        handler = Stream(2 if file is None else 1)
        terminal = os.isatty(handler.fd)
    else:
        handler = LogFile(file, max_bytes=max_bytes, backups=backups, streams=file == streams)
    global _streams
    _streams = streams
    console = style == "console" or (style == "auto" and terminal)
    shared: list[Processor] = [
        _add_context,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=not console, key="time"),
    ]
    # Tracebacks are text before the secrets are taken out; and no traceback shows variables, which may hold rows.
    last: list[Processor] = [structlog.processors.format_exc_info, _without_secrets]
    if console:
        plain = structlog.dev.plain_traceback
        last.append(
            structlog.dev.ConsoleRenderer(
                colors=terminal, pad_event_to=0, timestamp_key="time", exception_formatter=plain
            )
        )
    else:
        last += [_first_things_first, structlog.processors.JSONRenderer(ensure_ascii=False)]
    structlog.configure(
        # First, so that lines below the level cost little.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a cached logger would outlive a second call
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    set_level(level)


def reopen() -> None:
    """Open the log's files again by their names, as after logrotate has moved them; blocking.

    Raises OSError if one cannot be opened; the log then continues in the old file.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()
            if handler.streams:
                return
    if _streams is not None:
        fd = open_private(_streams, _APPEND)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


# The file that standard output and error are, in a process that runs in the background.
_streams: Path | None = None


def _add_context(logger: object, method: str, event: EventDict) -> EventDict:
    if instance:
        event.setdefault("instance", instance)
    if id := request_id.get():
        event.setdefault("request_id", id)
    if (sender := client.get()) and "client" not in event:
        event["client"] = sender[0]
        if sender[1]:
            event["token"] = sender[1]
    return event


def _without_secrets(logger: object, method: str, event: EventDict) -> EventDict:
    return {key: value if key in _OURS else _masked(value) for key, value in event.items()}


#: Keys that never hold another library's text.
_OURS = ("time", "level", "logger")


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, int | float | bool | None):
        return value
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    return mask(str(value))


def _first_things_first(logger: object, method: str, event: EventDict) -> EventDict:
    """Put time, level and event first in a line, where readers look for them."""
    return {key: event.pop(key) for key in ("time", "level", "event") if key in event} | dict(event)


def set_level(level: str) -> None:
    """Change the lowest level that is logged, now."""
    logging.getLogger("tornado_persist").setLevel(level.upper())
    # Debug and info messages of other libraries may hold rows.
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    # Its warnings are of what it ignores while it ends a broken connection; the sink's own line says why it broke.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def debugging(name: str) -> bool:
    """Whether a module's debug lines are logged: check it before building one for every request."""
    return logging.getLogger(name).isEnabledFor(logging.DEBUG)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: ``logger = log.get(__name__)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


class _Lines(logging.Handler):
    """Writes each record as one line to a descriptor, unbuffered.

    While the disk is full, or the reader gone, lines are lost; the first line that can be written says how many. The
    logging module would print a traceback for each, and a buffer would write lines late.
    """

    _lost = 0
    _torn = False  # part of the last line was written, without its end

    def emit(self, record: logging.LogRecord) -> None:
        done, data = 0, b"\n" if self._torn else b""
        try:
            if self._lost:
                data += self._encoded(_note("%d log lines could not be written", self._lost))
            data += self._encoded(record)
            fd = self._ready(len(data))
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError:
            self._lost += 1
            self._torn = data[done - 1 : done] != b"\n" if done else self._torn
        except Exception:
            self.handleError(record)  # a bug
        else:
            self._lost, self._torn = 0, False

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _ready(self, size: int) -> int:
        """The descriptor for the next ``size`` bytes. Raises OSError."""
        raise NotImplementedError


class Stream(_Lines):
    """An open descriptor."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def _ready(self, size: int) -> int:
        return self.fd


class LogFile(_Lines, RotatingFileHandler):
    """A file that is rotated by its size, and can be reopened after another program has renamed it.

    The standard library's handler names and moves the files.
    """

    def __init__(self, path: Path, *, max_bytes: int, backups: int, streams: bool = False) -> None:
        """``max_bytes``: 0 never rotates; ``streams``: standard output and error go there too, and move with the file.

        Raises OSError when the file cannot be opened.
        """
        self.streams = streams
        self._rotate_not_before = 0.0
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        raw = os.fdopen(open_private(Path(self.baseFilename), _APPEND), "ab", buffering=0)
        if self.streams:
            for fd in (1, 2):
                os.dup2(raw.fileno(), fd)
        return io.TextIOWrapper(raw)  # only its descriptor is used

    def _ready(self, size: int) -> int:
        if self.stream and self.maxBytes and time.monotonic() >= self._rotate_not_before:
            held = os.fstat(self.stream.fileno()).st_size
            if held and held + size > self.maxBytes:
                try:
                    self.doRollover()
                except OSError:
                    # The directory may be read-only, so the file grows. Each try renames backups: not too often.
                    self._rotate_not_before = time.monotonic() + _ROTATE_AGAIN
        if self.stream is None:
            self.stream = self._open()
        return self.stream.fileno()

    def reopen(self) -> None:
        """Continue in the file that has the name now, or in a new one. Raises OSError; the old file then stays open."""
        self.acquire()
        try:
            stream = self._open()
            if self.stream:
                self.stream.close()
            self.stream = stream
        finally:
            self.release()


def _note(words: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, words, arguments, None)
