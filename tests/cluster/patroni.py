"""A PostgreSQL cluster that Patroni manages, with etcd: real programs on loopback, in throw-away directories."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from tests.process import wait_until
from tests.servers import PASSWORD, USER, Postgres, family, free_port
from tests.tools import require

#: Patroni's shortest ``ttl``, and what else may stand beside it: ``loop_wait`` + 2 × ``retry_timeout`` ≤ ``ttl``.
TIMES: Mapping[str, int] = {"ttl": 20, "loop_wait": 5, "retry_timeout": 5}


class Etcd:
    """One etcd. It keeps its data when it is stopped."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port, self._peers = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def start(self) -> None:
        clients, peers = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peers}"
        options = {
            "name": "one",
            "data-dir": self._directory / "etcd",
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"one={peers}",
        }
        with (self._directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [require("etcd"), *(f"--{key}={value}" for key, value in options.items())], stdout=log, stderr=log
            )
        wait_until(lambda: _get(f"{clients}/health").get("health") == "true", "etcd")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None


class Member(Postgres):
    """One member: the process is Patroni's, which starts a PostgreSQL that outlives it."""

    program = "patroni"
    stop_signal = quit_signal = signal.SIGTERM  # it stops PostgreSQL then

    def __init__(self, name: str, etcd: Etcd, times: Mapping[str, int] = TIMES) -> None:
        super().__init__()
        self.name, self._etcd, self._times = name, etcd, times
        self.api = free_port()

    @property
    def configuration(self) -> Path:
        return self.directory / "patroni.yml"

    def _initialise(self) -> None:
        """Patroni does, or copies the primary."""

    def _command(self) -> list[str]:
        settings = {
            "scope": "persist",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.api}", "connect_address": f"127.0.0.1:{self.api}"},
            "etcd3": {"host": f"127.0.0.1:{self._etcd.port}"},
            "bootstrap": {
                "dcs": {
                    **self._times,
                    "synchronous_mode": True,
                    "primary_start_timeout": 0,
                    "postgresql": {"use_pg_rewind": True},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": str(require("postgres").resolve().parent),
                "pgpass": str(self.directory / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": PASSWORD},
                    "replication": {"username": "replicator", "password": PASSWORD},
                },
                "parameters": {"unix_socket_directories": str(self.directory), "timezone": "Asia/Shanghai"},
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                ],
            },
        }
        self.configuration.write_text(json.dumps(settings))  # which is YAML, too
        return [str(require("patroni")), str(self.configuration)]

    def _prepare(self) -> None:
        """The first one makes the role; the others have it from there."""

    def answers(self, role: str) -> bool:
        """Whether Patroni says that the member has this role, as HAProxy would ask it."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.options(f"http://127.0.0.1:{self.api}/{role}", timeout=2).status_code == 200
        return False

    def crash(self) -> None:
        """``kill -9`` of PostgreSQL alone."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGSTOP)
            for process in reversed(family(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def kill(self) -> None:
        """``kill -9`` of Patroni and PostgreSQL."""
        super().kill()
        self.crash()

    def close(self) -> None:
        if self.directory.name:
            super()._end(self.stop_signal)
            self.crash()
        super().close()


class Cluster:
    """Three members."""

    def __init__(self, directory: Path, times: Mapping[str, int] = TIMES) -> None:
        self.etcd = Etcd(directory)
        self.members = [Member(name, self.etcd, times) for name in ("one", "two", "three")]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.etcd)
            for member in self.members:
                stack.enter_context(member)
                wait_until(lambda: any(member.answers("primary") for member in self.members), "the primary")
            self.primary.admin(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    @property
    def primary(self) -> Member:
        """The one that HAProxy would take."""
        wait_until(lambda: any(member.answers("primary") for member in self.members), "a primary")
        return next(member for member in self.members if member.answers("primary"))

    def wait(self) -> None:
        """Until it is whole."""
        wait_until(self.whole, "the cluster")

    def whole(self) -> bool:
        """Whether there is a primary with two replicas, one of which Patroni would promote."""
        writable = [member for member in self.members if member.answers("primary")]
        if len(writable) != 1 or not any(member.answers("synchronous") for member in self.members):
            return False
        return writable[0].admin("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(2,)]

    def switch_over(self) -> None:
        """Begin it: Patroni stops the primary when a replica has all it wrote, and promotes that."""
        command = [str(require("patronictl")), "-c", str(self.members[0].configuration), "switchover", "--force"]
        self._stack.callback(subprocess.Popen(command, stdout=subprocess.DEVNULL).wait, 60)


def _get(url: str) -> dict[str, Any]:
    with contextlib.suppress(httpx.TransportError):
        answer: dict[str, Any] = httpx.get(url, timeout=2).json()
        return answer
    return {}
