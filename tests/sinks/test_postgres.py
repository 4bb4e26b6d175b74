"""PostgreSQL alone: its URL, session and COPY, and whose fault its errors are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from tests.balancers import PgBouncer
from tests.servers import PASSWORD, USER, Postgres, database_of, free_port
from tests.sinks.readers import ids, read_postgres
from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import postgres
from tornado_persist.sinks.postgres import PostgresSettings, PostgresSink, Shortcut
from tornado_persist.sinks.sql import Blame
from tornado_persist.sinks.sqlreader import SQLReader
from tornado_persist.testing import SECOND, T0, merge, nothing, same, session, task

Run = Callable[[str], None]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres._TRANSACTION, "lock_timeout", "50ms")


@pytest.fixture
def make(postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., PostgresSink]]:
    sinks = []

    def make(url: str = postgres_url, **settings: Any) -> PostgresSink:
        sinks.append(PostgresSink(PostgresSettings(url=url, **settings), tmp_path))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


@pytest.fixture
def sink(make: Callable[..., PostgresSink]) -> PostgresSink:
    sink = make()
    sink.open()
    return sink


@pytest.fixture
def owner(postgres_url: str) -> Iterator[Run]:
    """Runs SQL as the owner of the database."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        def run(sql: str) -> None:
            connection.execute(sql.encode())

        yield run


@pytest.fixture
def admin(postgres_server: Postgres, postgres_url: str) -> Callable[[str], list[tuple[Any, ...]]]:
    """Runs SQL as the superuser."""
    return lambda sql: postgres_server.admin(sql, database_of(postgres_url))


def failure(sink: PostgresSink, batch: Batch) -> SinkError:
    with pytest.raises(SinkError) as caught:
        sink.write(batch)
    assert isinstance(caught.value.__cause__, psycopg.Error)
    return caught.value


def setting(sink: PostgresSink, name: str) -> str:
    """A setting in a transaction of the sink."""
    assert sink._connection is not None
    with sink._transaction(sink._connection, commit=False):
        value: str = sink._connection.exec_driver_sql(f"SHOW {name}").scalar_one()
        return value


# The URL


def test_a_unix_socket_and_libpqs_parameters_may_be_given(
    make: Callable[..., PostgresSink], postgres_url: str, postgres_server: Postgres
) -> None:
    directory, port = postgres_server.directory, postgres_server.port
    name = database_of(postgres_url)
    sink = make(f"postgresql://postgres@/{name}?host={directory}&port={port}&sslmode=disable&application_name=me")
    sink.open()
    assert setting(sink, "application_name") == "me"
    assert str(directory) in sink.describe()


def test_of_several_hosts_the_primary_is_taken_and_named(
    make: Callable[..., PostgresSink], postgres_server: Postgres, postgres_url: str
) -> None:
    port, name = postgres_server.port, database_of(postgres_url)
    with Postgres() as other:  # by now it is read-only, as a standby is
        other.admin(f"CREATE DATABASE {name} OWNER persist")
        other.set("default_transaction_read_only", "on")
        gone = free_port()
        hosts = f"127.0.0.1:{gone},127.0.0.1:{other.port},127.0.0.1:{port}"
        options = "target_session_attrs=read-write"
        for url in (
            f"postgresql://persist:secret@{hosts}/{name}?{options}",
            f"postgresql://persist:secret@/{name}?{options}&host=127.0.0.1,127.0.0.1&port={other.port},{port}",
            f"postgresql://persist:secret@/{name}?{options}&host=127.0.0.1:{other.port}&host=127.0.0.1:{port}",
        ):
            sink = make(url)
            assert f"127.0.0.1:{other.port},127.0.0.1:{port}/{name}" in sink.address
            sink.open()
            assert sink.describe().endswith(f" at 127.0.0.1:{port}/{name}")
            sink.write(Batch([session("s")]))
        sink = make(f"postgresql://persist:secret@{hosts}/{name}")
        sink.open()
        assert sink.describe().endswith(f" at 127.0.0.1:{port}/{name}"), "without the option, too"
    assert read_postgres(postgres_url)["session"].keys() == {("s",)}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://u:hush@h/d?host=h1,h2&port=1,2,3", "2 hosts and 3 ports"),
        ("postgresql://u:hush@/d?host=h1,h2,h3&port=1,2", "3 hosts and 2 ports"),
        ("postgresql://u:hush@/d?host=h1:1&host=h2:2&port=5", "not each host"),
        ("postgresql://u:hush@/d?port=1,2", "0 hosts and 2 ports"),
        ("postgresql://u:hush@h1:1,h2:70000/d", "a port in the URL"),
        ("postgresql://u:hush@h1:1,/d", "not a database URL"),
        ("postgresql://u:hush@h1,h2/d?host=h3", "not a database URL"),
    ],
)
def test_hosts_and_ports_that_do_not_fit_are_a_mistake_in_the_configuration(url: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        PostgresSettings.model_validate({"url": url})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://u:p@h1,h2/d", "h1,h2", None),
        ("postgresql://u:p@h1:1,h2/d", "h1,h2", "1,"),
        ("postgresql://[::1]:1,h2:2/d?sslmode=require", "::1,h2", "1,2"),
        ("postgresql://u@/d?host=h1,h2&port=5", "h1,h2", "5,5"),
        ("postgresql://u@h1:1,h2:2", "h1,h2", "1,2"),
    ],
)
def test_several_hosts_go_to_libpq_as_lists(url: str, host: str, port: str | None) -> None:
    parsed = PostgresSettings.model_validate({"url": url}).parsed
    assert (parsed.query.get("host"), parsed.query.get("port")) == (host, port)


