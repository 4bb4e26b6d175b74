"""No secret appears in any output, log line, answer or file: passwords after any error of a database, tokens, keys."""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy

from tests.certificates import issue, save
from tests.process import Persistd, persistd
from tests.rows import task
from tests.servers import MariaDB, Postgres, free_port
from tornado_persist import cli
from tornado_persist.config import tokens
from tornado_persist.config.tokens import SCOPES
from tornado_persist.telemetry import log, redaction

#: Plain, and in each form that a URL may have. It is part of no other word.
PASSWORD = "Zw#eb/el qu:ark"
FORMS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), PASSWORD.replace(" ", "+"), "Zw", "qu:ark", "qu%3A")
ENCODED = quote(PASSWORD, safe="")


def assert_hidden(*texts: str) -> None:
    for text in texts:
        assert text
        assert [form for form in FORMS if form in text] == []


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
            yield f"{scheme}://nobody:{ENCODED}@127.0.0.1:{free_port()}/{database}"
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


#: Twice each: a configuration that is right, and one with a mistake beside the secret.
TOKEN, LINE = tokens.make("shop", SCOPES)
OTHER, OTHER_LINE = tokens.make("other", ["read"])
#: What nobody may see of a token: not its digest in full, for that is what the service believes.
SECRETS = (TOKEN, OTHER, TOKEN.removeprefix("pst_"), LINE.rpartition(":")[2], OTHER_LINE.rpartition(":")[2])


def hidden(*texts: str, secrets: Sequence[str]) -> None:
    for text in texts:
        assert [secret for secret in secrets if secret in text] == []


def written(service: Persistd) -> str:
    """All that the service has written, apart from rows: its log, and the files of its data directory."""
    files = [path for path in service.data_dir.rglob("*") if path.is_file() and path.suffix in ("", ".json", ".jsonl")]
    return service.log_text() + "".join(path.read_text(errors="replace") for path in files)


