"""A MariaDB Galera cluster on loopback: every node with its own ports and throw-away directories."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pymysql

from tests.servers import PASSWORD, USER, MariaDB, free_port

#: Where Debian and Red Hat have it.
LIBRARIES = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so")
LIBRARY = next((path for path in map(Path, LIBRARIES) if path.exists()), None)
#: Seconds for the cluster to agree, at the end of a test.
PATIENCE = 90


class Node(MariaDB):
    """One node: the first of ``nodes`` to start makes the cluster, the others join it and get its data by rsync."""

    def __init__(self, nodes: Sequence[Node] = ()) -> None:
        super().__init__()
        self._nodes = nodes
        self._joins = False
        self.replication, self._increments, self._transfer = free_port(), free_port(), free_port()

    def _initialise(self) -> None:
        self._joins = any(node.running for node in self._nodes)
        if not self._joins:
            super()._initialise()
            return
        self.data.mkdir()
        if account := self._account():
            os.chown(self.data, account.pw_uid, account.pw_gid)

    def _command(self) -> list[str]:
        members = ",".join(f"127.0.0.1:{node.replication}" for node in self._nodes) if self._joins else ""
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{self.replication}",
            "ist.recv_addr": f"127.0.0.1:{self._increments}",
            "gcache.size": "16M",
            "gcache.page_size": "16M",
        }
        settings = {
            "wsrep-on": "ON",
            "wsrep-provider": LIBRARY,
            "wsrep-cluster-address": f"gcomm://{members}",
            "wsrep-node-address": f"127.0.0.1:{self.replication}",
            "wsrep-provider-options": ";".join(f"{name}={value}" for name, value in provider.items()),
            "wsrep-sst-method": "rsync",
            "wsrep-sst-receive-address": f"127.0.0.1:{self._transfer}",
            "binlog-format": "ROW",
            "innodb-autoinc-lock-mode": 2,
        }
        return [*super()._command(), *(f"--{name}={value}" for name, value in settings.items())]

    def _prepare(self) -> None:
        if not self._joins:
            super()._prepare()
            self.admin("CREATE USER 'haproxy'@'%'")
        self._joins = bool(self._nodes)  # at the next start

    @property
    def state(self) -> str:
        """``wsrep_local_state_comment``, Synced if all is well; empty if the node does not answer."""
        try:
            return str(self.admin("SHOW STATUS LIKE 'wsrep_local_state_comment'")[0][1])
        except (OSError, pymysql.err.Error):
            return ""

    @property
    def size(self) -> int:
        """Members of the cluster, as the node sees it."""
        return int(self.admin("SHOW STATUS LIKE 'wsrep_cluster_size'")[0][1])

    def catch_up(self) -> None:
        """Wait until it has applied what the others had committed before the call."""
        connection = pymysql.connect(user="root", unix_socket=str(self.socket_file))
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("SET SESSION wsrep_sync_wait = 1")
            cursor.execute("SELECT count(*) FROM mysql.user")

    def isolate(self, on: bool) -> None:
        """Cut the node's connections to the others, as a broken network would; clients still reach it."""
        self.admin(f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={int(on)}'")

    def url(self, database: str) -> str:
        return f"mysql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"


class Cluster:
    """Three nodes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.nodes += [Node(self.nodes) for _ in range(3)]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self.wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    def wait(self, count: int = 3, *, among: Sequence[Node] = ()) -> float:
        """Until the nodes (``among``, or all) are synced in a cluster of ``count``; the seconds that took."""
        began = time.monotonic()
        nodes = among or self.nodes
        while not all(node.state == "Synced" and node.size == count for node in nodes):
            seen = [(node.state, node.running) for node in nodes]
            assert time.monotonic() - began < PATIENCE, f"the cluster does not come together: {seen}"
            time.sleep(0.05)
        return time.monotonic() - began

    def urls(self, database: str) -> list[str]:
        """For each node a URL with all three hosts, that node first."""
        hosts = [f"127.0.0.1:{node.port}" for node in self.nodes]
        return [f"mysql://{USER}:{PASSWORD}@{','.join([*hosts[n:], *hosts[:n]])}/{database}" for n in range(3)]
