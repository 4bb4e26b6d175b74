"""``persistd completion``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import shtab

from tornado_persist.cli.command import Commands

SHELLS = ("bash", "zsh")

_MORE = """For bash: persistd completion bash > ~/.local/share/bash-completion/completions/persistd; for zsh:
persistd completion zsh > a directory of $fpath, as _persistd."""


def add(commands: Commands, program: argparse.ArgumentParser) -> None:
    """``program`` is the whole command line, which the script is made of."""
    parser = commands.add(
        "completion", _nothing, "print a script by which a shell completes persistd's words", more=_MORE
    )
    parser.add_argument("shell", choices=SHELLS, action=_Print, program=program, help="the shell that it is for")


def _nothing(*_: object) -> int:
    raise AssertionError("printing has ended the program")


class _Print(argparse.Action):
    """Prints at once, as ``--version`` does: no configuration is needed, nor is one read that may be wrong."""

    def __init__(self, *args: Any, program: argparse.ArgumentParser, **options: Any) -> None:
        super().__init__(*args, **options)
        self._program = program

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(shtab.complete(self._program, shell=str(values)))
        parser.exit()
