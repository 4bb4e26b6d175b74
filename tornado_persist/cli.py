"""The ``persistd`` command."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tornado_persist import __version__, config, findings, log, masking
from tornado_persist.config import Settings
from tornado_persist.datadir import DataDir
from tornado_persist.errors import ConfigError, PersistError
from tornado_persist.service import Service

OK, FAILED, BAD_CONFIG, NOT_RUNNING = 0, 1, 2, 3
#: Seconds that ``stop`` waits beyond ``server.shutdown_timeout``.
STOP_GRACE = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        file = config.find_file(options.config)
        settings = config.load(file)
        command: Callable[[Settings, Path | None, argparse.Namespace], int] = options.command
        return command(settings, file, options)
    except ConfigError as exc:
        _complain(exc)
        return BAD_CONFIG
    except PersistError as exc:
        _complain(exc)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="persistd", description="A durable write buffer over HTTP.")
    parser.add_argument("--version", action="version", version=f"persistd {__version__}")
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration, a TOML file")
    parser.set_defaults(command=_run, ready_fd=None, daemon=False)
    commands = parser.add_subparsers(title="commands", metavar="")

    def add(name: str, function: Callable[..., int], words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words.capitalize() + ".")
        # SUPPRESS, or the default here would undo a -c given before the command.
        command.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="see persistd --help")
        command.set_defaults(command=function)
        return command

    run = add("run", _run, "serve in the foreground (the default)")
    run.add_argument("--ready-fd", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    run.add_argument("--daemon", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("start", _start, "start the service in the background, and return once it serves")
    add("stop", _stop, "stop the service, and return once it has drained")
    add("status", _status, "say whether the service runs: 0 if it does, else 3")
    add("reload", _reload, "have the service read its configuration again")
    add("check", _check, "look at the configuration, the disk, the port and the sink, and say what was found")
    return parser


def _run(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    # In the background standard output and error are a file as well, which is rotated and reopened as any other.
    streams = data_dir.log_file if options.daemon else None
    named = settings.path(settings.log.file) if settings.log.file else streams
    target = log.STDOUT if settings.log.file == "-" else named
    size = {"max_bytes": settings.log.max_bytes, "backups": settings.log.backups}
    try:
        log.configure(settings.log.level, settings.log.format, target, **size, streams=streams)
    except OSError as exc:
        raise ConfigError("log.file", f"{target} cannot be written: {exc.strerror}") from None

    def serving(url: str) -> None:
        if options.ready_fd is not None:
            os.write(options.ready_fd, url.encode())
            os.close(options.ready_fd)

    async def serve() -> None:
        await Service(settings, file).run(serving)

    asyncio.run(serve())
    return OK


def _start(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    if data_dir.locked():
        _complain(f"it runs already, pid {data_dir.pid()}")
        return FAILED
    command = [sys.executable, "-m", "tornado_persist", "run"]
    reader, writer = os.pipe()
    command += ["--daemon", "--ready-fd", str(writer), *(["-c", str(file)] if file else [])]
    with data_dir.log_file.open("ab") as output, os.fdopen(reader, "rb") as ready:
        said_before = output.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[writer],
        )
        os.close(writer)
        url = ready.read().decode()  # ends when the child serves, or ends itself
    if url:
        print(f"persistd runs, pid {child.pid}, on {url}")
        return OK
    child.wait()
    said = data_dir.log_file.read_bytes()[said_before:].decode(errors="replace").strip()
    _complain(f"it did not start: {said.splitlines()[-1].removeprefix('persistd: ') if said else 'see its log'}")
    return FAILED


def _stop(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    data_dir = DataDir(settings.data_dir)
    pid = data_dir.pid()
    if pid is None:
        print("persistd does not run")
        return OK
    os.kill(pid, signal.SIGTERM)
    timeout = settings.server.shutdown_timeout + STOP_GRACE
    if not data_dir.wait_unlocked(timeout):
        _complain(f"pid {pid} has not ended after {timeout:g} seconds")
        return FAILED
    print("persistd stopped")
    return OK


def _status(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    data_dir = DataDir(settings.data_dir)
    if not data_dir.locked():
        print("persistd does not run")
        return NOT_RUNNING
    print(f"persistd runs, pid {data_dir.pid()}, data in {settings.data_dir}")
    return OK


def _reload(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    pid = DataDir(settings.data_dir).pid()
    if pid is None:
        _complain("it does not run")
        return FAILED
    os.kill(pid, signal.SIGHUP)
    return OK


def _check(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    code = OK
    for finding in findings.look(settings, file):
        print(masking.mask(str(finding)), flush=True)
        if finding.level == "error":
            code = FAILED
    return code


def _complain(problem: object) -> None:
    print(f"persistd: {masking.mask(str(problem))}", file=sys.stderr)
