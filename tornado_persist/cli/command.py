"""What the commands share: exit codes, the configuration that they work with, and how they join the parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from tornado_persist.telemetry.redaction import mask

if TYPE_CHECKING:
    from tornado_persist.config.loading import Settings

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

OK, FAILED, BAD_CONFIG, NO_SERVICE = 0, 1, 2, 3


class Configuration:
    """The configuration file, named by the command line or found; it is read when it is needed."""

    def __init__(self, named: str | None = None) -> None:
        self._named = named

    @cached_property
    def file(self) -> Path | None:
        from tornado_persist.config import loading

        return loading.find_file(self._named)

    @cached_property
    def data_dir(self) -> Path:
        """The data directory, even if another setting is wrong. Raises ConfigError."""
        from tornado_persist.config import loading

        return loading.find_data_dir(self.file)

    def addresses(self) -> Settings:
        """The settings that say where the service is; without a check of the sinks. Raises ConfigError."""
        from tornado_persist.config import loading

        return loading.load(self.file, sinks=False)

    @cached_property
    def token(self) -> str:
        """What the service is shown, from PERSISTD_TOKEN or its file; empty if there is none. Raises ConfigError."""
        from tornado_persist.config import loading

        return loading.token()

    @cached_property
    def settings(self) -> Settings:
        """Everything, checked. Raises ConfigError."""
        from tornado_persist.config import loading

        return loading.load(self.file)


#: A command: the configuration, and the options of the command line; returns its exit code.
Function: TypeAlias = Callable[[Configuration, argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Refuses an unknown option with the usage of the command that it was given to, and names the nearest one."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


class Commands:
    """The commands below ``persistd``, or below one of its commands."""

    def __init__(self, parser: argparse.ArgumentParser, *, required: bool = False) -> None:
        self._subparsers: Subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=required)

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
        return Commands(self._parser(name, words, ""), required=True)

    def _parser(self, name: str, words: str, more: str) -> argparse.ArgumentParser:
        description = words[0].upper() + words[1:] + "."
        return self._subparsers.add_parser(name, help=words, description=f"{description} {more}".strip())


def completes_files(action: argparse.Action, what: Literal["files", "directories"] = "files") -> None:
    """Let a shell offer files (or directories) for this argument; ``persistd completion`` turns it into shtab's."""
    action.completes = what  # type: ignore[attr-defined]


def complain(problem: object) -> None:
    """One line on standard error about what went wrong."""
    with suppress(OSError):  # there is no other place for it
        print(f"persistd: {mask(str(problem))}", file=sys.stderr)
