"""Which of the refused rows a command is about."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from tornado_persist.cli.command import FAILED, OK, complain
from tornado_persist.cli.rejections import Entry, Rejections
from tornado_persist.errors import ConfigError, InputError
from tornado_persist.records.models import KINDS


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Options that narrow the choice down; several of them must all hold."""
    parser.add_argument("--kind", choices=KINDS, help="only these")
    parser.add_argument("--code", help="only those that were refused with this code")
    parser.add_argument("--key", help="only this session_id or task_id")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Line numbers, filters, or all: something has to be said."""
    parser.add_argument("lines", nargs="*", type=int, metavar="LINE", help="the numbers that ls shows")
    add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every one that nothing was done about")


def chosen(entries: Iterable[Entry], options: argparse.Namespace) -> list[Entry]:
    """The entries that the options mean, in whatever state.

    Raises:
        ConfigError: nothing was chosen where something has to be, or there is no such line.
    """
    entries = list(entries)
    lines: list[int] | None = getattr(options, "lines", None)
    if lines is not None:
        if not (lines or options.all or options.kind or options.code is not None or options.key):
            raise ConfigError("", "say which rows: by LINE, --kind, --code or --key, or --all of them")
        unknown = sorted(set(lines) - {entry.line for entry in entries})
        if unknown:
            raise ConfigError("", f"there is no line {unknown[0]}")
    filtered = options.kind or options.code is not None or options.key
    return [
        entry
        for entry in entries
        if (not lines or entry.line in lines) and (not (filtered and entry.problem)) and _fits(entry, options)
    ]


def _fits(entry: Entry, options: argparse.Namespace) -> bool:
    if entry.problem:
        return True
    return (
        (options.kind is None or entry.kind == options.kind)
        and (options.code is None or entry.code == options.code)
        and (options.key is None or entry.key == options.key)
    )


def complain_of_broken(rejections: Rejections, broken: Iterable[Entry]) -> int:
    """Name each line that is no entry; the exit code that comes of it."""
    code = OK
    for entry in broken:
        complain(InputError(rejections.path, entry.problem, line=entry.line))
        code = FAILED
    return code
