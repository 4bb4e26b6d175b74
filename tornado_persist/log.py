"""The log: structlog events, for people on a terminal and as JSON lines elsewhere.

The standard library's loggers (Tornado's, the drivers') go the same way, so that the output is of one kind.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor

Format = Literal["auto", "console", "json"]


def configure(level: str, style: Format, file: Path | None = None) -> None:
    """Send every event of at least ``level`` to ``file``, or to standard error.

    May be called again. Raises OSError when the file cannot be opened.
    """
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    terminal = file is None and sys.stderr.isatty()
    console = style == "console" or (style == "auto" and terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=not console, key="time"),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=0, timestamp_key="time")]
        if console
        else [
            structlog.processors.format_exc_info,
            _first_things_first,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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


def _first_things_first(logger: object, method: str, event: EventDict) -> EventDict:
    """Time, level and event at the beginning of a line, where eyes look for them."""
    return {key: event.pop(key) for key in ("time", "level", "event") if key in event} | dict(event)


def set_level(level: str) -> None:
    """Change the least level that is said, now."""
    logging.getLogger("tornado_persist").setLevel(level.upper())
    # Other people's debug and info messages are about their insides, and may hold rows.
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def enabled(level: str) -> bool:
    """Whether our own lines of this level are said now."""
    return logging.getLogger("tornado_persist").isEnabledFor(logging.getLevelName(level.upper()))


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: ``log = log.get(__name__)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
