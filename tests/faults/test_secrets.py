"""After any database error, the password appears in no output, log line, answer or file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy

from tests.process import Persistd, persistd
from tests.rows import task
from tests.servers import MariaDB, Postgres
from tornado_persist import cli
from tornado_persist.telemetry import redaction

#: Plain, and in each form that a URL may have. It is part of no other word.
PASSWORD = "Zw#eb/el qu:ark"
FORMS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), PASSWORD.replace(" ", "+"), "Zw", "qu:ark", "qu%3A")
ENCODED = quote(PASSWORD, safe="")


def assert_hidden(*texts: str) -> None:
    for text in texts:
        assert text
        assert [form for form in FORMS if form in text] == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def place_of(url: str) -> tuple[str, int, str]:
    parts = sqlalchemy.make_url(url)
    assert parts.host
    assert parts.port
    assert parts.database
    return parts.host, parts.port, parts.database


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    redaction.forget()


@pytest.fixture(params=["postgres", "mysql"])
def sink(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["wrong password", "unknown host", "refused port", "unknown database", "password in the query"])
def url(request: pytest.FixtureRequest, sink: str) -> Iterator[str]:
    """A URL with the password that leads to no database."""
    scheme = "postgresql" if sink == "postgres" else "mysql"
    server: Postgres | MariaDB = request.getfixturevalue("postgres_server" if sink == "postgres" else "mariadb_server")
    fresh = server.fresh_database()
    host, port, database = place_of(fresh)
    match request.param:
        case "wrong password":
            yield f"{scheme}://nobody:{ENCODED}@{host}:{port}/{database}"
        case "unknown host":
            yield f"{scheme}://nobody:{ENCODED}@no-such-host.invalid:{port}/{database}"
        case "refused port":
            yield f"{scheme}://nobody:{ENCODED}@127.0.0.1:{closed_port()}/{database}"
        case "unknown database":
            yield f"{scheme}://nobody:{ENCODED}@{host}:{port}/missing_{database}"
        case _:
            yield f"{scheme}://nobody@{host}:{port}/{database}?password={ENCODED}"
    server.drop(fresh)


def test_a_database_that_cannot_be_had(tmp_path: Path, sink: str, url: str) -> None:
    config = f"sink = '{sink}'\n[buffer]\ncapacity = 1\nflush_timeout = 1\n[sinks.{sink}]\nurl = '{url}'\n"
    with Persistd(tmp_path, config, server="shutdown_timeout = 0.5") as service:
        answers = [
            service.http.get("/health"),
            service.post("task", task("a")),
            service.http.post("/api/v1/persistence/flush"),
            service.http.get("/api/v1/persistence/stats"),
        ]
        assert answers[2].status_code == 503
        service.wait_for_log("flush failed")
        assert_hidden(*(answer.text for answer in answers))
        checked = persistd("check", "-c", str(service.file), cwd=tmp_path)
        assert checked.returncode == 1
        assert_hidden(checked.stdout + checked.stderr)
        assert service.stop() == 0
        assert_hidden(service.log_text())


@pytest.mark.parametrize(
    "wrong",
    [
        "{scheme}://me:{raw}@host:notaport/db",
        "{scheme}://me:{raw}@host:99999/db",
        "{scheme}://me:{encoded}@host:5432/db?nonsense=1",
        "{scheme}:/me:{raw}@host/db",
        "nosql://me:{encoded}@host/db",
        "{scheme}://me:{raw}@@host/db",
        "{scheme}://me:{raw}",
        "me:{raw}@host/db",
    ],
)
def test_a_malformed_url(
    sink: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scheme = "postgresql" if sink == "postgres" else "mysql"
    url = wrong.format(scheme=scheme, raw=PASSWORD, encoded=ENCODED)
    monkeypatch.setenv("PERSISTD_SINK", sink)
    monkeypatch.setenv(f"PERSISTD_SINKS__{sink.upper()}__URL", url)
    for command in ("run", "check"):
        assert cli.main([command, "-c", "/dev/null"]) == 2
    assert_hidden("".join(capfd.readouterr()))


@pytest.mark.parametrize("place", ["file", "variable"])
def test_a_configuration_that_is_no_table(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = f'url = "postgresql://me:{PASSWORD}@host/db'
    (tmp_path / "persistd.toml").write_text("" if place == "variable" else f"[sinks.postgres]\n{line}\n")
    if place == "variable":
        monkeypatch.setenv("PERSISTD_SINKS__POSTGRES", f"{{{line}}}")
    assert cli.main(["check", "-c", str(tmp_path / "persistd.toml")]) == 2
    assert_hidden("".join(capfd.readouterr()))


def test_a_database_that_quotes_the_password_in_what_it_says(tmp_path: Path, postgres_url: str) -> None:
    parts = sqlalchemy.make_url(postgres_url)
    engine = sqlalchemy.create_engine(parts.set(drivername="postgresql+psycopg"), poolclass=sqlalchemy.NullPool)
    config = f"sink = 'postgres'\n[buffer]\nflush_interval = 3600\n[sinks.postgres]\nurl = '{postgres_url}'\n"
    with Persistd(tmp_path, config) as service:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN RAISE EXCEPTION 'not with {parts.password}'; END $$"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON translation_tasks FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        service.post("task", task("a"))
        assert service.flush()["rows_rejected"] == 1
        assert service.wait_for_log("rows rejected")["error"] == "not with ***"
        rejected = (service.data_dir / "rejected.jsonl").read_text()
        assert "not with ***" in rejected
        assert str(parts.password) not in rejected + service.log_text()
