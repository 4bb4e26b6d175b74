"""Servers with a replica that takes over, as the tests tell it; what a cluster manager would do is done by hand."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.process import wait_until
from tests.servers import PASSWORD, USER, MariaDB, Postgres, Server
from tests.tools import require


class Standby(Postgres):
    """A streaming standby of ``primary``, which waits for it at each commit."""

    def __init__(self, primary: Postgres) -> None:
        super().__init__()
        self.primary = primary

    def _initialise(self) -> None:
        source = f"host={self.primary.directory} port={self.primary.port} user=postgres application_name=standby"
        copy = [str(require("pg_basebackup")), f"--dbname={source}", f"--pgdata={self.data}"]
        self._run([*copy, "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"])

    def _prepare(self) -> None:
        """The roles came with the copy."""
        confirm(self.primary)

    def promote(self) -> None:
        """Make it the primary; returns when it can be written to."""
        assert self.admin("SELECT pg_promote(true, 30)") == [(True,)]


def confirm(primary: Postgres) -> None:
    """Let the commits of a primary wait for its standby."""
    primary.set("synchronous_standby_names", "*")
    wait_until(lambda: primary.admin("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"), "the standby")


def alone(server: Postgres) -> None:
    """Its commits wait for nobody any more."""
    server.set("synchronous_standby_names", None)


def follow(old: Postgres, new: Postgres) -> None:
    """Start a primary that was stopped in good order again, as a read-only standby of the new one."""
    (old.data / "standby.signal").touch()
    settings = old.data / "postgresql.auto.conf"
    source = f"host={new.directory} port={new.port} user=postgres application_name=standby"
    settings.write_text(f"{settings.read_text()}\nprimary_conninfo = '{source}'\nsynchronous_standby_names = ''\n")
    old.start()
    wait_until(lambda: new.admin("SELECT 1 FROM pg_stat_replication"), "the old primary")


class Source(MariaDB):
    """A primary whose commits wait until the replica has them."""

    more: Mapping[str, object] = {
        "server-id": 1,
        "log-bin": "log",
        "binlog-format": "ROW",
        "rpl-semi-sync-master-wait-point": "AFTER_SYNC",
        "rpl-semi-sync-master-timeout": 600_000,
    }

    @contextmanager
    def replica(self) -> Iterator[Replica]:
        self.admin(f"GRANT REPLICATION SLAVE ON *.* TO '{USER}'@'%'")
        with Replica() as replica:
            replica.admin(
                f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={self.port}, MASTER_USER='{USER}',"
                f" MASTER_PASSWORD='{PASSWORD}', MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1"
            )
            replica.admin("START SLAVE")
            wait_until(lambda: status(self, "Rpl_semi_sync_master_clients") == "1", "the replica")
            self.admin("SET GLOBAL rpl_semi_sync_master_enabled = 1")
            yield replica


class Replica(MariaDB):
    """Read-only, until it is promoted."""

    more: Mapping[str, object] = {
        "server-id": 2,
        "log-bin": "log",
        "log-slave-updates": "ON",
        "read-only": "ON",
        "rpl-semi-sync-slave-enabled": "ON",
    }

    def _prepare(self) -> None:
        """The users come from the primary."""

    def promote(self) -> None:
        """Apply what has come from the primary, and take writes."""
        self.admin("STOP SLAVE IO_THREAD")
        wait_until(lambda: "has read all relay log" in str(self.admin("SHOW SLAVE STATUS")), "the relay log")
        self.admin("STOP SLAVE")
        self.admin("RESET SLAVE ALL")
        self.admin("SET GLOBAL read_only = 0")


def status(server: MariaDB, name: str) -> str:
    return str(server.admin(f"SHOW GLOBAL STATUS LIKE '{name}'")[0][1])


def newest(server: Server, database: str) -> Any:
    """The accept time of the newest stored task."""
    return server.admin("SELECT max(updated_at) FROM translation_tasks", database)[0][0]


def wait_for_write(server: Server, database: str) -> float:
    """Seconds until the server has written a task that it has not yet."""
    began, before = time.monotonic(), newest(server, database)
    wait_until(lambda: newest(server, database) > before, "a write")
    seconds = time.monotonic() - began
    sys.stdout.write(f"the first row came after {seconds:.2f} s\n")  # pytest -s shows it
    return seconds
