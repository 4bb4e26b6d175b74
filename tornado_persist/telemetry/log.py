"""The log: structlog events, for people on a terminal and as JSON lines elsewhere.

The standard library's loggers (Tornado's, the drivers') go the same way, so that the output is of one kind. Every line
of a request's own context has its id, and none has a password of the configuration.
"""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

from tornado_persist.telemetry.logfile import LogFile, Stream
from tornado_persist.telemetry.redaction import mask

Format = Literal["auto", "console", "json"]

#: Stands for standard output where a file could be named.
STDOUT = Path("-")

#: The id of the request that is being worked on; empty outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")


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
        _add_request_id,
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
        # What is below the level costs no more than finding that out.
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

    Raises OSError when one cannot be opened; the log then goes on where it was.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()
            if handler.streams:
                return
    if _streams is not None:
        fd = os.open(_streams, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


# The file that standard output and error are, in a process that runs in the background.
_streams: Path | None = None


def _add_request_id(logger: object, method: str, event: EventDict) -> EventDict:
    id = request_id.get()
    if id:
        event.setdefault("request_id", id)
    return event


def _without_secrets(logger: object, method: str, event: EventDict) -> EventDict:
    return {key: value if key in _OURS else _masked(value) for key, value in event.items()}


#: What the drivers have no word in. An event of another library is its whole message.
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
    """Time, level and event at the beginning of a line, where eyes look for them."""
    return {key: event.pop(key) for key in ("time", "level", "event") if key in event} | dict(event)


def set_level(level: str) -> None:
    """Change the least level that is said, now."""
    logging.getLogger("tornado_persist").setLevel(level.upper())
    # Other people's debug and info messages are about their insides, and may hold rows.
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def debugging(name: str) -> bool:
    """Whether the debug lines of a module are said: to be asked first where they would come with every request."""
    return logging.getLogger(name).isEnabledFor(logging.DEBUG)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: ``log = log.get(__name__)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