def test_describe_names_version_and_place(sink: PostgresSink, postgres_url: str, postgres_server: Postgres) -> None:
    place = postgres_url.partition("@")[2]
    assert sink.describe().startswith(postgres_server.version)
    assert sink.describe().endswith(f" at {place}")


# The session


def test_odd_defaults_of_the_database_do_not_matter(
    make: Callable[..., PostgresSink], postgres_url: str, owner: Run
) -> None:
    for change in (
        "timezone = 'Asia/Shanghai'",
        "datestyle = 'German'",
        "client_encoding = 'LATIN1'",
        "synchronous_commit = 'off'",
        "default_transaction_isolation = 'serializable'",
        "statement_timeout = '1ms'",
        "standard_conforming_strings = off",
    ):
        owner(f'ALTER DATABASE "{database_of(postgres_url)}" SET {change}')
    sink = make()
    sink.open()
    row = task("a", context="\\ '翻译'")
    sink.write(Batch(tasks=[row]))
    assert setting(sink, "synchronous_commit") == "on"
    assert setting(sink, "transaction_isolation") == "read committed"
    assert setting(sink, "timezone") == "UTC"
    assert setting(sink, "statement_timeout") == "1min"
    owner(f'ALTER DATABASE "{database_of(postgres_url)}" RESET ALL')
    found = read_postgres(postgres_url)["task"]["s", "a"]
    assert (found["context"], found["created_at"]) == (row["context"], row["created_at"])


def test_stronger_durability_than_ours_is_left_alone(
    make: Callable[..., PostgresSink], postgres_url: str, owner: Run
) -> None:
    owner(f"ALTER DATABASE \"{database_of(postgres_url)}\" SET synchronous_commit = 'remote_apply'")
    sink = make()
    sink.open()
    assert setting(sink, "synchronous_commit") == "remote_apply"


def test_a_database_of_another_encoding_is_refused_when_it_opens(
    make: Callable[..., PostgresSink], postgres_server: Postgres, postgres_url: str
) -> None:
    postgres_server.admin(
        "CREATE DATABASE latin OWNER persist ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        sink = make(postgres_url.replace(database_of(postgres_url), "latin"))
        with pytest.raises(SinkUnavailable, match="encoding is LATIN1"):
            sink.open()
    finally:
        postgres_server.admin("DROP DATABASE latin WITH (FORCE)")


def many(*, at: Any = T0, start: int = 0, **fields: Any) -> Batch:
    return Batch([], [task(f"t{number:04}", at=at, **fields) for number in range(start, start + postgres._MANY)])


def test_many_new_rows_go_straight_into_their_table_and_known_ones_are_merged(
    sink: PostgresSink, postgres_url: str, owner: Run
) -> None:
    expected = nothing()
    # New ones; one that is there among new ones; all of them again, with fewer fields and while none is taken for new.
    for batch in (many(context="c"), many(start=postgres._MANY - 1), many(at=T0 + SECOND, status="failed")):
        sink.write(batch)
        merge(expected, batch)
        same(read_postgres(postgres_url), expected)
    # Failed tries left only dead rows.
    owner("CREATE FUNCTION no_update() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'an update'; END$$")
    owner("CREATE TRIGGER t BEFORE UPDATE ON translation_tasks FOR EACH ROW EXECUTE FUNCTION no_update()")
    for start in range(10_000, 15_000, 1000):
        sink.write(many(start=start))
    with pytest.raises(BatchRejected, match="an update"):
        sink.write(many())


def test_a_try_in_vain_is_not_repeated_for_longer_and_longer() -> None:
    shortcut = Shortcut()

    def pause() -> int:
        """How often it is skipped before the next try."""
        count = 0
        while not shortcut.worth_a_try():
            count += 1
        return count

    pauses = []
    for _ in range(9):
        pauses.append(pause())
        shortcut.failed()
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 64, 64]
    assert pause() == 64
    shortcut.succeeded()
    assert pause() == 0
    shortcut.failed()
    assert pause() == 1


