"""A PostgreSQL and a MariaDB of the suite's own: real servers on free loopback ports, in throw-away directories.

They keep the durability settings they come with, since tests crash them. Their other defaults are unlike the service's
(a time zone that is not UTC, for MariaDB no strict mode), so that a test fails where a sink trusts the server for what
it should set itself.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import psycopg
import pymysql

from tests.tools import require

USER = "persist"
PASSWORD = "secret"
START_TIMEOUT = 60.0  # seconds; recovery after kill() included
STOP_TIMEOUT = 30.0  # seconds

# Waits for the end of the test run (its end of the pipe closes, however it died), then for the server's.
_WATCHER = """
cat >/dev/null
kill -"$1" "$2" 2>/dev/null
kill -CONT "$2" 2>/dev/null
n=0
while kill -0 "$2" 2>/dev/null && [ "$n" -lt 100 ]; do n=$((n + 1)); sleep 0.1; done
kill -KILL "$2" 2>/dev/null
rm -rf "$3"
"""


class ServerFailed(Exception):
    """The database server did not start."""


class Server(ABC):
    """One database server. It starts at the first ``start()``, and every server is closed at exit."""

    scheme: ClassVar[str]  #: of its URLs
    program: ClassVar[str]
    accounts: ClassVar[tuple[str, ...]]  #: the first that exists runs the server, when root must not
    stop_signal: ClassVar[signal.Signals]
    quit_signal: ClassVar[signal.Signals]  #: ends at once, still gives back what outlives a process

    def __init__(self) -> None:
        self.port = 0
        self.directory = Path()
        self.suspended = False
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._databases = 0

    # What differs

    @abstractmethod
    def _initialise(self) -> None:
        """Make the data directory."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _prepare(self) -> None:
        """Make the role ``persist``; called once, after the first start."""

    @abstractmethod
    def admin(self, sql: str, database: str = "") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser; the rows it gave."""

    @abstractmethod
    def create_database(self, name: str) -> None:
        """Make an empty database that the role ``persist`` owns."""

    @abstractmethod
    def drop_database(self, name: str) -> None:
        """Drop a database, even with open connections."""

    @abstractmethod
    def end_writers(self, url: str) -> int:
        """End the connections to the database of ``url`` that have written something and not committed it; how many."""

    @property
    @abstractmethod
    def version(self) -> str:
        """As the running server gives it."""

    # Life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def running(self) -> bool:
        """Whether its process lives, suspended or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    def processes(self) -> list[int]:
        """The main process and all its descendants, parents first."""
        return family(self.pid)

    def start(self) -> None:
        """Start it, or start it again on the same port and data; returns once it takes connections."""
        if self.running:
            self.resume()
            return
        if self.port:
            self._spawn()
            return
        # The path is kept short: a socket's may have 104 characters at most.
        self.directory = Path(tempfile.mkdtemp(prefix=f"tp-{self.scheme[:2]}-"))
        atexit.register(self.close)
        try:
            self._start_first()
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Shut down in good order."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Crash: SIGKILL to all its processes. ``start()`` recovers."""
        if self.running:
            # The main process first, so that it forks no more while the others are looked up.
            os.kill(self.pid, signal.SIGSTOP)
            pids = self.processes()
            for pid in reversed(pids):
                _signal(pid, signal.SIGKILL)
            _until(lambda: not any(alive(pid) for pid in pids[1:]), STOP_TIMEOUT)
        self._reap()

    def suspend(self) -> None:
        """SIGSTOP to all its processes: connections stay open, and nothing answers."""
        assert self.running, "only a running server can be suspended"
        os.kill(self.pid, signal.SIGSTOP)
        for pid in self.processes():
            _signal(pid, signal.SIGSTOP)
        self.suspended = True

    def resume(self) -> None:
        """SIGCONT to all its processes."""
        if self.suspended and self.running:
            for pid in reversed(self.processes()):
                _signal(pid, signal.SIGCONT)
        self.suspended = False

    def restart(self) -> None:
        """Stop in good order and start again on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it at once and remove its directory; it may be called twice."""
        atexit.unregister(self.close)
        self._end(self.quit_signal)
        if self.directory.name:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory, self.port = Path(), 0

    # Databases

    def fresh_database(self) -> str:
        """The URL of a new, empty database that the role ``persist`` owns. Starts or resumes the server if need be."""
        self.start()
        self._databases += 1
        name = f"db_{self._databases}"
        self.create_database(name)
        return f"{self.scheme}://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def drop(self, url: str) -> None:
        """Drop the database of ``url``, even with open connections. Starts or resumes the server if need be."""
        self.start()
        self.drop_database(database_of(url))

    # Inner parts

    def _start_first(self) -> None:
        if (account := self._account()) is not None:
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        self._initialise()
        for attempt in range(1, 6):
            self.port = free_port()
            try:
                self._spawn()
                break
            except ServerFailed:
                # Another process may have taken the port between our look and the server's.
                if attempt == 5 or not connectable(self.port):
                    raise
        self._prepare()

    def _account(self) -> pwd.struct_passwd | None:
        """The account that runs the server: neither server runs as root."""
        if os.geteuid() != 0:
            return None
        for name in self.accounts:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise ServerFailed(f"none of the accounts {', '.join(self.accounts)} exists, and root must not run a server")

    def options(self) -> dict[str, Any]:
        """For ``subprocess``: the account, a working directory it may enter, and away from the terminal's signals."""
        options: dict[str, Any] = {
            "cwd": self.directory,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "env": {
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self.directory),
                # A MariaDB that starts deletes all temporary tables that it finds there, another server's too.
                "TMPDIR": str(self.directory),
                "TZ": "UTC",
            },
        }
        if (account := self._account()) is not None:
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return options

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **self.options()
        )
        if done.returncode != 0:
            raise ServerFailed(f"{command[0]} failed:\n{done.stdout}")

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(self._command(), stdout=log, stderr=log, **self.options())
        self._process, self.suspended = process, False
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCHER, "sh", self.quit_signal.name[3:], str(process.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        error: Exception | None = None
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            try:
                self.admin("SELECT 1")
                return
            except (psycopg.OperationalError, pymysql.err.OperationalError, OSError) as exc:
                error = exc
                time.sleep(0.02)
        self.kill()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        raise ServerFailed(f"{self.program} did not start ({error}):\n{tail}")

    def _end(self, how: signal.Signals) -> None:
        if self.running:
            self.resume()
            os.kill(self.pid, how)
            try:
                self._wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reap()

    def _wait(self, timeout: float) -> None:
        assert self._process is not None
        pids = self.processes()
        self._process.wait(timeout)
        _until(lambda: not any(alive(pid) for pid in pids[1:]), timeout)

    def _reap(self) -> None:
        if self._watcher is not None:
            # Before its pipe is closed, or it would take that for the end of the test run.
            self._watcher.kill()
            self._watcher.wait()
            assert self._watcher.stdin is not None
            self._watcher.stdin.close()
            self._watcher = None
        if self._process is not None:
            self._process.wait()
        self._process, self.suspended = None, False


class Postgres(Server):
    """A PostgreSQL 13 or later."""

    scheme = "postgresql"
    program = "postgres"
    accounts = ("postgres", "nobody")
    stop_signal = signal.SIGINT  # "fast": it does not wait for the clients
    quit_signal = signal.SIGQUIT  # SIGKILL would leave its System V shared memory behind

    def _initialise(self) -> None:
        # --no-sync: the machine's own crash is not what the tests are about. The superuser comes by the socket only,
        # which lies in a directory that is closed to others.
        self._run(
            [
                *(str(require("initdb")), f"--pgdata={self.data}", "--no-sync", "--username=postgres"),
                *("--encoding=UTF8", "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256"),
            ]
        )

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "timezone": "Asia/Shanghai",
            "log_timezone": "UTC",
            "jit": "off",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [str(require("postgres")), "-D", str(self.data), *options]

    def _prepare(self) -> None:
        self.admin(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")

    def admin(self, sql: str, database: str = "") -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=str(self.directory),
            port=self.port,
            user="postgres",
            dbname=database or "postgres",
            autocommit=True,
            connect_timeout=10,
        ) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> None:
        self.admin(f'CREATE DATABASE "{name}" OWNER {USER}')

    def drop_database(self, name: str) -> None:
        self.admin(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def end_writers(self, url: str) -> int:
        ended = self.admin(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{database_of(url)}' AND backend_xid IS NOT NULL"
        )
        return ended.count((True,))

    def set(self, name: str, value: str | None) -> None:
        """Set a parameter of the server, or reset it; it holds for all connections, the open ones too."""
        loaded = "SELECT pg_conf_load_time()"
        before = self.admin(loaded)
        self.admin(f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = '{value}'")
        self.admin("SELECT pg_reload_conf()")  # only a signal to the first process, which tells the others
        _until(lambda: self.admin(loaded) != before, START_TIMEOUT)

    @property
    def version(self) -> str:
        return f"PostgreSQL {self.admin('SHOW server_version')[0][0]}"


class MariaDB(Server):
    """A MariaDB 10.6 or later."""

    scheme = "mysql"
    program = "mariadbd"
    #: More of its settings; before the start.
    more: Mapping[str, object] = {}
    accounts = ("mysql", "nobody")
    stop_signal = signal.SIGTERM
    quit_signal = signal.SIGKILL  # nothing of it outlives its process

    @property
    def socket_file(self) -> Path:
        """Where root connects, without a password."""
        return self.directory / "s"

    def _initialise(self) -> None:
        self._run(
            [
                *(str(require("mariadb-install-db")), "--no-defaults", f"--datadir={self.data}", "--skip-test-db"),
                *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
            ]
        )

    def _command(self) -> list[str]:
        settings = {
            "datadir": self.data,
            "socket": self.socket_file,
            "pid-file": self.directory / "pid",
            "port": self.port,
            "bind-address": "127.0.0.1",
            "innodb-buffer-pool-size": "64M",
            "character-set-server": "utf8mb4",
            "default-time-zone": "+08:00",
            "sql-mode": "",
            **self.more,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [str(require("mariadbd")), "--no-defaults", "--skip-name-resolve", *options]

    def _prepare(self) -> None:
        # root is left with the socket, which lies in a directory that is closed to others.
        for (host,) in self.admin("SELECT host FROM mysql.user WHERE user = 'root' AND host <> 'localhost'"):
            self.admin(f"DROP USER 'root'@'{host}'")
        self.admin(f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'")

    def admin(self, sql: str, database: str = "") -> list[tuple[Any, ...]]:
        connection = pymysql.connect(
            user="root", database=database or None, autocommit=True, charset="utf8mb4", defer_connect=True
        )
        # PyMySQL leaves its own socket open where it cannot connect to a path; the wait for a start does that often.
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.socket_file))
            connection.connect(sock)
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())

    def create_database(self, name: str) -> None:
        self.admin(f"CREATE DATABASE `{name}`")
        # An underscore in a grant stands for any character.
        pattern = name.replace("_", r"\_")
        self.admin(f"GRANT ALL ON `{pattern}`.* TO '{USER}'@'%'")

    def drop_database(self, name: str) -> None:
        # An open transaction's locks would hold up the DROP.
        for (connection,) in self.admin(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            with contextlib.suppress(pymysql.err.Error):  # gone meanwhile
                self.admin(f"KILL {connection}")
        self.admin(f"DROP DATABASE IF EXISTS `{name}`")
        pattern = name.replace("_", r"\_")
        with contextlib.suppress(pymysql.err.Error):  # a test may have revoked it already
            self.admin(f"REVOKE ALL ON `{pattern}`.* FROM '{USER}'@'%'")

    def end_writers(self, url: str) -> int:
        ended = 0
        for (connection,) in self.admin(
            # What is said of transactions is up to a tenth of a second old.
            "SELECT id FROM information_schema.processlist LEFT JOIN information_schema.innodb_trx"
            " ON trx_mysql_thread_id = id"
            f" WHERE db = '{database_of(url)}' AND (info LIKE 'INSERT%' OR trx_rows_modified > 0)"
        ):
            with contextlib.suppress(pymysql.err.Error):  # gone meanwhile
                self.admin(f"KILL {connection}")
                ended += 1
        return ended

    @contextlib.contextmanager
    def variable(self, name: str, value: str | float) -> Iterator[None]:
        """Sets a global variable, for connections made meanwhile."""
        old = self.admin(f"SELECT @@GLOBAL.{name}")[0][0]
        self.admin(f"SET GLOBAL {name} = {value!r}")
        try:
            yield
        finally:
            self.admin(f"SET GLOBAL {name} = {old!r}")

    @property
    def version(self) -> str:
        return f"MariaDB {self.admin('SELECT version()')[0][0]}"


def database_of(url: str) -> str:
    """The database's name in one of our URLs."""
    return url.rsplit("/", 1)[1]


# Processes and ports


def free_port() -> int:
    """A free port below those that the system gives to outgoing connections: none of them may take it, nor connect to
    itself, while a test has the server down."""
    for port in random.sample(range(15000, 32000), 200):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise ServerFailed("no free port between 15000 and 32000")


def connectable(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _processes() -> Iterator[tuple[int, int, str]]:
    """Every process: its number, its parent's and its state."""
    if sys.platform == "linux":  # no need of ps, which small images lack
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    # The name, in brackets, may hold anything.
                    state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                    yield int(entry.name), int(parent), state
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            pid, parent, state = line.split(None, 2)
            yield int(pid), int(parent), state


def family(pid: int) -> list[int]:
    """``pid`` and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for child, parent, _state in _processes():
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def alive(pid: int) -> bool:
    """Whether the process runs."""
    # In a container no process may reap an orphan: a zombie counts as gone.
    return any(number == pid and not state.startswith("Z") for number, _parent, state in _processes())


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _until(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
