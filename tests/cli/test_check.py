"""What ``persistd check`` finds, and what it says to do about it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy

from tests.process import environment, persistd
from tornado_persist.cli import check
from tornado_persist.cli.check import Finding, hint
from tornado_persist.config import loading, tables
from tornado_persist.config.loading import Settings
from tornado_persist.errors import SinkUnavailable
from tornado_persist.files import DataDir
from tornado_persist.records.models import FIELD_TIMES
from tornado_persist.service import make_sink
from tornado_persist.sinks.postgres import PostgresSink

Look = Callable[..., list[Finding]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    for name in [name for name in os.environ if name.startswith("PERSISTD_")]:
        monkeypatch.delenv(name)

    def look(sink: str = "sqlite", **tables: dict[str, Any]) -> list[Finding]:
        tables["server"] = {"port": 0, **tables.get("server", {})}
        settings = Settings(data_dir=tmp_path / "data", sink=sink, **tables)  # type: ignore[arg-type]
        return list(check.look(settings, None))

    return look


def found(all_of_them: list[Finding], subject: str) -> Finding:
    """The worst finding of a subject."""
    return max((one for one in all_of_them if one.subject == subject), key=lambda one: one.level != "ok")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_good_place_has_nothing_to_be_done(look: Look, tmp_path: Path) -> None:
    DataDir(tmp_path / "data").make()
    made = make_sink(Settings(data_dir=tmp_path / "data"))
    made.open()
    made.close()
    every = look()
    subjects = ["configuration", "data_dir", "journal", "disk", "address", "sink", "tables"]
    assert [one.subject for one in every if one.subject != "disk"] == [name for name in subjects if name != "disk"]
    assert {one.level for one in every if one.subject != "disk"} == {"ok"}
    assert not any("->" in str(one) for one in every if one.subject != "disk")


def test_every_problem_comes_with_advice(look: Look) -> None:
    bad = look(
        journal={"max_bytes": 4096, "sync": "off"},
        server={"host": "203.0.113.1"},
        log={"file": "missing/x.log"},
        sinks={"sqlite": {"path": "persistd.pid/in/the/way"}},
    )
    for one in bad:
        assert (one.level == "ok") == (one.advice == ""), one


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_a_directory_of_another_user_is_a_warning(look: Look, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(0o750)
    os.chown(tmp_path / "data", 12345, 12345)
    finding = found(look(), "data_dir")
    assert finding.level == "warning"
    assert "uid 12345" in finding.text
    assert "sudo -u" in finding.advice


def test_a_directory_that_everybody_may_write_is_a_warning(look: Look, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    finding = found(look(), "data_dir")
    assert (finding.level, finding.advice) == ("warning", f"chmod o-w {tmp_path / 'data'}")
    (tmp_path / "data").chmod(0o755)
    finding = found(look(), "data_dir")
    assert (finding.level, finding.advice) == ("warning", f"chmod o-rx {tmp_path / 'data'}")


def test_a_holder_that_cannot_be_seen_has_no_pid(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.make()
    data_dir.lock()
    try:
        assert found(look(), "data_dir").text.endswith(f"in use, pid {os.getpid()}")
        monkeypatch.setattr(DataDir, "holder", lambda self: None)  # in another container, or on another host
        assert found(look(), "data_dir").text.endswith(": in use, by a process that is not seen from here")
    finally:
        data_dir.unlock()


def test_a_journal_smaller_than_one_request_is_an_error(look: Look) -> None:
    limits = {"server": {"max_body_bytes": 10_000}}
    assert found(look(**limits, journal={"max_bytes": 10_040}), "journal").level == "ok"
    finding = found(look(**limits, journal={"max_bytes": 10_039}), "journal")
    assert finding.level == "error"
    assert "10040" in finding.advice


@pytest.mark.parametrize(("sync", "level"), [("always", "ok"), ("interval", "warning"), ("off", "warning")])
def test_each_sync_level_is_said_with_what_it_loses(look: Look, sync: str, level: str) -> None:
    finding = found(look(journal={"sync": sync}), "journal")
    assert finding.level == level
    assert "power cut" in finding.text


def test_a_disk_with_less_room_than_the_journal_may_take_is_a_warning(look: Look) -> None:
    assert found(look(journal={"max_bytes": 1 << 60}), "disk").level == "warning"
    assert found(look(journal={"max_bytes": 20 << 20}), "disk").level == "ok"


def test_a_port_that_is_taken_is_an_error_unless_the_service_has_it(look: Look, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        finding = found(look(server={"port": port}), "address")
        assert finding.level == "error"
        assert "ss -ltnp" in finding.advice
        holder = DataDir(tmp_path / "data")
        holder.make()
        holder.lock()
        try:
            assert found(look(server={"port": port}), "address").level == "ok"
        finally:
            holder.unlock()


@pytest.mark.parametrize(
    ("host", "level", "words"),
    [
        ("127.0.0.1", "ok", ""),
        ("::1", "ok", ""),
        ("0.0.0.0", "ok", ""),
        ("203.0.113.1", "error", "of this machine"),
        ("no-such-host.invalid", "error", "no known name"),
    ],
)
def test_the_address_is_one_to_listen_on_inside(look: Look, host: str, level: str, words: str) -> None:
    finding = found(look(server={"host": host}), "address")
    assert finding.level == level
    assert words in finding.advice


@pytest.mark.parametrize(("host", "told"), [("localhost", False), ("", True), ("0.0.0.0", True)])
def test_that_anybody_can_connect_is_a_warning(look: Look, host: str, told: bool) -> None:
    findings = [one for one in look(server={"host": host}) if one.subject == "access"]
    assert [one.level for one in findings] == ["warning"] * told
    assert all("anybody who reaches 0.0.0.0:" in one.text and "firewall" in one.advice for one in findings)


def test_a_log_file_without_its_directory_is_an_error(look: Look) -> None:
    assert found(look(log={"file": "x.log"}), "log").level == "ok"
    assert found(look(log={"file": "missing/x.log"}), "log").level == "error"


def test_an_sqlite_file_that_is_none_is_named(look: Look, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "persist.db").write_bytes(b"something else " * 100)
    finding = found(look(), "sink")
    assert finding.level == "error"
    assert "move the file away" in finding.advice


@pytest.mark.parametrize("sink", ["postgres", "mysql"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": "wrong", "username": "nobody"}, "correct user and password"),
        ({"host": "no-such-host.invalid"}, "host name"),
        ({"port": 0}, "start the server"),
        ({"database": "missing"}, "CREATE DATABASE|GRANT SELECT"),
    ],
)
def test_each_failure_of_a_database_has_its_hint(
    look: Look, sink: str, change: dict[str, Any], words: str, request: pytest.FixtureRequest
) -> None:
    url = sqlalchemy.make_url(request.getfixturevalue(f"{sink}_url"))
    if change.get("port") == 0:
        change = {"port": closed_port()}
    text = url.set(**change).render_as_string(hide_password=False)
    finding = found(look(sink, sinks={sink: {"url": text}}), "sink")
    assert finding.level == "error", finding
    assert any(word in finding.advice for word in words.split("|")), finding


def test_tables_that_are_missing_and_may_not_be_made_have_their_hint(look: Look, postgres_url: str) -> None:
    finding = found(look("postgres", sinks={"postgres": {"url": postgres_url, "create_tables": False}}), "sink")
    assert "create_tables = true" in finding.advice


def test_a_lock_on_the_tables_is_not_taken_for_a_firewall(look: Look, postgres_url: str) -> None:
    settings = {"postgres": {"url": postgres_url}}
    made = make_sink(Settings(sink="postgres", sinks=settings))
    made.open()
    made.close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("LOCK TABLE translation_tasks")
        finding = found(look("postgres", sinks=settings), "sink")
    assert (finding.level, "holds a lock" in finding.advice) == ("error", True), finding
    assert "holds a lock" in hint("mysql", SinkUnavailable("Lock wait timeout exceeded", code="1205"))


def test_an_unknown_error_has_advice_too() -> None:
    assert "journal" in hint("postgres", SinkUnavailable("the moon is full"))


@pytest.mark.parametrize(("sink", "port"), [("postgres", 28012), ("postgres", 42501), ("mysql", 1045), ("mysql", 1290)])
def test_a_port_is_not_taken_for_the_code_of_an_error(sink: str, port: int) -> None:
    assert hint(sink, SinkUnavailable(f"port {port} is odd")) == hint(sink, SinkUnavailable("something is odd"))
    assert hint(sink, SinkUnavailable("odd", code=str(port))) != hint(sink, SinkUnavailable("something is odd"))


def test_every_finding_is_a_line_and_its_advice_another() -> None:
    assert str(Finding("disk", "full", "warning", "make room")) == "disk           full\n       warning -> make room"
    assert str(Finding("disk", "fine")) == "disk           fine"


def test_the_shipped_configuration_has_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parent.parent.parent / "conf" / "persistd.toml"
    settings = loading.load(shipped).model_copy(update={"server": tables.Server(port=0)})
    assert not [one for one in check.look(settings, shipped) if one.level == "error"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may give up root's rights")
def test_a_part_of_the_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir(mode=0o700)
    os.chown(journal, 12345, 12345)
    program = (
        "from pathlib import Path; from tornado_persist.cli import check\n"
        "from tornado_persist.config.loading import Settings\n"
        f"for one in check.look(Settings(data_dir=Path({str(tmp_path)!r})), None): print(one)"
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert f"{journal} cannot be written\n         error -> give it to the service's user" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may give up root's rights")
def test_files_of_others_in_the_directory_are_no_error(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o750)
    os.chown(data, 12345, 12345)
    (data / "lost+found").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    program = (
        "from pathlib import Path; from tornado_persist.cli import check\n"
        "from tornado_persist.config.loading import Settings\n"
        f"for one in check._data_dir(check.DataDir(Path({str(data)!r})), False): print(one)"
    )
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    done = subprocess.run([*user, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == f"data_dir       {data}: writable\n"


def test_a_journal_that_is_nearly_full_is_a_warning(look: Look, tmp_path: Path) -> None:
    limits = {"server": {"max_body_bytes": 10_000}, "journal": {"max_bytes": 20_000}}
    journal = tmp_path / "data" / "journal"
    journal.mkdir(parents=True)
    (journal / "00000000000000000001.seg").write_bytes(bytes(15_900))
    assert found(look(**limits), "journal").level == "ok"
    (journal / "00000000000000000001.seg").write_bytes(bytes(16_000))
    finding = found(look(**limits), "journal")
    assert (finding.level, "batches get 503" in finding.text) == ("warning", True)


def test_json_has_every_finding_on_one_line(tmp_path: Path) -> None:
    url = f"postgresql://persist:secret@127.0.0.1:{closed_port()}/persist"
    variables = {"PERSISTD_DATA_DIR": f"{tmp_path}/data", "PERSISTD_SERVER__PORT": "0"}
    well = persistd("check", "--json", cwd=tmp_path, **variables)
    said = json.loads(well.stdout)
    assert (well.returncode, said["ok"], said["findings"][0]["subject"]) == (0, True, "configuration")
    bad = persistd(
        "check", "--json", cwd=tmp_path, **variables, PERSISTD_SINK="postgres", PERSISTD_SINKS__POSTGRES__URL=url
    )
    assert (bad.returncode, bad.stdout.count("\n"), "secret" in bad.stdout) == (1, 1, False)
    said = json.loads(bad.stdout)
    assert said["ok"] is False
    last = said["findings"][-1]
    assert (last["subject"], last["level"], "start the server" in last["advice"]) == ("sink", "error", True)


def every_path(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


@pytest.mark.parametrize(("sink", "file"), [("sqlite", "persist.db"), ("jsonl", "jsonl/sessions.jsonl")])
def test_it_creates_nothing_and_says_what_a_start_creates(look: Look, tmp_path: Path, sink: str, file: str) -> None:
    every = look(sink)
    assert every_path(tmp_path) == set()
    assert found(every, "data_dir").text == f"{tmp_path}/data: not there, a start creates it"
    assert any(one.text.startswith(f"{sink}: a start creates {tmp_path}/data/{file}") for one in every)
    assert {one.level for one in every if one.subject != "disk"} == {"ok"}
    (tmp_path / "data").mkdir(0o750)
    before = every_path(tmp_path)
    assert found(look(sink), "data_dir").text == f"{tmp_path}/data: writable"
    assert every_path(tmp_path) == before


@pytest.mark.parametrize("sink", ["postgres", "mysql"])
def test_it_creates_no_table(look: Look, sink: str, request: pytest.FixtureRequest) -> None:
    url = sqlalchemy.make_url(request.getfixturevalue(f"{sink}_url"))
    tables = {sink: {"url": url.render_as_string(hide_password=False)}}
    for _ in range(2):
        said = [one.text for one in look(sink, sinks=tables) if one.subject == "sink"]
        assert "at 127.0.0.1" in said[0] or "localhost" in said[0]
        assert said[1] == f"{sink}: a start creates table translation_sessions, table translation_tasks"
    made = make_sink(Settings(sink=sink, sinks=tables))
    made.open()
    made.close()
    assert found(look(sink, sinks=tables), "tables").text == "there, and writable"


@pytest.mark.parametrize("sink", ["sqlite", "postgres", "mysql"])
def test_it_adds_no_column_for_several_writers_and_names_each(
    look: Look, tmp_path: Path, sink: str, request: pytest.FixtureRequest
) -> None:
    place: dict[str, Any] = {"path": str(tmp_path / "x.db")}
    if sink != "sqlite":
        url = sqlalchemy.make_url(request.getfixturevalue(f"{sink}_url"))
        place = {"url": url.render_as_string(hide_password=False)}

    def said(**more: Any) -> Finding:
        findings = look(sink, sinks={sink: {**place, "writers": "several", **more}})
        return [one for one in findings if one.subject == "sink"][-1]

    made = make_sink(Settings(sink=sink, sinks={sink: place}, data_dir=tmp_path))
    made.open()
    made.close()
    for _ in range(2):
        assert said().text.startswith(f"{sink}: a start creates columns game_info_at, ")
        assert "target_text_at" in said().text.partition(" of table translation_sessions, columns ")[2]
    refused = said(create_tables=False)
    assert (refused.level, refused.advice) == ("error", "run these statements as the tables' owner")
    statements = refused.text.partition(" Run: ")[2].split("; ")
    assert len(statements) == (sum(map(len, FIELD_TIMES.values())) if sink == "sqlite" else 2) + 1
    scheme = {"sqlite": f"sqlite:///{tmp_path}/x.db"}.get(sink, "")
    if not scheme:
        scheme = place["url"].replace("postgresql:", "postgresql+psycopg:").replace("mysql:", "mysql+pymysql:")
    engine = sqlalchemy.create_engine(scheme, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    for create in (True, False):
        assert said(create_tables=create).level == "ok"


def test_a_place_where_nothing_can_be_created_is_an_error(look: Look, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = found(look(sinks={"sqlite": {"path": f"{tmp_path}/file/x.db"}}), "sink")
    assert finding.level == "error"
    assert finding.text == f"sqlite: {tmp_path}/file/x.db cannot be created in {tmp_path}/file"


def test_what_will_cost_a_row_some_day_is_a_warning(look: Look, postgres_url: str) -> None:
    sink = PostgresSink(PostgresSink.Settings(url=postgres_url), Path())
    sink.open()
    sink.close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE translation_tasks ALTER column_name TYPE varchar(10)")
    warning = found(look(sink="postgres", sinks={"postgres": {"url": postgres_url}}), "sink")
    assert (warning.level, "column_name takes 10 characters" in warning.text) == ("warning", True)
    assert "as wide" in warning.advice