#: Read by anybody who may, in every form that the service has.
PAGES = (
    *("/", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/dashboard", "/docs", "/nowhere"),
    *(f"/api/v1/persistence/{path}" for path in ("stats", "history", "sessions", "tasks?status=nonsense")),
)


def test_tokens_and_keys_are_in_no_output(tmp_path: Path) -> None:
    save(tmp_path, "server", issue("server", issue("ca")))
    key = (tmp_path / "server.key").read_text()
    secrets = (*SECRETS, *key.splitlines()[1:-1])
    (tmp_path / "tokens").write_text(f"{OTHER_LINE}\n")
    config = f"""
        [auth]
        tokens = ["{LINE}"]
        tokens_file = "{tmp_path}/tokens"
        [tls]
        cert = "{tmp_path}/server.pem"
        key = "{tmp_path}/server.key"
        [buffer]
        flush_interval = 3600
    """
    with Persistd(tmp_path, config) as service:
        service.http = httpx.Client(base_url=service.url, verify=False, timeout=30)
        answers, own = [], []
        for token in (TOKEN, OTHER, TOKEN[:-1], TOKEN + "x"):
            # Where a careless client might put it.
            shown: list[dict[str, str]] = [
                {"Authorization": f"Bearer {token}"},
                {"Authorization": f"Basic {b64encode(f'{token}:{token}'.encode()).decode()}"},
                {"Authorization": token, "User-Agent": token, "X-Request-ID": token},
            ]
            for headers in shown:
                service.http.headers = httpx.Headers(headers)
                answers += [service.http.get(page) for page in PAGES]
                own.append(service.post("task", task("a", **{token: token})))
                own.append(service.post("task", task("a", status=token)))
                own.append(service.http.post("/api/v1/persistence/flush", content=token))
                own.append(service.http.get(f"/{token}?{token}={token}"))
        assert {answer.status_code for answer in [*answers, *own]} >= {200, 401, 403, 404, 422}
        hidden(*(answer.text for answer in answers), secrets=secrets)
        # The names of its own fields come back to a client, in an answer to it alone.
        hidden(*(re.sub(r"pst_[A-Za-z0-9_-]+", "", answer.text) for answer in own), secrets=secrets)
        variables = {"PERSISTD_TOKEN": TOKEN}
        for words in (
            *(["status"], ["status", "--json"], ["stats"], ["check"], ["flush"], ["reload"], ["ls", "sessions"]),
            *(["journal", "ls"], ["journal", "show"], ["journal", "export", "--all"], ["rejected", "ls"], ["config"]),
        ):
            done = persistd(*words, "-c", str(service.file), cwd=tmp_path, **variables)
            assert "Traceback" not in done.stderr, words
            hidden(done.stdout, done.stderr, secrets=secrets)
        assert service.stop() == 0
        assert "serving" in service.log_text()
        hidden(service.log_text(), secrets=secrets)


@pytest.mark.parametrize(
    "config",
    [
        "[auth]\ntokens = ['{token}']",
        "[auth]\ntokens = ['shop:write:{token}']",
        "[auth]\ntokens = '{line}'",
        "[auth]\ntokens = ['{line}', '{line}']",
        "[auth]\ntokens = ['{line}'",
        "[auth]\ntokens = ['{line}x']",
        "[auth]\ntokenz = ['{line}']",
        "[auth]\ntokens_file = '{directory}/tokens'",
        "[auth.tokens]\nshop = '{line}'",
        "[tls]\ncert = '{directory}/key'\nkey = '{directory}/key'",
        "[tls]\ncert = '{directory}/server.pem'\nkey = '{directory}/key'",
        "[tls]\ncert = '{directory}/server.pem'\nkey = '''{key}'''",
        "[sinks.postgres]\nurl_file = '{directory}/url'",
        "[sinks.postgres]\nurl = '{url}'\nurl_file = '{directory}/url'",
        "[sinks.mysql]\nurl_file = '''{url}'''",
    ],
)
def test_a_mistake_beside_a_secret_shows_none(tmp_path: Path, config: str) -> None:
    save(tmp_path, "server", issue("server", issue("ca")))
    key = (tmp_path / "server.key").read_text()
    url = f"postgresql://me:{ENCODED}@127.0.0.1:{free_port()}/x"
    (tmp_path / "key").write_text(key.replace("BEGIN", "BEGINN"))
    (tmp_path / "tokens").write_text(f"{LINE}\n{OTHER_LINE}:\nx:{TOKEN}\n")
    (tmp_path / "url").write_text(url.replace("postgresql", "postgressql"))
    values = {"token": TOKEN, "line": LINE, "directory": tmp_path, "url": url, "key": key}
    for name, value in values.items():
        config = config.replace(f"{{{name}}}", str(value))
    (tmp_path / "c.toml").write_text(f'sink = "sqlite"\n{config}\n')
    secrets = (*SECRETS, *FORMS, *key.splitlines()[1:-1])
    for words in (["run"], ["check"], ["config"], ["status"], ["start"]):
        done = persistd(*words, "-c", "c.toml", cwd=tmp_path)
        assert done.returncode in (1, 2, 3) or words in (["config"], ["status"]), done.stderr
        assert "Traceback" not in done.stderr
        hidden(done.stdout, done.stderr, secrets=secrets)


@pytest.mark.parametrize("sink", ["postgres", "mysql"], indirect=True)
def test_secrets_from_files_are_in_no_output(tmp_path: Path, sink: str) -> None:
    scheme = "postgresql" if sink == "postgres" else "mysql"
    (tmp_path / "url").write_text(f"{scheme}://nobody:{ENCODED}@127.0.0.1:{free_port()}/x\n")
    (tmp_path / "tokens").write_text(f'["{LINE}"]\n')
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    variables = {
        f"PERSISTD_SINKS__{sink.upper()}__URL_FILE": str(tmp_path / "url"),
        "PERSISTD_AUTH__TOKENS_FILE": str(tmp_path / "tokens"),
        "PERSISTD_SINK": sink,
    }
    secrets = (*SECRETS, *FORMS)
    (tmp_path / "tokens").write_text(f"{LINE}\n")
    with Persistd(
        tmp_path, "[buffer]\ncapacity = 1\nflush_timeout = 1\n", server="shutdown_timeout = 0.5", variables=variables
    ) as service:
        service.http.headers["Authorization"] = f"Bearer {TOKEN}"
        answers = [service.post("task", task("a")), service.http.post("/api/v1/persistence/flush")]
        answers += [service.http.get(page) for page in PAGES]
        service.wait_for_log("flush failed")
        hidden(*(answer.text for answer in answers), secrets=secrets)
        for words in (["status"], ["stats"], ["check"], ["flush"], ["config"], ["journal", "show"], ["rejected", "ls"]):
            done = persistd(
                *words, "-c", str(service.file), cwd=tmp_path, **variables, PERSISTD_TOKEN_FILE=str(tmp_path / "token")
            )
            assert "Traceback" not in done.stderr
            hidden(done.stdout, done.stderr, secrets=secrets)
        for wrong in ("PERSISTD_TOKEN", "PERSISTD_TOKEN_FILE"):  # a token that is none, a file's content as its name
            done = persistd("stats", "-c", str(service.file), cwd=tmp_path, **variables, **{wrong: f"{OTHER} x"})
            assert done.returncode != 0
            assert "Traceback" not in done.stderr
            hidden(done.stdout, done.stderr, secrets=secrets)
        service.kill()
        hidden(written(service), secrets=secrets)


def test_a_bug_shows_no_secret_in_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tracebacks have no variables; a message that quotes a secret is masked."""
    redaction.hide([f"postgresql://me:{ENCODED}@h/x"])
    log.configure("info", "json")
    try:
        shown = f"Bearer {TOKEN}"
        try:
            raise RuntimeError(f"{shown} and {PASSWORD}")
        except RuntimeError:
            log.get("tornado_persist.test").exception("a bug")
    finally:
        logging.getLogger().handlers.clear()
    said = "".join(capfd.readouterr())
    assert "RuntimeError: Bearer pst_*** and ***" in said
    hidden(said, secrets=(*SECRETS, PASSWORD))
