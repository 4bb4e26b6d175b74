"""``persistd``: its command line, and how every command ends."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from tornado_persist import __version__
from tornado_persist.cli.command import (
    BAD_CONFIG,
    FAILED,
    NO_SERVICE,
    Commands,
    Configuration,
    Function,
    Parser,
    complain,
    completes_files,
)
from tornado_persist.errors import ConfigError, NoAnswer, PersistError

#: The modules in the order of the help, and the commands that each adds. Only the one that is needed is imported.
_MODULES = {
    "daemon": ("run", "start", "stop", "reload"),
    "status": ("status",),
    "check": ("check",),
    "stats": ("stats", "flush"),
    "journal": ("journal",),
    "rejected": ("rejected",),
    "importing": ("import",),
    "showing": ("get", "ls"),
    "exporting": ("export",),
    "cleanup": ("cleanup",),
    "configuration": ("config",),
    "token": ("token",),
}
SHELLS = ("bash", "zsh")
#: Errors of a standard output that takes no more.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)

_EPILOG = """\
exit codes:
  0    done
  1    not done, or not completely: standard error says why
  2    the configuration or the command line is wrong
  3    the service does not run, or does not answer
  130  Ctrl-C
"""
_COMPLETION = """For bash: persistd completion bash > ~/.local/share/bash-completion/completions/persistd; for zsh:
persistd completion zsh > a directory of $fpath, as _persistd."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_standard_streams()
    # What the service and its commands write holds rows: other users may not read it.
    before = os.umask(0o077)
    os.umask(before | 0o027)
    try:
        return _run_command(arguments)
    except OSError as exc:
        if exc.filename is not None or exc.errno not in _NOT_WRITTEN:
            raise  # a bug
        # Python must not complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        complain(f"standard output cannot be written: {exc.strerror}")
        return FAILED
    finally:
        os.umask(before)


def _open_standard_streams() -> None:
    """Give closed standard streams /dev/null: the next file that is opened would take their place."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))


def _run_command(arguments: Sequence[str]) -> int:
    try:
        options = parser(arguments).parse_args(arguments)
    except SystemExit:
        sys.stdout.flush()
        raise
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know no Chinese
    try:
        command: Function = options.command
        code = command(Configuration(options.config), options)
        sys.stdout.flush()
        return code
    except ConfigError as exc:
        for mistake in exc.mistakes:
            complain(mistake)
        return BAD_CONFIG
    except NoAnswer as exc:
        complain(exc)
        return NO_SERVICE
    except PersistError as exc:
        complain(exc)
        return FAILED
    except BrokenPipeError:
        # The reader of the output stopped (head, a pager). Python must not complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line: all of it, or as much as these arguments need."""
    it = Parser(
        prog="persistd",
        description="A durable write buffer over HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    it.add_argument("--version", action="version", version=f"persistd {__version__}")
    completes_files(it.add_argument("-c", "--config", metavar="FILE", help="the configuration, a TOML file"))
    it.set_defaults(command=_run, ready_fd=None, daemon=False)
    asked = _asked(arguments)
    if asked is None and "--version" in arguments:
        return it
    commands = Commands(it)
    for module, names in _MODULES.items():
        if asked is None or asked in names:
            import_module(f"tornado_persist.cli.{module}").add(commands)
    if asked is None:
        completion = commands.add(
            "completion", _complete, "print a script that lets a shell complete persistd's words", more=_COMPLETION
        )
        completion.add_argument("shell", choices=SHELLS, help="the shell that it is for")
    return it


def _asked(arguments: Sequence[str]) -> str | None:
    """The command, if it is one of the modules' own."""
    words = iter(arguments)
    for word in words:
        if word in ("-c", "--config"):
            next(words, None)
        elif not word.startswith("-"):
            return word if any(word in names for names in _MODULES.values()) else None
    return None


def _run(configuration: Configuration, options: argparse.Namespace) -> int:
    from tornado_persist.cli import daemon

    return daemon.run(configuration, options)


def _complete(configuration: Configuration, options: argparse.Namespace) -> int:
    import shtab

    it = parser()
    kinds: dict[str, Any] = {"files": shtab.FILE, "directories": shtab.DIRECTORY}
    for action in _actions(it):
        if what := getattr(action, "completes", None):
            action.complete = kinds[what]  # type: ignore[attr-defined]
    print(shtab.complete(it, shell=options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
