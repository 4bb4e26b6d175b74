"""Where rows end up, and whether they really are there."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Column, Index, MetaData, NullPool, Table, create_engine, func, select

from bench.load import Load
from bench.rows import Row, key, task
from tornado_persist.sinks.tables import METADATA, TABLES

#: Rows of each run that are compared value by value.
SPOTS = 20

_TASKS = TABLES["task"]
_OURS = ("created_at", "updated_at")


class WrongRows(Exception):
    """The sink does not hold what was sent."""


class Store(ABC):
    """What a sink holds."""

    @abstractmethod
    def count(self, first: str, last: str, revision: int) -> int:
        """Tasks with keys from ``first`` to ``last`` that are completed and have this revision."""

    @abstractmethod
    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        """Whole tasks by their keys."""

    def check(self, load: Load) -> None:
        """Every row of ``load`` has to be there in its last state."""
        last = load.first + load.count - 1
        found = self.count(key(load.first), key(last), load.final)
        if found != load.count:
            raise WrongRows(f"{found} rows of {load.count} are in the sink")
        numbers = {load.first + (load.count - 1) * spot // (SPOTS - 1) for spot in range(SPOTS)}
        stored = self.rows([key(number) for number in sorted(numbers)])
        for number in numbers:
            expected = _plain(task(number, load.final))
            row = {name: value for name, value in _plain(stored[key(number)]).items() if name in expected}
            if row != expected:
                raise WrongRows(f"the sink has {row} for {expected}")


def _plain(row: Row) -> Row:
    """With times in one form."""
    times = {name: row[name] for name in ("start_time", "end_time") if row.get(name) is not None}
    parsed = {name: datetime.fromisoformat(str(value)) for name, value in times.items()}
    return {**row, **{name: time if time.tzinfo else time.replace(tzinfo=UTC) for name, time in parsed.items()}}


class SQLStore(Store):
    """A database with the service's tables."""

    def __init__(self, url: str) -> None:
        """``url``: SQLAlchemy's."""
        self._engine = create_engine(url, poolclass=NullPool)

    def make_tables(self) -> None:
        """As the service makes them."""
        METADATA.create_all(self._engine)

    def make_specified_table(self) -> None:
        """Tasks as the specification lists them, without the times that the service adds."""
        with self._engine.begin() as connection:
            _SPECIFIED.create(connection)

    def execute(self, *statements: str) -> None:
        """Run statements, each by itself."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def count(self, first: str, last: str, revision: int) -> int:
        columns = _SPECIFIED.c
        query = select(func.count()).where(
            columns.task_id.between(first, last), columns.retry_count == revision, columns.status == "completed"
        )
        with self._engine.connect() as connection:
            return connection.scalars(query).one()

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        with self._engine.connect() as connection:
            found = connection.execute(select(_SPECIFIED).where(_SPECIFIED.c.task_id.in_(keys)))
            return {row.task_id: dict(row._mapping) for row in found}


def _specified() -> Table:
    columns: list[Any] = [
        Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
        for column in _TASKS.c
        if column.name not in _OURS
    ]
    return Table(_TASKS.name, MetaData(), *columns, Index("ix_tasks_session_id", "session_id"))


_SPECIFIED = _specified()


class LinesStore(Store):
    """A directory with JSON lines, folded by the merge rule; of a row only what tells its state is held in memory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "tasks.jsonl"
        self._read = 0
        self._states: dict[str, _State] = {}

    def count(self, first: str, last: str, revision: int) -> int:
        with self._file.open("rb") as lines:
            lines.seek(self._read)
            for newer in map(_state, lines):  # those that came since the last look
                state = self._states.setdefault(newer.task_id, newer)
                if newer.retry_count is not UNSET:
                    state.retry_count = newer.retry_count
                if newer.status is not UNSET:
                    state.status = newer.status
            self._read = lines.tell()
        return sum(
            first <= name <= last and state.retry_count == revision and state.status == "completed"
            for name, state in self._states.items()
        )

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        found: dict[str, Row] = {}
        wanted = frozenset(keys)
        with self._file.open("rb") as lines:
            for line in lines:
                name = _state(line).task_id
                if name in wanted:
                    found[name] = {**found.get(name, {}), **json.loads(line)}
        return found


class _State(msgspec.Struct, gc=False):
    task_id: str
    retry_count: int | UnsetType = UNSET
    status: str | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_State)


def _state(line: bytes) -> _State:
    # As text: in the fields that it passes over msgspec does not look at the encoding.
    return _decoder.decode(line.decode())