def test_a_bad_row_among_many_new_ones_leaves_none_of_them(sink: PostgresSink, postgres_url: str, owner: Run) -> None:
    owner("ALTER TABLE translation_tasks ADD CONSTRAINT short CHECK (row_index < 100)")
    batch = many()
    setattr(batch.tasks[-1], "row_index", 100)  # noqa: B010
    assert isinstance(failure(sink, batch), BatchRejected)
    assert read_postgres(postgres_url)["task"] == {}
    setattr(batch.tasks[-1], "row_index", 99)  # noqa: B010
    sink.write(batch)
    assert len(read_postgres(postgres_url)["task"]) == postgres._MANY


def test_a_table_with_row_security_is_served(
    make: Callable[..., PostgresSink], postgres_url: str, admin: Callable[[str], list[tuple[Any, ...]]], owner: Run
) -> None:
    sink = make()
    sink.open()
    for table in ("translation_tasks", "translation_sessions"):
        owner(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        owner(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")  # for the owner, too
        owner(f"CREATE POLICY everything ON {table} USING (true) WITH CHECK (true)")
    sink.write(many())
    (count,) = admin("SELECT count(*) FROM translation_tasks")[0]
    assert count == postgres._MANY


# A pooler


@pytest.fixture
def pool(postgres_server: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres_server) as pool:
        yield pool


def test_what_was_written_through_a_pooler_survives_a_crash_and_nothing_is_left_to_its_other_clients(
    make: Callable[..., PostgresSink], postgres_server: Postgres, postgres_url: str, pool: PgBouncer, owner: Run
) -> None:
    name = database_of(postgres_url)
    # What would lose the rows: the default holds on every connection that the pooler has.
    owner(f"ALTER DATABASE \"{name}\" SET synchronous_commit = 'off'")
    postgres_server.set("wal_writer_delay", "10s")
    names = ("synchronous_commit", "lock_timeout", "statement_timeout", "timezone", "client_min_messages")
    try:
        with psycopg.connect(pool.url(name), autocommit=True, prepare_threshold=None) as other:

            def seen() -> list[str]:
                return [str(other.execute(f"SHOW {setting}".encode()).fetchone()) for setting in names]

            before = seen()
            # Another one's temporary table: temp_buffers cannot be set on that connection any more.
            other.execute("CREATE TEMPORARY TABLE theirs (n int)")
            other.execute("INSERT INTO theirs VALUES (1)")
            sink = make(pool.url(name))
            sink.open()
            assert seen() == before
            sink.write(many())
            sink.write(many(at=T0 + SECOND, status="failed"))
            assert seen() == before
            assert other.execute("SELECT relname FROM pg_class WHERE relpersistence = 't'").fetchall() == [("theirs",)]
            sink.write(many(start=postgres._MANY))
        time.sleep(0.06)
        postgres_server.kill()
    finally:
        postgres_server.start()
        postgres_server.set("wal_writer_delay", None)
    stored = read_postgres(postgres_url)["task"]
    assert len(stored) == 2 * postgres._MANY
    assert {row["status"] for row in stored.values()} == {"failed", "pending"}


def test_a_connection_that_the_server_ended_while_it_was_idle_costs_no_write(
    sink: PostgresSink, postgres_url: str, admin: Callable[[str], list[tuple[Any, ...]]]
) -> None:
    sink.write(Batch([session("s")]))
    others = f"FROM pg_stat_activity WHERE datname = '{database_of(postgres_url)}' AND pid <> pg_backend_pid()"
    admin(f"SELECT pg_terminate_backend(pid) {others}")
    while admin(f"SELECT 1 {others}"):
        time.sleep(0.01)
    sink.write(Batch([session("t")]))
    assert sink.find_sessions({"s", "t"}) == {"s", "t"}


# No answer


def test_a_server_that_stops_in_mid_write_fails_it_in_time(
    make: Callable[..., PostgresSink], postgres_server: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "GRACE", 0.5)
    sink = make(answer_timeout=0.5)
    sink.open()
    writes: list[Callable[[], None]] = [lambda: sink.write(many()), sink.ping]  # one by COPY
    for write in writes:
        postgres_server.suspend()
        began = time.monotonic()
        with pytest.raises(SinkUnavailable, match="has not answered for 1 seconds"):
            write()
        assert time.monotonic() - began < 5
        postgres_server.resume()
        sink.close()
        sink.open()
    sink.write(many())
    assert len(read_postgres(postgres_url)["task"]) == postgres._MANY


def test_an_old_primary_whose_commits_wait_for_ever_is_tried_last(
    make: Callable[..., PostgresSink], postgres_server: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as its cluster manager is stopped it takes connections, says that it can be written to, and has no
    standby any more.
    """
    monkeypatch.setattr(postgres, "GRACE", 0.5)
    with Postgres() as old:
        name = database_of(postgres_url)
        old.create_database(name)
        url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{old.port},127.0.0.1:{postgres_server.port}/{name}"
        sink = make(url=url, answer_timeout=0.5)
        sink.open()
        assert f":{old.port}/" in sink.describe()
        sink.write(Batch([session("s")]))
        old.set("synchronous_standby_names", "nobody")
        sink.close()
        sink.open()
        with pytest.raises(SinkUnavailable, match="has not answered"):
            sink.write(Batch([session("s")]))
        sink.open()
        assert f":{postgres_server.port}/" in sink.describe()
        sink.write(Batch([session("s")]))
    assert ids(read_postgres(postgres_url)["session"]) == {"s"}


def test_a_statement_that_takes_too_long_is_ended_and_the_connection_goes_on(
    make: Callable[..., PostgresSink], postgres_url: str, owner: Run
) -> None:
    sink = make(answer_timeout=0.5)
    sink.open()
    connection = sink._connection
    owner(RAISE_CODE.replace("IF NEW", "PERFORM pg_sleep(0.01); IF NEW").format("P0001"))
    error = failure(sink, many(context="c"))
    assert (type(error), error.code) == (SinkUnavailable, "57014")
    sink.write(Batch(tasks=many(context="c").tasks[:2]))
    assert sink._connection is connection
    assert len(read_postgres(postgres_url)["task"]) == 2


def test_a_commit_that_no_standby_confirms_is_no_success(
    make: Callable[..., PostgresSink], postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "GRACE", 0.5)
    sink = make(answer_timeout=0.5)
    sink.open()
    postgres_server.set("synchronous_standby_names", "nobody")
    try:
        sink.close()
        sink.open()
        with pytest.raises(SinkUnavailable, match="has not answered"):
            sink.write(Batch([session("s")]))
    finally:
        postgres_server.set("synchronous_standby_names", None)
    sink.open()
    sink.write(Batch([session("s")]))


# The tables


def test_narrower_and_wider_tables_are_served(
    make: Callable[..., PostgresSink], sink: PostgresSink, owner: Run, postgres_url: str
) -> None:
    owner("ALTER TABLE translation_tasks ALTER task_id TYPE text, ADD region text DEFAULT 'x', ALTER context TYPE text")
    sink.write(Batch(tasks=[task("a")]))
    again = make(create_tables=False)
    again.open()
    again.write(Batch(tasks=[task("b")]))
    assert ids(read_postgres(postgres_url)["task"]) == {"a", "b"}


@pytest.mark.parametrize("count", [1, postgres._MANY])
def test_columns_of_other_types_are_served(
    make: Callable[..., PostgresSink], sink: PostgresSink, owner: Run, postgres_url: str, count: int
) -> None:
    owner("CREATE TYPE \"odd\"\"state\" AS ENUM ('pending', 'processing', 'completed', 'failed')")
    owner("CREATE DOMAIN small AS text CHECK (length(value) < 100)")
    owner("ALTER TABLE translation_tasks ALTER task_id TYPE uuid USING task_id::uuid")
    owner('ALTER TABLE translation_tasks ALTER status TYPE "odd""state" USING status::"odd""state"')
    owner("ALTER TABLE translation_tasks ALTER batch_id TYPE small, ALTER start_time TYPE timestamp")
    again = make()
    again.open()
    for status in ("pending", "failed", "completed"):
        again.write(Batch(tasks=[task(f"00000000-0000-0000-0000-{n:012}", status=status) for n in range(count)]))
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT status::text, count(*) FROM translation_tasks GROUP BY 1").fetchall()
    assert found == [("completed", count)]
    key = (task("")["session_id"], "00000000-0000-0000-0000-000000000000")
    assert again.find_updated("task", [key]).keys() == {key}
    owner("ALTER TABLE translation_sessions ALTER session_id TYPE uuid USING session_id::uuid")
    assert failure(again, Batch([session(key[1])])).code == "42804", "it knows the types from when it was opened"
    again.open()
    again.write(Batch([session(key[1])]))
    assert again.find_sessions({key[1]}) == {key[1]}
    assert failure(again, Batch(tasks=[task("no uuid")])).code == "22P02"


def test_fields_beyond_the_specification_need_their_column_and_no_others_do(
    make: Callable[..., PostgresSink], sink: PostgresSink, owner: Run, postgres_url: str
) -> None:
    owner("ALTER TABLE translation_tasks DROP extra")
    again = make()
    again.open()
    again.write(Batch(tasks=[task("a")]))
    missing = failure(again, Batch(tasks=[task("b", extra={"n": 1})]))
    assert (missing.code, "extra" in str(missing)) == ("42703", True)


def test_a_column_widened_while_connected_takes_longer_values_at_once(sink: PostgresSink, owner: Run) -> None:
    owner("ALTER TABLE translation_tasks ALTER column_name TYPE varchar(3)")
    row = task("a", column_name="Text")
    assert failure(sink, Batch(tasks=[row])).code == "22001"
    owner("ALTER TABLE translation_tasks ALTER column_name TYPE varchar(4)")
    sink.write(Batch(tasks=[row]))


def test_what_will_cost_a_row_some_day_is_told(
    make: Callable[..., PostgresSink], sink: PostgresSink, owner: Run, postgres_url: str, postgres_server: Postgres
) -> None:
    assert sink.cautions() == []
    owner(
        "CREATE TYPE odd AS (a int); ALTER TABLE translation_tasks ADD theirs odd, ALTER column_name TYPE varchar(10),"
        " ALTER context TYPE varchar(500), ALTER duration_ms TYPE int, ALTER retry_count TYPE smallint;"
        " ALTER TABLE translation_tasks ADD CONSTRAINT fk FOREIGN KEY (session_id) REFERENCES translation_sessions"
    )
    problems = [caution.problem for caution in sink.cautions()]
    assert problems == [
        "translation_tasks.column_name takes 10 characters for certain, and a row may have 255",
        "translation_tasks.context takes 500 characters for certain, and a row may have 1,048,576",
        "translation_tasks.retry_count does not take integers of 32 bits",
        "translation_tasks.duration_ms does not take integers of 64 bits",
        "a foreign key from translation_tasks to translation_sessions rejects each task that arrives before its"
        " session",
    ]
    owner("ALTER TABLE translation_tasks DROP CONSTRAINT fk, ALTER column_name TYPE text, ALTER context TYPE text")
    owner("ALTER TABLE translation_tasks ALTER duration_ms TYPE bigint, ALTER retry_count TYPE int, SET UNLOGGED")
    assert [caution.problem.partition(":")[0] for caution in sink.cautions()] == ["translation_tasks is UNLOGGED"]
    owner("ALTER TABLE translation_tasks SET LOGGED")
    owner(f"ALTER DATABASE \"{database_of(postgres_url)}\" SET synchronous_commit = 'local'")
    postgres_server.set("synchronous_standby_names", "one")
    try:
        again = make(create_tables=False)
        again.open()
        assert "standby" in again.cautions()[0].problem
    finally:
        postgres_server.set("synchronous_standby_names", None)


# Whose fault it is: a row's


RAISE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.context = 'bad' THEN RAISE EXCEPTION 'not this one'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER x BEFORE INSERT OR UPDATE ON translation_tasks FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("ALTER TABLE translation_tasks ADD CONSTRAINT x CHECK (context <> 'bad')", "23514"),
        ("ALTER TABLE translation_tasks ADD CONSTRAINT x UNIQUE (context)", "23505"),
        ("ALTER TABLE translation_tasks ALTER target_text SET NOT NULL", "23502"),
        ("ALTER TABLE translation_tasks ALTER context TYPE varchar(2)", "22001"),
        ("ALTER TABLE translation_tasks ALTER duration_ms TYPE smallint", "22003"),
        (
            "ALTER TABLE translation_tasks ADD CONSTRAINT x FOREIGN KEY (session_id) REFERENCES translation_sessions",
            "23503",
        ),
        (RAISE, "P0001"),
    ],
)
def test_what_depends_on_a_rows_values_is_the_rows_fault(
    sink: PostgresSink, owner: Run, postgres_url: str, change: str, code: str
) -> None:
    good = task("good", session_id="s", context="ok", target_text="", duration_ms=1)
    bad = [task(key, session_id="none", context="bad", target_text=None, duration_ms=99999) for key in ("b1", "b2")]
    owner(change)
    error = failure(sink, Batch([session("s")], [good, *bad]))
    assert isinstance(error, BatchRejected)
    assert error.code == code
    assert "Failing row" not in str(error)
    assert "Hello" not in str(error)
    assert read_postgres(postgres_url) == {"session": {}, "task": {}}
    sink.write(Batch([session("s")], [good]))
    assert ids(read_postgres(postgres_url)["task"]) == {"good"}


def test_a_value_beyond_its_type_is_the_rows_fault(sink: PostgresSink) -> None:
    error = failure(sink, Batch(tasks=[task("a", duration_ms=2**63)]))
    assert isinstance(error, BatchRejected)
    assert error.code == "22003"
    assert str(2**63) not in str(error).partition(" ")[0]


@pytest.mark.parametrize("value", ["\ud800", "a\x00b"], ids=["surrogate", "nul"])
def test_a_text_that_no_encoding_takes_is_the_rows_fault(sink: PostgresSink, postgres_url: str, value: str) -> None:
    with pytest.raises(BatchRejected):
        sink.write(Batch([session("s")], [task("a", context=value)]))
    sink.write(Batch([session("s")], [task("a")]))
    assert ids(read_postgres(postgres_url)["task"]) == {"a"}


def test_a_row_that_row_security_refuses_is_suspect(sink: PostgresSink, owner: Run, postgres_url: str) -> None:
    owner("ALTER TABLE translation_tasks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    owner("CREATE POLICY mine ON translation_tasks USING (true) WITH CHECK (context <> 'theirs')")
    error = failure(sink, Batch(tasks=[task("a", context="mine"), task("b", context="theirs")]))
    assert (type(error), error.code, getattr(error, "unknown_code", None)) == (SinkUnavailable, "42501", True)
    sink.write(Batch(tasks=[task("a", context="mine")]))


# Whose fault it is: not a row's


SEQUENCE = """
CREATE SEQUENCE x MAXVALUE 2;
SELECT setval('x', 2);
ALTER TABLE translation_tasks ADD n bigint DEFAULT nextval('x');
"""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("DROP TABLE translation_tasks", "42P01"),
        ("ALTER TABLE translation_tasks DROP COLUMN context", "42703"),
        ("ALTER TABLE translation_tasks ADD region text NOT NULL", "23502"),
        ("ALTER TABLE translation_tasks DROP CONSTRAINT translation_tasks_pkey", "42P10"),
        (SEQUENCE, "2200H"),
    ],
)
def test_what_depends_on_the_schema_is_an_outage(
    sink: PostgresSink, owner: Run, postgres_url: str, change: str, code: str
) -> None:
    owner(change)
    error = failure(sink, Batch([session("s")], [task("a", context="x"), task("b", context="y")]))
    assert type(error) is SinkUnavailable
    assert (error.code, error.unknown_code) == (code, False)
    assert "Hello" not in str(error)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM translation_sessions").fetchone() == (0,)


def test_a_missing_table_and_missing_rights_are_noticed_by_ping(
    sink: PostgresSink, owner: Run, admin: Callable[[str], object]
) -> None:
    admin("ALTER TABLE translation_sessions OWNER TO postgres")
    with pytest.raises(SinkUnavailable, match="translation_sessions") as caught:
        sink.ping()
    assert caught.value.code == "42501"
    assert failure(sink, Batch([session("s")])).code == "42501"
    owner("DROP TABLE translation_tasks")
    admin("ALTER TABLE translation_sessions OWNER TO persist")
    with pytest.raises(SinkUnavailable, match="translation_tasks") as caught:
        sink.ping()
    assert caught.value.code == "42P01"


def test_a_server_that_turns_read_only_is_an_outage_that_ping_notices(
    make: Callable[..., PostgresSink], sink: PostgresSink
) -> None:
    assert sink._connection is not None
    driver = postgres._driver(sink._connection)
    driver.execute("SET default_transaction_read_only = on")
    driver.commit()
    with pytest.raises(SinkUnavailable) as caught:
        sink.ping()
    assert caught.value.code == "25006"
    assert isinstance(failure(sink, Batch([session("s")])), SinkUnavailable)


def test_a_role_that_may_make_no_temporary_tables_is_served(
    make: Callable[..., PostgresSink], sink: PostgresSink, postgres_url: str, admin: Callable[[str], object]
) -> None:
    name = database_of(postgres_url)
    admin(f'ALTER DATABASE "{name}" OWNER TO postgres')
    admin(f'REVOKE TEMPORARY ON DATABASE "{name}" FROM PUBLIC')
    again = make()
    again.open()
    again.write(many())
    again.write(many())


def test_another_writers_lock_is_an_outage_and_not_an_endless_wait(sink: PostgresSink, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("LOCK TABLE translation_tasks")
        error = failure(sink, Batch(tasks=[task("a")]))
        assert type(error) is SinkUnavailable
        assert (error.code, error.unknown_code) == ("55P03", False)
    sink.write(Batch(tasks=[task("a")]))


def test_the_driver_adds_no_line_of_its_own_when_the_connection_ends_before_the_commit(
    sink: PostgresSink, admin: Callable[[str], object], postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"
    with pytest.raises(SinkUnavailable), sink._using():
        admin(kill.format(database_of(postgres_url)))
    assert [record.getMessage() for record in caplog.records if record.name == "psycopg"] == []


def test_a_killed_connection_is_an_outage_that_opening_mends(
    sink: PostgresSink, postgres_url: str, admin: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"
    monkeypatch.setattr(sink, "_before_use", lambda connection: None)  # it ends in the moment after the look
    for call in (sink.ping, lambda: sink.write(Batch([session("s")], [task("a")]))):
        admin(kill.format(database_of(postgres_url)))
        with pytest.raises(SinkUnavailable):
            call()
        with pytest.raises(SinkUnavailable):
            call()
        sink.close()
        sink.open()
    sink.write(Batch([session("s")], [task("a")]))
    assert ids(read_postgres(postgres_url)["session"]) == {"s"}


# Whose fault it is: another writer's, or unknown


def test_a_deadlock_is_a_conflict_after_which_the_connection_goes_on(
    make: Callable[..., PostgresSink],
    postgres_server: Postgres,
    postgres_url: str,
    admin: Callable[[str], list[tuple[Any, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(postgres._TRANSACTION, "lock_timeout", "60s")
    name = database_of(postgres_url)
    # The transaction that detects the deadlock is the victim: it must be the sink's.
    admin(f"ALTER DATABASE \"{name}\" SET deadlock_timeout = '10ms'")
    sink = make()
    sink.open()
    batch = Batch([], [task("a"), task("b", context="x")])
    sink.write(batch)
    connection, upsert = sink._connection, sink._upsert
    with psycopg.connect(
        host=str(postgres_server.directory), port=postgres_server.port, user="postgres", dbname=name
    ) as other:
        other.execute("SET deadlock_timeout = '60s'")
        lock = "UPDATE translation_tasks SET status = 'failed' WHERE session_id = 's' AND task_id = %s"
        other.execute(lock, ["b"])
        waiting = threading.Thread(target=other.execute, args=(lock, ["a"]))

        def upsert_and_be_waited_for(*args: Any) -> None:
            upsert(*args)
            if not waiting.ident:
                waiting.start()
                deadline = time.monotonic() + 30
                while not admin("SELECT 1 FROM pg_locks WHERE NOT granted") and time.monotonic() < deadline:
                    time.sleep(0.01)

        monkeypatch.setattr(sink, "_upsert", upsert_and_be_waited_for)
        error = failure(sink, batch)
        waiting.join()
    assert isinstance(error, SinkConflict)
    assert (error.code, error.unknown_code) == ("40P01", False)
    assert {row["status"] for row in read_postgres(postgres_url)["task"].values()} == {"failed"}
    sink.write(batch)
    assert sink._connection is connection
    assert {row["status"] for row in read_postgres(postgres_url)["task"].values()} == {"pending"}


RAISE_CODE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.context = 'bad' THEN RAISE EXCEPTION 'that is odd' USING ERRCODE = '{}'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER x BEFORE INSERT OR UPDATE ON translation_tasks FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def test_a_conflict_at_the_commit_keeps_the_connection_and_leaves_nothing(
    sink: PostgresSink, owner: Run, postgres_url: str
) -> None:
    # As CockroachDB, YugabyteDB and a serializable transaction report it.
    owner(
        RAISE_CODE.format("40001")
        .replace("TRIGGER x BEFORE", "CONSTRAINT TRIGGER x AFTER")
        .replace("FOR EACH ROW", "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")
    )
    connection = sink._connection
    error = failure(sink, Batch([session("s")], [task("a"), task("b", context="bad")]))
    assert (type(error), error.code) == (SinkConflict, "40001")
    assert read_postgres(postgres_url) == {"session": {}, "task": {}}
    sink.write(Batch([session("s")], [task("a")]))
    assert sink._connection is connection
    assert ids(read_postgres(postgres_url)["task"]) == {"a"}


@pytest.mark.parametrize(
    ("code", "expected", "unknown_code"),
    [
        ("40001", SinkConflict, False),
        ("AB123", SinkUnavailable, True),
        ("45000", SinkUnavailable, True),
        ("P0002", SinkUnavailable, True),
        ("44000", SinkUnavailable, True),
        ("54001", SinkUnavailable, True),
        ("XX000", SinkUnavailable, True),
        # Codes that are the server's fault, unless a trigger raises them for one row.
        ("XX001", SinkUnavailable, True),
        ("42501", SinkUnavailable, True),
        ("53100", SinkUnavailable, True),
    ],
)
def test_a_code_of_a_triggers_own_is_a_conflict_or_an_outage_or_suspect(
    sink: PostgresSink, owner: Run, postgres_url: str, code: str, expected: type[SinkUnavailable], unknown_code: bool
) -> None:
    owner(RAISE_CODE.format(code))
    connection = sink._connection
    error = failure(sink, Batch([session("s")], [task("a"), task("b", context="bad")]))
    assert type(error) is expected
    assert (error.code, error.unknown_code, str(error)) == (code, unknown_code, "that is odd")
    assert read_postgres(postgres_url) == {"session": {}, "task": {}}
    sink.write(Batch([session("s")], [task("a")]))
    assert sink._connection is connection


def test_an_index_entry_too_large_is_suspect(sink: PostgresSink, owner: Run) -> None:
    owner("CREATE INDEX x ON translation_tasks (source_text)")
    noise = "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(20_000))
    error = failure(sink, Batch([], [task("a"), task("b", source_text=noise)]))
    assert isinstance(error, SinkUnavailable)
    assert (error.code, error.unknown_code) == ("54000", True)
    assert noise[:10] not in str(error)


@pytest.mark.parametrize("code", ["AB123", "40001", "P0001"])
def test_a_ping_suspects_no_row_and_knows_no_conflict(sink: PostgresSink, owner: Run, code: str) -> None:
    owner(RAISE_CODE.format(code).replace("NEW.context = 'bad'", "true").replace("EACH ROW", "EACH STATEMENT"))
    with pytest.raises(SinkUnavailable) as caught:
        sink.ping()
    assert type(caught.value) is SinkUnavailable
    assert (caught.value.code, caught.value.unknown_code) == (code, False)


def test_an_error_without_a_code_is_an_outage(sink: PostgresSink) -> None:
    fault = sink._fault(psycopg.OperationalError("the connection is closed"))
    assert (fault.blame, fault.code) == (Blame.SERVER, "")


def test_a_read_is_read_only_sees_one_state_and_has_a_time_limit(sink: PostgresSink) -> None:
    reader = sink.reader()
    assert isinstance(reader, SQLReader)
    reader.open()
    names = ("transaction_read_only", "transaction_isolation", "statement_timeout")
    found = reader._run(lambda connection: [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names])
    reader.close()
    assert found == ["on", "repeatable read", "5s"]
