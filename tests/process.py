"""A real persistd in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.rows import body
from tornado_persist.records.models import PLURALS, Fields, Kind

#: Seconds within which a process must have done what it was told.
PATIENCE = 60
COMMAND = (sys.executable, "-m", "tornado_persist")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without any setting of persistd, and with ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("PERSISTD_")}
    return {**kept, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1", **variables}


def persistd(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command of persistd to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


class Persistd:
    """``persistd run`` with a configuration in ``directory``, where its data go as well.

    It serves when the object is made. Its log lines, JSON, are in ``directory/log``.
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        *,
        port: int = 0,
        server: str = "",
        log: str = "",
        prefix: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """``server``, ``log``: more lines of ``[server]`` and ``[log]``; ``variables``: of the environment.

        ``prefix``: a command that runs the process, and becomes it.
        """
        self.directory = directory
        self._server = server
        self._log = log
        self._variables = variables or {}
        self._prefix = prefix
        self.data_dir = directory / "data"
        self.file = directory / "persistd.toml"
        self.port = port
        self.http = httpx.Client()
        #: What uses the service, and has to end before it.
        self.users = contextlib.ExitStack()
        self.configure(config)
        self.start()

    def configure(self, config: str) -> None:
        """Write the configuration file; tables of one's own, without [server] and [log]."""
        self.file.write_text(
            f'{config}\n[server]\nport = {self.port}\n{self._server}\n[log]\nlevel = "debug"\n{self._log}'
        )

    def start(self) -> None:
        """Start the process and wait until it serves."""
        reader = self.begin()
        try:
            # Not to the end of the pipe: a tracer keeps it open.
            self.url = os.read(reader, 1000).decode()
        finally:
            os.close(reader)
        if not self.url:
            self.process.wait(PATIENCE)
            raise AssertionError(f"persistd did not start:\n{self.log_text()}")
        self.http.close()
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def begin(self) -> int:
        """Start the process, and return a pipe that has the URL once it serves, and ends when it ends before."""
        reader, writer = os.pipe()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, *COMMAND, "run", "-c", str(self.file), "--ready-fd", str(writer)],
                cwd=self.directory,
                env=environment(**self._variables),
                stdout=log,
                stderr=log,
                pass_fds=[writer],
            )
        os.close(writer)
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.users.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self.http.close()

    def post(self, kind: Kind, *rows: Fields) -> httpx.Response:
        """POST a batch."""
        return self.http.post(f"/api/v1/persistence/{PLURALS[kind]}/batch", content=body(kind, *rows))

    def flush(self, patience: float = PATIENCE) -> dict[str, Any]:
        """POST a flush, which must go well, within ``patience`` seconds."""
        deadline = time.monotonic() + patience
        response = self.http.post("/api/v1/persistence/flush", timeout=patience)
        # On a busy machine a flush may take longer than the service lets a client wait for it.
        while "it goes on, and nothing is lost" in response.text and time.monotonic() < deadline:
            response = self.http.post("/api/v1/persistence/flush", timeout=patience)
        assert response.status_code == 200, response.text
        flushed: dict[str, Any] = response.json()
        return flushed

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.http.get("/api/v1/persistence/stats").json()
        return stats

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.send(number)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def open_files(self) -> set[str]:
        """What the descriptors of the process lead to."""
        found = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed just now
                found.add(str(entry.readlink()))
        return found

    def log_text(self) -> str:
        return (self.directory / "log").read_text()

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log's lines, all or those of one event."""
        lines = []
        for line in self.log_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if event is None or line["event"] == event]

    def wait_for_log(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until an event has been logged ``count`` times; the last of them."""
        wait_until(lambda: len(self.log(event)) >= count, f"{event!r} in the log:\n{self.log_text()}")
        return self.log(event)[-1]


class AtWork:
    """Functions in threads of their own, each called again and again until the block ends::

        with AtWork(write, read) as work:
            ...

    Leaving the block raises the first error that one of them had, unless the block itself has failed. A function may
    be long if it looks at ``stopping``, and waits with it. The block may be entered again.
    """

    def __init__(self, *functions: Callable[[], object]) -> None:
        self.functions = functions
        self.stopping = threading.Event()
        self.errors: list[Exception] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.stopping.clear()
        self._threads = [threading.Thread(target=self._run, args=[function]) for function in self.functions]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            self.raise_error()

    def raise_error(self) -> None:
        """Raise the first error so far, if there was one."""
        if self.errors:
            raise self.errors[0]

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition()`` is true; the first error of a thread ends the wait, and is raised."""
        wait_until(lambda: self.errors or condition(), what)
        self.raise_error()

    def _run(self, function: Callable[[], object]) -> None:
        try:
            while not self.stopping.is_set():
                function()
        except Exception as exc:
            self.errors.append(exc)


def wait_until(condition: Callable[[], object], what: str = "it", *, pause: float = 0.02) -> None:
    """Wait until ``condition()`` is true; ``pause``: seconds between two looks."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} seconds for {what}"
        time.sleep(pause)
