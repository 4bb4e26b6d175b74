"""``persistd run | start | stop | reload``: the service as a process."""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from tornado_persist.cli.client import Client, noted
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain
from tornado_persist.cli.output import count, printable
from tornado_persist.cli.status import PATIENCE, client, not_running, process
from tornado_persist.errors import ConfigError, PersistError
from tornado_persist.files import DataDir, reason

#: Seconds that ``stop`` waits beyond ``server.shutdown_timeout``.
STOP_GRACE = 10.0
#: Seconds that ``reload`` waits for the outcome, and from one look to the next. A new sink may take thrice
#: ``buffer.flush_timeout``: to be opened, for the last flush into the old one, and to close that.
RELOAD_PATIENCE = 60.0
RELOAD_INTERVAL = 0.1
#: Seconds for the drain where the configuration does not say: the default of ``server.shutdown_timeout``.
DRAIN = 10.0


def add(commands: Commands) -> None:
    run_parser = commands.add("run", run, "serve in the foreground (the default)")
    run_parser.add_argument("--ready-fd", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    run_parser.add_argument("--daemon", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    commands.add("start", _start, "start the service in the background, and return once it serves")
    commands.add("stop", _stop, "stop the service, and return once it has drained")
    commands.add("reload", _reload, "have the service read its configuration again, and say what it did")


#: Bytes of a thread's stack. The usual 8 MiB would count against a limit of memory, for each thread that there is.
THREAD_STACK = 2 << 20
#: Bytes from which memory is mapped by itself, and given back when freed; and free bytes kept for the next request.
LARGE_MEMORY, KEPT_MEMORY = 512 << 10, 8 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def run(configuration: Configuration, options: argparse.Namespace) -> int:
    """Serve in the foreground."""
    import asyncio

    from tornado_persist.service import Service
    from tornado_persist.telemetry import log

    settings = configuration.settings
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    _raise_open_files()
    threading.stack_size(THREAD_STACK)
    _return_large_memory()
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
        await Service(settings, configuration.file).run(serving)

    asyncio.run(serve())
    return OK


def _return_large_memory() -> None:
    """Have glibc give large memory back to the system when it is freed.

    By itself it raises this limit to 32 MiB, and then rows of 1 MB leave holes that larger bodies do not fit in: the
    backlog of an outage took 510 MiB of memory to drain, and takes 390.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGE_MEMORY)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)  # else 128 KiB: each request would ask for memory anew


def _raise_open_files() -> None:
    """Raise the soft limit of open files, which is 1,024 in most places, to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # where "unlimited" is more than the system takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start(configuration: Configuration, options: argparse.Namespace) -> int:
    settings = configuration.settings
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    if data_dir.locked():
        complain(f"it runs already, {process(data_dir)}")
        return FAILED
    command = [sys.executable, "-m", "tornado_persist", "run"]
    reader, writer = os.pipe()
    command += ["--daemon", "--ready-fd", str(writer), *(["-c", str(configuration.file)] if configuration.file else [])]
    with data_dir.open_log() as output, os.fdopen(reader, "rb") as ready:
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
        _tell_of_sink(data_dir)
        return OK
    child.wait()
    said = data_dir.log_file.read_bytes()[said_before:].decode(errors="replace").strip()
    complain(f"it did not start: {said.splitlines()[-1].removeprefix('persistd: ') if said else 'see its log'}")
    return FAILED


def _tell_of_sink(data_dir: DataDir) -> None:
    """Say that the sink is down, if it is."""
    place = noted(data_dir)
    if place is None:
        return
    with suppress(PersistError, ValueError), Client(place, PATIENCE) as service:
        health = service.health()
        if "sink" not in health:  # it has tokens
            if health["database"] == "unhealthy":
                print("the sink is down, the log has the reason; rows wait in the journal")
            return
        sink = health["sink"]
        if not sink["up"]:
            print(printable(f"the sink {sink['name']} is down: {sink['error']}; rows wait in the journal"))


def _stop(configuration: Configuration, options: argparse.Namespace) -> int:
    data_dir = DataDir(configuration.data_dir)
    if not data_dir.locked():
        print(f"persistd does not run: {not_running(data_dir)}")
        return OK
    pid = _signal(data_dir, signal.SIGTERM)
    if pid is None:
        return FAILED
    try:
        timeout = configuration.settings.server.shutdown_timeout + STOP_GRACE
    except ConfigError:  # the service runs with an earlier one
        timeout = DRAIN + STOP_GRACE
    if not data_dir.wait_unlocked(timeout):
        complain(f"pid {pid} has not ended after {timeout:g} seconds")
        return FAILED
    left = data_dir.noted().get("left")
    stays = f"; {count(left, 'row')} stay in the journal, for the next start" if isinstance(left, int) and left else ""
    print(f"persistd stopped{stays}")
    return OK


def _reload(configuration: Configuration, options: argparse.Namespace) -> int:
    data_dir = DataDir(configuration.data_dir)
    if not data_dir.locked():
        complain(f"it does not run: {not_running(data_dir)}")
        return FAILED
    problem = None
    try:
        with client(configuration) as service:
            service.health()  # whether it answers
        begun = _reloads(data_dir)["begun"]
    except PersistError as exc:
        begun, problem = 0, exc
    if _signal(data_dir, signal.SIGHUP) is None:
        return FAILED
    if problem is not None:
        complain(f"it was told to reload, but the outcome is not known: {problem}; its log has it")
        return FAILED
    return _outcome(data_dir, begun)


def _reloads(data_dir: DataDir) -> dict[str, Any]:
    """What the service has noted in ``data_dir``: that needs no token. Raises PersistError."""
    reloads = data_dir.noted().get("reloads")
    if not isinstance(reloads, dict):
        raise PersistError("it has not said yet where it answers; it may be reading its journal")
    return reloads


def _outcome(data_dir: DataDir, begun: int) -> int:
    """Wait for the first reload that begins after so many others, and say what it did."""
    deadline, problem = time.monotonic() + RELOAD_PATIENCE, "it takes too long"
    while time.monotonic() < deadline:
        time.sleep(RELOAD_INTERVAL)
        try:
            reloads = _reloads(data_dir)
        except PersistError as exc:  # it may be busy for a moment
            problem = str(exc)
            continue
        if reloads["done"] > begun:
            break
    else:
        complain(f"the outcome of the reload is not known: {problem}; the service's log has it")
        return FAILED
    applied, needs_restart, failed = reloads["applied"], reloads["needs_restart"], reloads["failed"]
    if applied or not failed:
        print(f"reloaded: {', '.join(applied) or 'nothing has changed'}")
    if needs_restart:
        print(f"these need a restart: {', '.join(needs_restart)}")
    for sentence in failed:
        complain(f"not reloaded: {sentence}")
    return FAILED if failed else OK


def _signal(data_dir: DataDir, number: signal.Signals) -> int | None:
    """Signal the process that holds the lock, and no other. Returns its pid, or complains and returns None."""
    pid = data_dir.holder()
    if pid is None:
        complain(f"it runs, {process(data_dir)}: nothing was signalled")
        return None
    try:
        os.kill(pid, number)
    except OSError as exc:
        complain(f"pid {pid} cannot be signalled: {reason(exc)}")
        return None
    return pid
