"""What the commands share: their exit codes, and how they are added to the parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import shtab

from tornado_persist.config import Settings
from tornado_persist.telemetry import redaction as masking

OK, FAILED, BAD_CONFIG, NO_SERVICE = 0, 1, 2, 3

#: A command: the settings, the file they came from (if any), and what was said on the command line; its exit code.
Function: TypeAlias = Callable[[Settings, Path | None, argparse.Namespace], int]

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


class Commands:
    """The commands below ``persistd``, or below one of its commands."""

    def __init__(self, subparsers: Subparsers) -> None:
        self._subparsers = subparsers

    @classmethod
    def of(cls, parser: argparse.ArgumentParser, *, required: bool = False) -> Commands:
        return cls(parser.add_subparsers(title="commands", metavar="COMMAND", required=required))

    def add(self, name: str, function: Function, words: str, *, more: str = "") -> argparse.ArgumentParser:
        """A command that does something; ``words`` go into the list of commands, ``more`` only into its own help."""
        parser = self._parser(name, words, more)
        # SUPPRESS, or the default here would undo a -c given before the command.
        completes_files(
            parser.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="see persistd --help")
        )
        parser.set_defaults(command=function)
        return parser

    def group(self, name: str, words: str) -> Commands:
        """A command that only has commands below it."""
        return Commands.of(self._parser(name, words, ""), required=True)

    def _parser(self, name: str, words: str, more: str) -> argparse.ArgumentParser:
        description = words[0].upper() + words[1:] + "."
        return self._subparsers.add_parser(name, help=words, description=f"{description} {more}".strip())


def completes_files(action: argparse.Action, what: dict[str, Any] = shtab.FILE) -> None:
    """Have a shell offer files (or directories) for this argument."""
    action.complete = what  # type: ignore[attr-defined]


def complain(problem: object) -> None:
    """One line about what went wrong."""
    print(f"persistd: {masking.mask(str(problem))}", file=sys.stderr)
