"""Who takes part in a workload: the service, its peers and its limits, each with a place of its own for the rows."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from bench.databases import Databases
from bench.load import Load, Sample
from bench.services import Bare, Datasette, Handwritten, Persistd, Service
from bench.stores import LinesStore, SQLStore, Store, WrongRows
from bench.worker import Worker

#: Rows that a service gets before it is measured, and the number of the first of them.
WARM_UP = 2000
WARM_UP_FIRST = 900_000_000


class Contender(ABC):
    """Takes loads."""

    name: str

    @abstractmethod
    def run(self, load: Load) -> Sample:
        """Take the load, and see that the rows are where they should be."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class ServiceContender(Contender):
    """A service under the load generator."""

    def __init__(self, name: str, service: Service, store: Store | None) -> None:
        """``store``: where its rows are; None if it stores nothing."""
        self.name = name
        self.service = service
        self.store = store
        self.send(Load(WARM_UP_FIRST, WARM_UP))

    def send(self, load: Load) -> Sample:
        """Only the load."""
        with Worker("bench.generator", load.to_job(**self.service.job())) as worker:
            before = self.service.cpu()
            worker.go()
            sample = worker.result()
            after = self.service.cpu()
        if sample.refused:
            raise WrongRows(f"{self.name} refused {sample.refused} requests of {sample.requests}: {sample.answer}")
        return sample if before is None or after is None else dataclasses.replace(sample, cpu=after - before)

    def run(self, load: Load) -> Sample:
        sample = self.send(load)
        if self.store is not None:
            self.store.check(load)
        return sample

    def close(self) -> None:
        self.service.close()


class LimitContender(Contender):
    """A sink alone, fed with encoded rows."""

    name = "limit"

    def __init__(self, sink: str, place: str, store: Store) -> None:
        self.sink, self.place, self.store = sink, place, store

    def run(self, load: Load) -> Sample:
        with Worker("bench.limits", load.to_job(sink=self.sink, place=self.place)) as worker:
            worker.go()
            sample = worker.result()
        self.store.check(load)
        return sample

    def close(self) -> None:
        pass


ContenderT = TypeVar("ContenderT", bound=Contender)


class Field:
    """Makes contenders for one sink, and remembers how to end them and to delete what they wrote."""

    def __init__(self, sink: str, databases: Databases) -> None:
        self.sink = sink
        self.databases = databases
        self._stack = ExitStack()
        self._root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tp-bench-")))
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    def persistd(self, name: str = "persistd", **settings: dict[str, Any]) -> ServiceContender:
        """The service with ``settings`` over its defaults."""
        directory = self._directory()
        place, store = self._place(directory)
        return self._add(ServiceContender(name, Persistd(directory, self.sink, place, **settings), store))

    def peer(self) -> ServiceContender | None:
        """What people would take instead; None for JSON lines."""
        directory = self._directory()
        match self.sink:
            case "postgres" | "mysql":
                place, store = self._place(directory, tables=True)
                return self._add(ServiceContender("handwritten", Handwritten(directory, place), store))
            case "sqlite":
                file = directory / "bench.db"
                store = SQLStore(f"sqlite:///{file}")
                store.execute("PRAGMA journal_mode = WAL")
                store.make_specified_table()
                return self._add(ServiceContender("datasette", Datasette(directory, file), store))
            case _:
                return None

    def limit(self) -> LimitContender:
        """The sink alone."""
        place, store = self._place(self._directory(), tables=True)
        return self._add(LimitContender(self.sink, place, store))

    def bare(self) -> ServiceContender:
        """The web server alone."""
        return self._add(ServiceContender("bare handler", Bare(self._directory()), None))

    def _add(self, contender: ContenderT) -> ContenderT:
        self._stack.callback(contender.close)
        return contender

    def _directory(self) -> Path:
        directory = self._root / str(next(self._numbers))
        directory.mkdir()
        return directory

    def _place(self, directory: Path, *, tables: bool = False) -> tuple[str, Store]:
        """An empty place for this sink and its store, with the service's tables made already if asked for."""
        match self.sink:
            case "jsonl":
                lines = directory / "jsonl"
                lines.mkdir()
                return str(lines), LinesStore(lines)
            case "sqlite":
                place = str(directory / "persist.db")
                store = SQLStore(f"sqlite:///{place}")
            case _:
                server = self.databases.server(self.sink)
                place = server.fresh_database()
                self._stack.callback(server.drop, place)
                driver = "postgresql+psycopg" if self.sink == "postgres" else "mysql+pymysql"
                store = SQLStore(f"{driver}://{place.partition('://')[2]}")
        if tables:
            store.make_tables()
        return place, store


def in_turn(contenders: list[Any], round_: int) -> list[Any]:
    """The contenders in an order that another begins in each round."""
    start = round_ % len(contenders)
    return [*contenders[start:], *contenders[:start]]
