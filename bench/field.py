"""The contenders for one sink: the service beside its peers or another checkout, each with its own storage."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.load import Load, Sample, send
from bench.services import PLACES, ROOT, Bare, Datasette, Handwritten, Persistd, Service
from bench.stores import INDEX, TABLE, TIMES, LinesStore, SQLStore, Store
from tests.galera import Cluster
from tests.servers import MariaDB, Postgres, Server
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Sink

#: Rows that a service gets before it is measured, and the number of the first of them.
WARM_UP, WARM_UP_FIRST = 2000, 900_000_000


class RoomyMariaDB(MariaDB):
    """The tests' MariaDB with a cache that holds the tables, as on a machine that serves."""

    more: Mapping[str, object] = {"innodb-buffer-pool-size": "512M"}


@dataclass(frozen=True, slots=True)
class Contender:
    """A service, and where its rows are; None if it stores nothing."""

    service: Service
    store: Store | None

    @property
    def name(self) -> str:
        return self.service.name

    def run(self, load: Load) -> Sample:
        """Take the load, and see that the rows are in the sink."""
        sample = send(self.service, load)
        if self.store is not None and load.flush:
            self.store.check(load)
        return sample


class Field:
    """Makes contenders for one sink; ends them and deletes what they wrote when it is left."""

    def __init__(self, sink: str, servers: dict[str, Server], other: Path | None) -> None:
        """``other``: the root of another checkout, instead of the peers."""
        self.galera = sink == "galera"
        self.sink, self.other, self._servers = "mysql" if self.galera else sink, other, servers
        self._cluster: Cluster | None = None
        self._stack = ExitStack()
        self._root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tp-bench-")))
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    @property
    def server(self) -> Server:
        """The sink's database server, running."""
        if self.sink not in self._servers:
            self._servers[self.sink] = Postgres() if self.sink == "postgres" else RoomyMariaDB()
        self._servers[self.sink].start()
        return self._servers[self.sink]

    def checkouts(self, **buffer: Any) -> list[Contender]:
        """The service, and that of the other checkout if there is one; ``buffer``: settings over the defaults."""
        roots = {"this": ROOT} | ({"other": self.other} if self.other else {})
        contenders = []
        for name, root in roots.items():
            directory = self._directory()
            place, store = self._place(directory)
            contenders.append(self._add(Persistd(name, directory, root, self.sink, place, buffer), store))
        return contenders

    def protected(self) -> list[Contender]:
        """The service with its defaults, with tokens, with TLS, and with both."""
        kinds = {"this": (False, False), "token": (True, False), "TLS": (False, True), "token and TLS": (True, True)}
        contenders = []
        for name, (token, tls) in kinds.items():
            directory = self._directory()
            place, store = self._place(directory)
            service = Persistd(name, directory, ROOT, self.sink, place, {}, token=token, tls=tls)
            contenders.append(self._add(service, store))
        return contenders

    def ours(self, writers: str) -> Sink[Any]:
        """The service's own sink, open, without the service; ``writers``: that setting."""
        directory = self._directory()
        place, _ = self._place(directory)
        sink_class = registry.find(self.sink)
        table = {PLACES.get(self.sink, "url"): place, "writers": writers}
        sink: Sink[Any] = sink_class(sink_class.Settings(**table), directory)
        self._stack.callback(sink.close)
        sink.open()
        return sink

    def instances(self, count: int) -> list[Persistd]:
        """So many instances over one database; of a Galera cluster each has a node of its own."""
        if self.galera:
            cluster = self._stack.enter_context(Cluster()) if self._cluster is None else self._cluster
            self._cluster = cluster
            name = f"bench_{next(self._numbers)}"
            cluster.nodes[0].create_database(name)
            places = [node.url(name) for node in cluster.nodes]
        else:
            places = [self._place(self._root)[0]] * 3
        made = []
        for number, place in enumerate(places[:count]):
            service = Persistd(f"{number}", self._directory(), ROOT, self.sink, place, {}, several=True)
            self._add(service, None)
            made.append(service)
        return made

    def server_cpu(self) -> float:
        """Seconds of processor time that the database servers have used so far."""
        servers = self._cluster.nodes if self._cluster else [self.server]
        ticks = 0
        for pid in [pid for server in servers for pid in server.processes()]:
            with suppress(OSError):  # it has ended
                # User and system time, its own and that of the children it has waited for.
                ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def peer(self) -> list[Contender]:
        """The usual alternative; none beside another checkout, or for JSON lines."""
        if self.other or self.sink == "jsonl":
            return []
        directory = self._directory()
        place, store = self._place(directory)
        assert isinstance(store, SQLStore)
        store.execute(TABLE.format(time=TIMES[self.sink]), INDEX)
        if self.sink == "sqlite":
            store.execute("PRAGMA journal_mode = WAL")
            return [self._add(Datasette(directory, Path(place)), store)]
        return [self._add(Handwritten(directory, place), store)]

    def reader(self, place: str) -> list[Contender]:
        """The usual way to read what is at ``place``; none beside another checkout, or for MariaDB."""
        if self.other or self.sink == "mysql":
            return []
        directory = self._directory()
        peer = Bare(directory, place) if self.sink == "postgres" else Datasette(directory, Path(place))
        self._stack.callback(peer.kill)
        return [Contender(peer, None)]

    def bare(self) -> list[Contender]:
        """The web server alone; nothing beside another checkout."""
        return [] if self.other else [self._add(Bare(self._directory()), None)]

    def _add(self, service: Service, store: Store | None) -> Contender:
        self._stack.callback(service.kill)
        send(service, Load(WARM_UP_FIRST, WARM_UP))
        return Contender(service, store)

    def _directory(self) -> Path:
        directory = self._root / str(next(self._numbers))
        directory.mkdir()
        return directory

    def _place(self, directory: Path) -> tuple[str, Store]:
        match self.sink:
            case "jsonl":
                lines = directory / "jsonl"
                lines.mkdir()
                return str(lines), LinesStore(lines)
            case "sqlite":
                file = directory / "bench.db"
                return str(file), SQLStore(f"sqlite:///{file}")
            case _:
                place = self.server.fresh_database()
                self._stack.callback(self.server.drop, place)
                driver = "postgresql+psycopg" if self.sink == "postgres" else "mysql+pymysql"
                return place, SQLStore(f"{driver}://{place.partition('://')[2]}")
