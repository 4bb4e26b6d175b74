"""``persistd``: its command line, and what every command's end comes to."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from tornado_persist import __version__, config
from tornado_persist.cli import check, completion, daemon, imports, journal, rejected, stats
from tornado_persist.cli.command import BAD_CONFIG, FAILED, NO_SERVICE, Commands, Function, complain, completes_files
from tornado_persist.errors import ConfigError, NoAnswer, PersistError

_EPILOG = """\
exit codes:
  0    it was done
  1    it was not, or not all of it: standard error says why
  2    the configuration or the command line is wrong
  3    the service does not run, or does not answer
  130  Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know no Chinese
    try:
        file = config.find_file(options.config)
        settings = config.load(file)
        command: Function = options.command
        code = command(settings, file, options)
        sys.stdout.flush()
        return code
    except ConfigError as exc:
        complain(exc)
        return BAD_CONFIG
    except NoAnswer as exc:
        complain(exc)
        return NO_SERVICE
    except PersistError as exc:
        complain(exc)
        return FAILED
    except BrokenPipeError:
        # Who read the output has seen enough (head, a pager). Python must not complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    it = argparse.ArgumentParser(
        prog="persistd",
        description="A durable write buffer over HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    it.add_argument("--version", action="version", version=f"persistd {__version__}")
    completes_files(it.add_argument("-c", "--config", metavar="FILE", help="the configuration, a TOML file"))
    commands = Commands.of(it)
    for chore in (daemon, check, stats, journal, rejected, imports):
        chore.add(commands)
    completion.add(commands, it)
    it.set_defaults(command=daemon.run, ready_fd=None, daemon=False)
    return it
