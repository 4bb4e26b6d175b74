"""The tables: the same fields as the models, and types that each database needs."""

from __future__ import annotations

from typing import Any, Required, get_origin, get_type_hints

import pytest
from sqlalchemy import Dialect, make_url
from sqlalchemy.schema import CreateTable

from tornado_persist.errors import BatchRejected
from tornado_persist.records.models import DEFAULTS, KEYS, KINDS, Kind, Session, Task
from tornado_persist.sinks.tables import TABLES, dump_json

MODELS: dict[Kind, Any] = {"session": Session, "task": Task}
TIMES = ["created_at", "updated_at"]


def ddl(kind: Kind, dialect: Dialect) -> str:
    return str(CreateTable(TABLES[kind]).compile(dialect=dialect))


def dialect(name: str, **attributes: bool) -> Dialect:
    made = make_url(f"{name}://").get_dialect()()
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


MYSQL = dialect("mysql+pymysql")
# What SQLAlchemy makes of it when the server says what it is.
MARIADB = dialect("mysql+pymysql", is_mariadb=True)
POSTGRES = dialect("postgresql+psycopg")
SQLITE = dialect("sqlite")


@pytest.mark.parametrize("kind", KINDS)
def test_tables_and_models_have_the_same_fields(kind: Kind) -> None:
    # The key's columns come first.
    others = (name for name in get_type_hints(MODELS[kind]) if name not in KEYS[kind])
    fields = [*KEYS[kind], *others, "extra", *TIMES]
    assert [column.name for column in TABLES[kind].c] == fields


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_required_or_counted_is_never_null(kind: Kind) -> None:
    hints = get_type_hints(MODELS[kind], include_extras=True)
    required = {name for name, hint in hints.items() if get_origin(hint) == Required}
    never = {*required, *DEFAULTS[kind], *TIMES}
    assert {column.name for column in TABLES[kind].c if not column.nullable} == never


@pytest.mark.parametrize("kind", KINDS)
def test_counters_and_nothing_else_have_a_default(kind: Kind) -> None:
    defaults = {column.name: column.server_default for column in TABLES[kind].c if column.server_default is not None}
    assert {name: str(getattr(default, "arg", None)) for name, default in defaults.items()} == {
        name: str(value) for name, value in DEFAULTS[kind].items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_the_primary_key(kind: Kind) -> None:
    assert [column.name for column in TABLES[kind].primary_key] == list(KEYS[kind])


@pytest.mark.parametrize(("dialect", "collation"), [(MYSQL, "utf8mb4_0900_bin"), (MARIADB, "utf8mb4_nopad_bin")])
def test_keys_compare_binary_without_padding_on_mysql_and_on_mariadb(dialect: Dialect, collation: str) -> None:
    sql = ddl("task", dialect)
    for name in ("task_id", "session_id", "batch_id"):
        assert f"{name} VARCHAR(64) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL" in sql


@pytest.mark.parametrize("dialect", [MYSQL, MARIADB], ids=["mysql", "mariadb"])
def test_mysql_tables_are_transactional_and_take_any_character(dialect: Dialect) -> None:
    sql = ddl("session", dialect)
    assert "ENGINE=InnoDB" in sql
    assert "DEFAULT CHARSET=utf8mb4" in sql.replace("CHARACTER SET=", "CHARSET=")


@pytest.mark.parametrize(
    ("dialect", "text", "json", "time"),
    [
        (MYSQL, "MEDIUMTEXT", "JSON", "DATETIME(6)"),
        (POSTGRES, "TEXT", "JSONB", "TIMESTAMP WITH TIME ZONE"),
        (SQLITE, "TEXT", "TEXT", "TEXT"),
    ],
    ids=["mysql", "postgresql", "sqlite"],
)
def test_each_database_has_its_types(dialect: Dialect, text: str, json: str, time: str) -> None:
    assert f"source_text {text} NOT NULL" in ddl("task", dialect)
    assert f"start_time {time}" in ddl("task", dialect)
    assert f"game_info {json}" in ddl("session", dialect)


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": 10**5000}], ids=["nan", "huge"])
def test_what_json_cannot_say_is_the_rows_fault(value: object) -> None:
    with pytest.raises(BatchRejected):
        dump_json(value)
