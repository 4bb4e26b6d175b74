"""The rights that README, docs and ``conf/`` give the service in a database: enough for all it does, none to spare."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pymysql
import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.mysql import base, mariadb
from sqlalchemy.schema import CreateTable

from tests.process import Persistd, persistd
from tests.rows import session, task
from tests.servers import Server
from tests.sinks.readers import TABLES as NAMES
from tests.sinks.readers import connect_mysql
from tornado_persist import testing
from tornado_persist.errors import SinkError
from tornado_persist.records.models import FIELD_TIMES, Batch
from tornado_persist.records.queries import Query
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Expiry
from tornado_persist.sinks.guard import GUARDED
from tornado_persist.sinks.tables import DELETIONS, TABLES

ROOT = Path(__file__).parent.parent
SESSIONS, TASKS = NAMES["session"], NAMES["task"]
NOTES = DELETIONS.name
API = "/api/v1/persistence"
SIMPLE = ("README.rst", "README.zh.rst", "docs/sinks.rst", "docs/reference.zh.rst")
FILES = {"postgres": "postgres.sql", "mysql": "mysql.sql"}
_numbers = itertools.count(1)


def blocks(page: str) -> list[str]:
    """What a page has somebody type into a database's own client."""
    found = re.findall(r"(?m)(?:^ +\S.*\n)+", (ROOT / page).read_text())
    return [
        re.sub("(?m)^ +", "", block)
        for block in found
        if re.search(r"(?m)^ +CREATE (ROLE|USER) persist|'persist'@", block)
    ]


def documented(sink: str, *, strict: bool = False, page: str = "docs/sinks.rst") -> str:
    (block,) = (
        one
        for one in blocks(page)
        if ("CREATE ROLE" in one) == (sink == "postgres") and "CREATE DATABASE" in one and ("conf/" in one) == strict
    )
    return block


