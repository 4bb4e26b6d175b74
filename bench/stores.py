"""Where rows end up, and whether they are really there. Nothing is imported from the service: it may be another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import NullPool, create_engine, text

from bench.load import Load
from bench.rows import key, task

#: The table of the peers: the fields of the specification.
TABLE = """CREATE TABLE translation_tasks (
    task_id VARCHAR(64) NOT NULL PRIMARY KEY, session_id VARCHAR(64) NOT NULL, batch_id VARCHAR(64) NOT NULL,
    sheet_name VARCHAR(255) NOT NULL, row_index INTEGER NOT NULL, column_name VARCHAR(255) NOT NULL,
    source_text TEXT NOT NULL, target_text TEXT, context TEXT, status VARCHAR(10) NOT NULL, confidence DOUBLE PRECISION,
    error_message TEXT, retry_count INTEGER NOT NULL, start_time {time}, end_time {time}, duration_ms BIGINT)"""
INDEX = "CREATE INDEX ix_session ON translation_tasks (session_id)"
TIMES = {"sqlite": "TEXT", "postgres": "TIMESTAMPTZ", "mysql": "DATETIME(6)"}

_LAST = task(0)


class RowsMissing(Exception):
    """The sink does not hold what was sent."""


class Store(ABC):
    """What a sink holds."""

    @abstractmethod
    def count(self, first: str, last: str) -> int:
        """Tasks with keys from ``first`` to ``last`` that are in their last state."""

    def check(self, load: Load) -> None:
        """Every row of ``load`` has to be there in its last state."""
        found = self.count(key(load.first), key(load.first + load.count - 1))
        if found != load.count:
            raise RowsMissing(f"{found} rows of {load.count} are in the sink")


class SQLStore(Store):
    """A database."""

    def __init__(self, url: str) -> None:
        """``url``: SQLAlchemy's."""
        self._engine = create_engine(url, poolclass=NullPool)

    def execute(self, *statements: str) -> None:
        """Run statements, each by itself."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def count(self, first: str, last: str) -> int:
        query = text(
            "SELECT count(*) FROM translation_tasks WHERE task_id BETWEEN :first AND :last"
            " AND status = :status AND retry_count = :retries AND end_time IS NOT NULL"
        )
        values = {"first": first, "last": last, "status": _LAST["status"], "retries": _LAST["retry_count"]}
        with self._engine.connect() as connection:
            return int(connection.execute(query, values).scalar_one())


class LinesStore(Store):
    """A directory with JSON lines, folded by the merge rule. What it has read once it does not read again."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "tasks.jsonl"
        self._read = 0
        self._states: dict[str, _State] = {}

    def count(self, first: str, last: str) -> int:
        with self._file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                newer = _decoder.decode(line)
                state = self._states.setdefault(newer.task_id, newer)
                state.retry_count = state.retry_count if newer.retry_count is UNSET else newer.retry_count
                state.status = state.status if newer.status is UNSET else newer.status
            self._read = lines.tell()
        return sum(
            first <= name <= last and state.retry_count == _LAST["retry_count"] and state.status == _LAST["status"]
            for name, state in self._states.items()
        )


class _State(msgspec.Struct, gc=False):
    task_id: str
    retry_count: int | UnsetType = UNSET
    status: str | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_State)
