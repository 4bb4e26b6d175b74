"""The services that are measured, each in a process of its own on a free loopback port."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from tests.certificates import issue, save
from tornado_persist.config import tokens
from tornado_persist.config.tokens import SCOPES

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for a start, a stop, or an answer.
PATIENCE = 60
#: The key of a sink's place in its table of the configuration, unless it is ``url``.
PLACES = {"sqlite": "path", "jsonl": "dir"}

_PREFIX = "/api/v1/persistence"
#: Makes tokens of Datasette valid; it runs for the length of a workload, on the loopback interface.
_SECRET = "of the benchmark alone"


class ServiceFailed(Exception):
    """A service did not start, or does not flush."""


class Service(ABC):
    """One process. It starts when the object is made."""

    path: ClassVar[str] = f"{_PREFIX}/tasks/batch"
    flush_path: ClassVar[str] = f"{_PREFIX}/flush"  #: empty if there is nothing to flush
    list_name: ClassVar[str] = "tasks"  #: of the list of rows in a body
    pages: ClassVar[str] = ""  #: the path of a page of 100 tasks of a session, with ``next`` of the page before it
    headers: str = ""  #: more header lines of a request
    certificate: str = ""  #: the file of the service's certificate, which is then spoken to with TLS

    def __init__(self, name: str, directory: Path) -> None:
        """``name`` is for the report; ``directory`` holds the log and the data."""
        self.name, self.directory = name, directory
        self.port = _free_port()
        self.start()

    @abstractmethod
    def command(self) -> list[str]: ...

    def environment(self) -> dict[str, str]:
        """Variables beside this process's own."""
        return {}

    def start(self) -> float:
        """Start the process; the seconds until it takes connections."""
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith("PERSISTD_")}
        log = self.directory / "log"
        began = time.perf_counter()
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command(),
                cwd=ROOT,
                env={**own, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return time.perf_counter() - began
            if self.process.poll() is not None or time.perf_counter() - began > PATIENCE:
                self.kill()
                raise ServiceFailed(f"{self.name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Crash it, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)

    def job(self) -> dict[str, Any]:
        """The job for the load generator."""
        names = ("port", "path", "flush_path", "list_name", "headers", "certificate")
        return {"host": "127.0.0.1", **{name: getattr(self, name) for name in names}}

    def ask(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        """One request; status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def flush(self) -> None:
        """Until it succeeds."""
        deadline = time.monotonic() + 300
        while self.ask("POST", self.flush_path)[0] != 200:
            if time.monotonic() > deadline:
                raise ServiceFailed(f"{self.name} does not flush")
            time.sleep(0.02)

    def cpu(self) -> float | None:
        """Seconds of processor time so far, children not counted; None where the system does not tell."""
        try:
            # The clock that clock_getcpuclockid(3) names: /proc/PID/stat counts in hundredths of a second.
            return time.clock_gettime((~self.process.pid << 3) | 2)
        except OSError:
            return None


class Persistd(Service):
    """This service, from the checkout ``root``, which may be an older one: only its ``bin/persistd`` is used."""

    pages = _PREFIX + "/sessions/{session}/tasks?after={next}"

    def __init__(
        self,
        name: str,
        directory: Path,
        root: Path,
        sink: str,
        place: str,
        buffer: dict[str, Any],
        *,
        token: bool = False,
        tls: bool = False,
        several: bool = False,
    ) -> None:
        """``place``: the sink's URL, file or directory; ``buffer``: settings of that table.

        ``several``: other instances write there, too.
        """
        self.root, self.sink, self.place, self.buffer = root, sink, place, buffer
        self._more: dict[str, dict[str, Any]] = {}
        self._writers = {"writers": "several"} if several else {}
        if token:
            # One among several, as in production.
            made = [tokens.make(f"client-{number}", SCOPES) for number in range(20)]
            self.headers = f"Authorization: Bearer {made[10][0]}\r\n"
            self._more["auth"] = {"tokens": [line for _, line in made], "anonymous": "never"}
        if tls:
            save(directory, "server", issue("server", issue("ca")))
            self.certificate = str(directory / "server.pem")
            self._more["tls"] = {"cert": self.certificate, "key": str(directory / "server.key")}
        super().__init__(name, directory)

    def command(self) -> list[str]:
        tables: dict[str, dict[str, Any]] = {
            "server": {"host": "127.0.0.1", "port": self.port},
            "buffer": {"flush_timeout": 300.0, **self.buffer},
            f"sinks.{self.sink}": {PLACES.get(self.sink, "url"): self.place, **self._writers},
            **self._more,
        }
        lines = [f"data_dir = {json.dumps(str(self.directory / 'data'))}", f'sink = "{self.sink}"']
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        file = self.directory / "persistd.toml"
        file.write_text("\n".join(lines) + "\n")
        return [str(self.root / "bin" / "persistd"), "run", "-c", str(file)]


class Handwritten(Service):
    """The list-and-timer service, for PostgreSQL or MySQL."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        super().__init__("handwritten", directory)

    def command(self) -> list[str]:
        # Without an access log, as in production.
        uvicorn = [sys.executable, "-m", "uvicorn", "bench.peers.handwritten:app", "--log-level", "warning"]
        return [*uvicorn, "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.url}


class Bare(Service):
    """A Tornado handler that does nothing, or the SQL of PostgREST alone."""

    flush_path = ""
    pages = "/translation_tasks?session_id=eq.{session}&limit=100&offset={offset}"

    def __init__(self, directory: Path, url: str = "") -> None:
        """``url``: of the PostgreSQL that is read."""
        self.arguments = [url] if url else []
        super().__init__("PostgREST's SQL" if url else "bare handler", directory)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.peers.bare", str(self.port), *self.arguments]


class Datasette(Service):
    """Datasette on a file in WAL mode; its write API as the root user with a signed token."""

    path = "/bench/translation_tasks/-/upsert"
    pages = "/bench/translation_tasks.json?session_id={session}&_size=100&_next={next}"
    flush_path = ""  # it answers when the rows are committed
    list_name = "rows"

    def __init__(self, directory: Path, file: Path) -> None:
        """``file`` has to be ``bench.db``, for the path holds its name."""
        self.program = [sys.executable, "-m", "datasette"]
        self.file = file
        command = [*self.program, "create-token", "root", "--secret", _SECRET]
        token = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        self.headers = f"Authorization: Bearer {token}\r\n"
        super().__init__("datasette", directory)

    def command(self) -> list[str]:
        options = ["--root", "--secret", _SECRET, "--setting", "max_insert_rows", "1000"]
        return [*self.program, "serve", str(self.file), "--host", "127.0.0.1", "--port", str(self.port), *options]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