class Place(NamedTuple):
    """A database made by an administrator who follows the documentation."""

    server: Server
    sink: str
    #: Of database and role; the documentation's is ``persist``.
    name: str
    url: str

    def admin(self, sql: str) -> list[tuple[Any, ...]]:
        return self.server.admin(sql, self.name)

    def follow(self, text: str) -> None:
        """Do what a page says: SQL, and the commands of psql and mysql."""
        database, statement = "", ""
        for line in re.sub(r"\bpersist\b", self.name, text).splitlines():
            if match := re.fullmatch(r"(?:\\connect|USE) (\w+)", line):
                database = match[1]
            elif match := re.fullmatch(r"(?:\\i|SOURCE) (\S+)", line):
                assert database == self.name
                self.follow_file(ROOT / match[1])
            elif not line.startswith("--"):
                statement += line + "\n"
                if line.endswith(";"):
                    self.server.admin(statement, database)
                    statement = ""
        assert not statement.strip(), statement

    def follow_file(self, file: Path, *, several: bool = False) -> None:
        text = re.sub(r"\bpersist\b", self.name, file.read_text())
        if several:
            head, last = text.split("\n-- Only for writers", 1)
            text = head + "\n-- " + re.sub("(?m)^-- ", "", last)
        for statement in re.sub(r"(?m)^--.*\n", "", text).split(";\n"):
            if statement.strip():
                self.admin(statement)

    def remove(self) -> None:
        if self.sink == "postgres":
            self.server.admin(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
            self.server.admin(f"DROP ROLE IF EXISTS {self.name}")
        else:
            self.server.drop_database(self.name)
            self.server.admin(f"DROP USER IF EXISTS '{self.name}'@'%'")

    def __call__(self, **settings: Any) -> dict[str, str]:
        """Everything that the service asks of a sink, and the error's code where it fails."""
        sink_class = registry.find(self.sink)
        sink = sink_class(sink_class.Settings.model_validate({"url": self.url, **settings}), Path())
        result: dict[str, str] = {}

        def attempt(name: str, *calls: Callable[[], object]) -> None:
            try:
                for call in calls:
                    call()
            except SinkError as exc:
                result[name] = exc.code or str(exc)

        new = [testing.task(f"t{number}", target_text="x") for number in range(600)]
        old = Expiry("completed", testing.T0)
        attempt("open", sink.open)
        attempt("ping", sink.ping)
        attempt("write", lambda: sink.write(Batch([testing.session()], new)))
        attempt(
            "update",
            lambda: sink.write(Batch([testing.session(extra={"a": 1})], [testing.task("t1", status="failed")])),
        )
        attempt("look up", lambda: sink.find_sessions(["s"]), lambda: sink.find_updated("task", [("s", "t1")]))
        attempt("look at it", sink.cautions)
        reader = sink.reader()
        assert reader is not None
        attempt(
            "read",
            reader.open,
            lambda: [reader.page(Query("session"), 1 << 20), reader.page(Query("task"), 1 << 20)],
            lambda: [reader.count(Query("task")), reader.count_tasks(["s"])],
        )
        attempt(
            "delete",
            lambda: sink.find_expired(old, None, 10),
            lambda: sink.find_expired(Expiry(None, testing.T0), None, 10),
            lambda: sink.note_deletion("s", "", testing.T0 - timedelta(days=1)),
            lambda: sink.delete_task("s", "t1"),
            lambda: sink.delete_sessions(["s"], 1000, old),
            lambda: sink.delete_sessions(["s"], 1000),
        )
        reader.close()
        sink.close()
        return result


@pytest.fixture(params=["postgres", "mysql"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Nothing yet: no role, no database."""
    sink: str = request.param
    server: Server = request.getfixturevalue({"postgres": "postgres_server", "mysql": "mariadb_server"}[sink])
    name = f"least_{next(_numbers)}"
    made = Place(server, sink, name, f"{server.scheme}://{name}:secret@127.0.0.1:{server.port}/{name}")
    try:
        yield made
    finally:
        made.remove()


def old_schema(place: Place) -> None:
    """The schema as PostgreSQL had it before version 15: everybody could make tables in it. Take that away."""
    if place.sink == "postgres":
        place.admin("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def test_every_page_gives_the_same_rights() -> None:
    for sink in FILES:
        assert len({documented(sink, page=page) for page in SIMPLE}) == 1
    assert blocks("docs/tutorial.rst") == [documented("postgres")]
    for page in (*SIMPLE, "docs/tutorial.rst", "docs/security.rst", "docs/scaling.rst", "docs/running.rst"):
        assert not re.search(r"GRANT ALL|OWNER persist|SUPERUSER", (ROOT / page).read_text()), page


@pytest.mark.parametrize("strict", [False, True])
def test_the_documented_rights_are_enough_for_everything(place: Place, strict: bool) -> None:
    place.follow(documented(place.sink, strict=strict))
    for _ in range(2):  # the tables are missing, and then there
        assert place(create_tables=not strict) == {}


@pytest.mark.parametrize("strict", [False, True])
def test_the_service_writes_reads_and_deletes_with_them(place: Place, strict: bool, tmp_path: Path) -> None:
    place.follow(documented(place.sink, strict=strict))
    config = (
        f"sink = '{place.sink}'\n[buffer]\nflush_interval = 3600\n[records]\nunknown_fields = 'keep'\n"
        f"[retention]\ncompleted = '90d'\n[sinks.{place.sink}]\nurl = '{place.url}'\n"
        f"create_tables = {str(not strict).lower()}\n"
    )
    with Persistd(tmp_path, config) as service:
        for name in ("a", "b"):
            service.post("session", session(name, status="completed", colour="red"))
            service.post("task", task("t", session_id=name))
        assert service.flush()["tasks_written"] == 2
        read = service.http.get(f"{API}/sessions/a").json()
        assert (read["extra"], read["tasks"]["pending"]) == ({"colour": "red"}, 1)
        deleted = service.http.delete(f"{API}/sessions/a").json()
        assert (deleted["sessions_deleted"], deleted["tasks_deleted"]) == (1, 1)
        for table in (SESSIONS, TASKS):
            place.admin(f"UPDATE {table} SET updated_at = '2020-01-01'")
        cleaned = service.http.post(f"{API}/sessions/cleanup", params={"trust_clock": "true"}).json()
        assert (cleaned["sessions"], cleaned["tasks"]) == (1, 1)
        checked = persistd("check", "-c", str(service.file), cwd=tmp_path)
        assert (checked.returncode, "rows cannot be deleted" in checked.stdout) == (0, False)
        service.post("session", session("c"))
        assert service.flush()["sessions_written"] == 1
        take_delete_away(place, strict)
        assert service.http.delete(f"{API}/sessions/c").status_code == 503
        service.post("session", session("d"))
        assert service.flush()["sessions_written"] == 1
        assert service.http.get("/health").json()["status"] == "healthy"
        checked = persistd("check", "-c", str(service.file), cwd=tmp_path)
    assert checked.returncode == 0
    assert re.search(r"sink +\[retention\] is on, and rows cannot be deleted: .*(denied|permission)", checked.stdout)
    assert "warning -> grant the user DELETE on both tables, or turn [retention] off" in checked.stdout


def grants(place: Place, strict: bool) -> list[tuple[str, str, str]]:
    """The rights that are given, one each: what, on what, to whom."""
    text = (ROOT / "conf" / FILES[place.sink]).read_text() if strict else documented(place.sink)
    found = []
    text = re.sub(r"\bpersist\b", place.name, text)
    for rights, where, role in re.findall(r"(?m)^GRANT (.*) ON (.*) TO (.*);$", text):
        found += [(right, one, role) for right in rights.split(", ") for one in where.split(", ")]
    return found


def take_delete_away(place: Place, strict: bool) -> None:
    """The user of the simple way owns its tables in PostgreSQL, which gives all rights."""
    given = grants(place, strict)
    if place.sink == "postgres":
        given = [("DELETE", table, place.name) for table in (SESSIONS, TASKS)]
    for right, where, role in given:
        if right == "DELETE":
            place.admin(f"REVOKE DELETE ON {where} FROM {role}")
    if place.sink == "mysql":  # rights on a database hold for a connection until it ends
        for (number,) in place.admin(f"SELECT id FROM information_schema.processlist WHERE user = '{place.name}'"):
            place.admin(f"KILL {number}")


@pytest.mark.parametrize("strict", [False, True])
def test_no_right_is_superfluous(place: Place, strict: bool) -> None:
    place.follow(documented(place.sink, strict=strict))
    old_schema(place)
    tried = Counter[str]()
    for right, where, role in grants(place, strict):
        place.admin(f"REVOKE {right} ON {where} FROM {role}")
        lost = place(create_tables=not strict)
        place.admin(f"GRANT {right} ON {where} TO {role}")
        tried[right] += 1
        if right == "DELETE":
            assert lost.keys() == {"delete"}, (right, where, lost)
        else:
            assert "write" in lost, (right, where, lost)
            assert {"open", "ping"} & lost.keys(), f"check does not notice: {right} on {where}"
        assert place(create_tables=not strict) == {}
        if not strict:
            for table in (SESSIONS, TASKS):
                place.admin(f"DROP TABLE {table}")
    both = dict.fromkeys(("SELECT", "INSERT", "UPDATE", "DELETE"), 2)
    assert (
        tried
        == {
            ("postgres", False): {"CREATE": 1},
            ("postgres", True): {"CONNECT": 1, "USAGE": 1, **both},
            ("mysql", False): {"CREATE": 1, **dict.fromkeys(both, 1)},
            ("mysql", True): both,
        }[place.sink, strict]
    )


#: What the user may not do, and what not in the strict way.
FORBIDDEN = {
    ("postgres", False): (
        *("CREATE SCHEMA x", "CREATE ROLE x", "CREATE DATABASE x", "DROP DATABASE {name}"),
        *("ALTER DATABASE {name} SET jit = off", "ALTER SYSTEM SET jit = off", "COPY (SELECT 1) TO PROGRAM 'true'"),
    ),
    ("postgres", True): (
        *("CREATE TABLE public.x (a int)", "CREATE TEMPORARY TABLE x (a int)", f"ALTER TABLE {TASKS} ADD x int"),
        *(f"DROP TABLE {TASKS}", f"TRUNCATE {TASKS}", f"CREATE INDEX x ON {TASKS} (status)"),
        f"CREATE VIEW public.x AS SELECT * FROM {TASKS}",
    ),
    ("mysql", False): (
        *("CREATE DATABASE x", "CREATE USER x", "DROP DATABASE {name}", "SET GLOBAL max_connections = 10"),
        *(f"DROP TABLE {TASKS}", f"TRUNCATE {TASKS}", f"ALTER TABLE {TASKS} ADD x int"),
        *(f"CREATE INDEX x ON {TASKS} (status)", f"CREATE VIEW x AS SELECT * FROM {TASKS}"),
        *("CREATE TEMPORARY TABLE x (a int)", f"LOCK TABLES {TASKS} WRITE", "SELECT * FROM mysql.user"),
        *("SELECT 1 INTO OUTFILE '/tmp/x'", "GRANT SELECT ON {name}.* TO {name}@'%'"),
    ),
    ("mysql", True): ("CREATE TABLE x (a int)",),
}


@pytest.mark.parametrize("strict", [False, True])
def test_more_is_not_permitted(place: Place, strict: bool) -> None:
    place.follow(documented(place.sink, strict=strict))
    assert place(create_tables=not strict) == {}
    for sql in FORBIDDEN[place.sink, False] + FORBIDDEN[place.sink, True] * strict:
        statement = sql.format(name=place.name)
        if place.sink == "postgres":
            with psycopg.connect(place.url, autocommit=True) as connection, pytest.raises(psycopg.Error) as refused:
                connection.execute(statement.encode())
            assert refused.value.sqlstate == "42501", (sql, refused.value)
        else:
            with connect_mysql(place.url) as other, other.cursor() as cursor, pytest.raises(pymysql.Error) as denied:
                cursor.execute(statement)
            assert denied.value.args[0] in {1044, 1045, 1142, 1227}, (sql, denied.value)


def test_the_simple_way_turns_into_the_strict_one(place: Place) -> None:
    place.follow(documented(place.sink))
    assert place() == {}
    (change,) = (
        text
        for text in re.findall(r"(?m)(?:^ +\S.*\n)+", (ROOT / "docs/sinks.rst").read_text())
        if "REVOKE CREATE" in text and ("OWNER TO" in text) == (place.sink == "postgres")
    )
    for statement in re.sub("(?m)^ +", "", change).splitlines():
        place.admin(re.sub(r"\bpersist\b", place.name, statement))
    assert place(create_tables=False) == {}
    for table in (SESSIONS, TASKS):
        place.admin(f"DROP TABLE {table}")
    old_schema(place)
    assert place()["open"] in ("42501", "1142")


def test_the_right_to_select_is_enough_to_read(place: Place) -> None:
    place.follow(documented(place.sink, strict=True))
    assert place(create_tables=False) == {}
    role = place.name if place.sink == "postgres" else f"'{place.name}'@'%'"
    for table in (SESSIONS, TASKS):
        where = table if place.sink == "postgres" else f"{place.name}.{table}"
        place.admin(f"REVOKE INSERT, UPDATE, DELETE ON {where} FROM {role}")
    assert "read" not in place(create_tables=False)


@pytest.mark.parametrize("strict", [False, True])
def test_several_writers_need_their_columns_and_once_the_right_to_add_them(place: Place, strict: bool) -> None:
    if strict:
        name = documented(place.sink, strict=True)
        place.follow(re.sub(r"(?m)^(\\i|SOURCE) .*\n", "", name))
        place.follow_file(ROOT / "conf" / FILES[place.sink], several=True)
        assert place(create_tables=False, writers="several") == {}
        where = NOTES if place.sink == "postgres" else f"{place.name}.{NOTES}"
        role = place.name if place.sink == "postgres" else f"'{place.name}'@'%'"
        lock = "write" if place.sink == "postgres" else "delete"
        for right, lost in {"SELECT": "open", "UPDATE": lock, "INSERT": "delete", "DELETE": "delete"}.items():
            place.admin(f"REVOKE {right} ON {where} FROM {role}")
            assert lost in place(create_tables=False, writers="several"), right
            place.admin(f"GRANT {right} ON {where} TO {role}")
        return
    place.follow(documented(place.sink))
    if place.sink == "mysql":
        assert place(writers="several")["open"] == "1142"
        place.admin(f"GRANT ALTER ON {place.name}.* TO '{place.name}'@'%'")
    assert place(writers="several") == {}
    if place.sink == "mysql":
        place.admin(f"REVOKE ALTER ON {place.name}.* FROM '{place.name}'@'%'")
        assert place(writers="several") == {}


def words(sql: str) -> list[str]:
    return re.findall(r"[\w.]+|[^\w\s]", sql)


@pytest.mark.parametrize("product", ["postgres", "mariadb", "mysql"])
def test_the_files_have_the_tables_that_the_service_makes(product: str) -> None:
    text = (ROOT / "conf" / FILES.get(product, "mysql.sql")).read_text()
    dialect: Any = {
        "postgres": postgresql.dialect,
        "mariadb": mariadb.MariaDBDialect,
        "mysql": base.MySQLDialect,
    }[product]()
    # Each reads its own comments: MariaDB does not look at those of MySQL 8.
    mine, others = (
        (r"/\*!80017 (.*?) \*/", r"/\*M! .*? \*/ ")
        if product == "mysql"
        else (r"/\*M! (.*?) \*/", r" /\*!80017 .*? \*/")
    )
    text = re.sub(mine, r"\1", re.sub(others, "", text))
    made = re.findall(r"(?s)^CREATE TABLE.*?;\n", text, re.MULTILINE)
    added = re.findall(r"(?s)^-- ALTER TABLE.*?;\n", text, re.MULTILINE)
    (noted,) = re.findall(r"(?s)^-- CREATE TABLE.*?;\n", text, re.MULTILINE)
    assert words(noted.replace("-- ", " "))[:-1] == words(str(CreateTable(DELETIONS).compile(dialect=dialect)))
    assert len(made) == len(added) == 2
    for kind, table, more in zip(TABLES, made, added, strict=True):
        assert words(table)[:-1] == words(str(CreateTable(TABLES[kind]).compile(dialect=dialect)))
        columns = [GUARDED[kind].c[name] for name in FIELD_TIMES[kind].values()]
        wanted = ", ".join(f"ADD COLUMN {one.name} {one.type.compile(dialect=dialect)} NULL" for one in columns)
        assert words(more.replace("-- ", " ")) == words(f"ALTER TABLE {NAMES[kind]} {wanted};")
