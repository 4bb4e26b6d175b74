"""The database servers: throw-away ones of our own, as the tests have them, durable as they come."""

from __future__ import annotations

from tests.servers import MariaDB, Postgres, Server

#: What is unlike the servers' defaults. The tests' MariaDB has a small cache; a machine that serves has a larger one.
SETTINGS = {
    "postgres": "defaults, jit off",
    "mysql": "defaults, innodb-buffer-pool-size 512M",
}


class RoomyMariaDB(MariaDB):
    """With a cache that holds the tables."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--innodb-buffer-pool-size=512M"]


class Databases:
    """Starts a server when it is needed first."""

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}

    def server(self, sink: str) -> Server:
        """The server of a sink, running."""
        if sink not in self._servers:
            self._servers[sink] = Postgres() if sink == "postgres" else RoomyMariaDB()
        self._servers[sink].start()
        return self._servers[sink]

    def versions(self) -> dict[str, str]:
        """Of the servers that were started."""
        return {sink: server.version for sink, server in self._servers.items()}

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
