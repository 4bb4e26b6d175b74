"""The services that are measured, each in a process of its own on a free loopback port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from bench.worker import ROOT

#: Seconds for a start or a stop.
PATIENCE = 60

_PREFIX = "/api/v1/persistence"
#: Makes tokens of Datasette valid; the service lives for the length of a run, on the loopback interface.
_SECRET = "of the benchmark alone"


class ServiceFailed(Exception):
    """A service did not start, or ended by itself."""


class Service(ABC):
    """One process. It starts when the object is made."""

    #: For batches of tasks.
    path: ClassVar[str] = f"{_PREFIX}/tasks/batch"
    #: Writes what waits; empty where nothing does.
    flush_path: ClassVar[str] = f"{_PREFIX}/flush"
    #: Of the list of rows in a body.
    list_name: ClassVar[str] = "tasks"

    def __init__(self, directory: Path) -> None:
        """``directory`` holds its log and its data."""
        self.directory = directory
        self.port = _free_port()
        self.start()

    @abstractmethod
    def command(self) -> list[str]: ...

    def environment(self) -> dict[str, str]:
        """Variables beside this process's own."""
        return {}

    @property
    def headers(self) -> str:
        """More header lines of a request."""
        return ""

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> float:
        """Start the process; the seconds until it answers."""
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith("PERSISTD_")}
        began = time.perf_counter()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=ROOT,
                env={**own, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return time.perf_counter() - began
            if self.process.poll() is not None or time.perf_counter() - began > PATIENCE:
                self.close()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise ServiceFailed(f"{' '.join(self.command()[:4])} did not start:\n{tail}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End in good order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Crash."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def job(self) -> dict[str, Any]:
        """What the load generator has to know."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "path": self.path,
            "flush_path": self.flush_path,
            "name": self.list_name,
            "headers": self.headers,
        }

    def ask(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        """One request; status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def cpu(self) -> float | None:
        """Seconds of processor time so far, children not counted; None where the system does not tell."""
        try:
            # The clock that clock_getcpuclockid(3) names: /proc/PID/stat counts in hundredths of a second.
            return time.clock_gettime((~self.process.pid << 3) | 2)
        except OSError:
            return None

    def memory(self, field: str = "VmRSS") -> float | None:
        """Resident megabytes; with ``VmHWM`` the most there ever were."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        return int(status.partition(f"{field}:")[2].split()[0]) / 1024


class Persistd(Service):
    """The service itself."""

    def __init__(self, directory: Path, sink: str, place: str, **settings: dict[str, Any]) -> None:
        """``place``: the sink's URL, file or directory; ``settings``: tables of the configuration."""
        self.sink, self.place, self.settings = sink, place, settings
        super().__init__(directory)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tornado_persist", "run", "-c", str(self._configure())]

    def _configure(self) -> Path:
        tables: dict[str, dict[str, Any]] = {
            "server": {"port": self.port, "shutdown_timeout": PATIENCE},
            f"sinks.{self.sink}": {{"sqlite": "path", "jsonl": "dir"}.get(self.sink, "url"): self.place},
            "log": {"format": "json"},
        }
        for name, table in self.settings.items():
            tables[name] = {**tables.get(name, {}), **table}
        tables["buffer"] = {"flush_timeout": 300.0, **tables.get("buffer", {})}
        lines = [f"data_dir = {json.dumps(str(self.directory / 'data'))}", f'sink = "{self.sink}"']
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        file = self.directory / "persistd.toml"
        file.write_text("\n".join(lines) + "\n")
        return file

    def stats(self) -> dict[str, Any]:
        return self.ask("GET", f"{_PREFIX}/stats")[1]

    def flush(self) -> None:
        """Until it is done."""
        deadline = time.monotonic() + 300
        while self.ask("POST", self.flush_path)[0] != 200:
            if time.monotonic() > deadline:
                raise ServiceFailed("persistd does not flush")
            time.sleep(0.02)


class Handwritten(Service):
    """The list-and-timer service, for PostgreSQL or MySQL."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        super().__init__(directory)

    def command(self) -> list[str]:
        # Without a line of log for each request, as it would be run.
        uvicorn = [sys.executable, "-m", "uvicorn", "bench.peers.handwritten:app"]
        return [*uvicorn, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]

    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.url}


class Bare(Service):
    """A Tornado handler that does nothing."""

    flush_path = ""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.peers.bare", str(self.port)]


class Datasette(Service):
    """Datasette's write API on a file in WAL mode, as the root user with a signed token."""

    path = "/bench/translation_tasks/-/upsert"
    flush_path = ""  # it answers when the rows are committed
    list_name = "rows"

    def __init__(self, directory: Path, file: Path) -> None:
        """``file`` has to be ``bench.db``, for the path holds its name."""
        self.file = file
        self.token = subprocess.run(
            [*self._program(), "create-token", "root", "--secret", _SECRET], capture_output=True, text=True, check=True
        ).stdout.strip()
        super().__init__(directory)

    @staticmethod
    def _program() -> list[str]:
        return [sys.executable, "-m", "datasette"]

    def command(self) -> list[str]:
        options = ["--root", "--secret", _SECRET, "--setting", "max_insert_rows", "1000"]
        return [*self._program(), "serve", str(self.file), "--host", "127.0.0.1", "--port", str(self.port), *options]

    @property
    def headers(self) -> str:
        return f"Authorization: Bearer {self.token}\r\n"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
