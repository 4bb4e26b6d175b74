"""The configuration file, the environment over it, and what is said about a wrong one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, BeforeValidator

from tests.process import persistd
from tornado_persist.config import loading
from tornado_persist.config.loading import Settings
from tornado_persist.errors import ConfigError
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import read_seconds, read_size

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "conf" / "persistd.toml"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("PERSISTD_"):
            monkeypatch.delenv(name)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def keys(model: type[BaseModel] | Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the settings, but those of the sinks."""
    for name, field in type(model).model_fields.items() if isinstance(model, BaseModel) else model.model_fields.items():
        if name == "sinks":
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def test_the_shipped_file_holds_every_key_at_its_default() -> None:
    shipped = flat(tomllib.loads(SHIPPED.read_text()))
    defaults = flat(loading.load(None).model_dump(mode="json"))
    defaults["data_dir"] = "data"  # a loaded one is absolute
    sinks = {
        f"sinks.{name}.{field}" for name in registry.names() for field in registry.find(name).Settings.model_fields
    }
    assert shipped.keys() == set(keys(Settings)) | sinks
    assert {key: value for key, value in shipped.items() if key not in sinks} == defaults
    loaded, bare = loading.load(SHIPPED), loading.load(None)
    for name in registry.names():
        assert loaded.sink_settings(name) == bare.sink_settings(name)


def test_every_key_of_the_shipped_file_has_a_comment_above_or_is_the_common_one() -> None:
    lines = SHIPPED.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+ =", line) and not line.startswith(("create_tables", "url =")):
            assert lines[number - 1].startswith("#"), line


def test_a_file_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    settings = loading.load(write(tmp_path / "c.toml", 'sink = "jsonl"\n[server]\nport = 9001\n'))
    assert (settings.sink, settings.server.port, settings.server.max_batch) == ("jsonl", 9001, 1000)


def test_the_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        tmp_path / "c.toml",
        'sink = "jsonl"\n[server]\nport = 9001\nmax_batch = 5\n[sinks.postgres]\ncreate_tables = false\n',
    )
    monkeypatch.setenv("PERSISTD_SINK", "postgres")
    monkeypatch.setenv("PERSISTD_SERVER__PORT", "9002")
    monkeypatch.setenv("PERSISTD_SINKS__POSTGRES__URL", "postgresql://me:secret@db.example/x")
    settings = loading.load(file)
    assert (settings.sink, settings.server.port, settings.server.max_batch) == ("postgres", 9002, 5)
    dumped = settings.sink_settings("postgres").model_dump()
    assert dumped["create_tables"] is False
    assert "secret" not in repr(settings.sink_settings("postgres"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("prot = 1", "prot"),
        ("[server]\nprot = 1", "server.prot"),
        ("[server]\nport = 'x'", "server.port"),
        ("[server]\nport = 70000", "server.port"),
        ("[buffer]\ncapacity = 0", "buffer.capacity"),
        ("[buffer]\nflush_interval = -1", "buffer.flush_interval"),
        ("[records]\nunknown_fields = 'maybe'", "records.unknown_fields"),
        ("server = 5", "server"),
        ("sink = 'oracle'", "sink"),
        ("instance = 'two words'", "instance"),
        ("[sinks.oracle]\nurl = 'x'", "sinks.oracle"),
        ("[sinks.sqlite]\npaht = 'x'", "sinks.sqlite.paht"),
        ("[sinks.postgres]\nurl = 'not a url'", "sinks.postgres.url"),
        ("[sinks.mysql]\nurl = 'postgresql://me:secret@h/x'", "sinks.mysql.url"),
    ],
)
def test_a_wrong_key_is_named_in_one_line(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load(write(tmp_path / "c.toml", text))
    assert caught.value.key == key
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PERSISTD_PROT", "1"),
        ("PERSISTD_SERVER__PROT", "1"),
        ("PERSISTD_SERVER__PORT", "x"),
        ("PERSISTD_SINK", "oracle"),
        ("PERSISTD_SINKS__SQLITE__PAHT", "x"),
        ("PERSISTD_SINKS__POSTGRES__URL", "me:secret"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        loading.load(None)
    assert str(caught.value).startswith(variable)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "missing.toml", write(tmp_path / "bad.toml", "a = \n"), tmp_path):
        with pytest.raises(ConfigError, match=re.escape(str(file))) as caught:
            loading.load(file)
        assert "\n" not in str(caught.value)


def test_the_file_is_the_named_one_else_the_variables_else_the_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.find_file() == SHIPPED
    monkeypatch.setenv("PERSISTD_CONFIG", "/a/b.toml")
    assert loading.find_file() == Path("/a/b.toml")
    assert loading.find_file("c.toml") == Path("c.toml")


def test_a_relative_path_lies_below_data_dir_and_an_absolute_one_stays() -> None:
    settings = loading.load(None)
    assert settings.path("x.log") == Path.cwd() / "data" / "x.log"
    assert settings.path("/var/log/x.log") == Path("/var/log/x.log")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "c.toml"
    file.write_text('data_dir = "~/data"\n')
    assert loading.load(file).data_dir == loading.find_data_dir(file) == tmp_path / "data"
    monkeypatch.setenv("PERSISTD_DATA_DIR", "~/other")
    assert loading.load(file).data_dir == loading.find_data_dir(file) == tmp_path / "other"


def mistakes(file: Path | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loading.load(file)
    return caught.value.mistakes


def test_each_mistake_is_a_line_with_its_place_and_the_key_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path / "c.toml",
        """
port = 9001
sink = "postgre"
[server]
prot = 9001
max_batch = 0
[bufer]
capacity = 1
[buffer]
flush_intervall = 5
[sinks.sqlite]
paht = "x"
[sinks.postgres]
url = "postgresql://me:secret@h:x/db"
""",
    )
    monkeypatch.setenv("PERSISTD_SERVER__HOTS", "x")
    monkeypatch.setenv("PERSISTD_SERVER_PORT", "9001")
    monkeypatch.setenv("PERSISTD_SINKS__MYSQL", '{"ulr": 1}')
    unknown = "this key is not known"
    lines = mistakes(file)
    assert lines[-1].startswith(f"{file}, line 14: sinks.postgres.url: ")
    assert "secret" not in lines[-1]
    assert sorted(lines[:-1]) == sorted(
        [
            "PERSISTD_SERVER_PORT: this environment variable names no setting (did you mean PERSISTD_SERVER__PORT?)",
            f"PERSISTD_SERVER__HOTS: {unknown} (did you mean PERSISTD_SERVER__HOST?)",
            f"PERSISTD_SINKS__MYSQL: sinks.mysql.ulr: {unknown} (did you mean url?)",
            f"{file}, line 2: port: {unknown} (did you mean server.port?)",
            f"{file}, line 3: sink: there is no sink 'postgre'; known: jsonl, mysql, postgres, sqlite",
            f"{file}, line 5: server.prot: {unknown} (did you mean port?)",
            f"{file}, line 6: server.max_batch: Input should be greater than or equal to 1",
            f"{file}, line 7: bufer: {unknown} (did you mean buffer?)",
            f"{file}, line 10: buffer.flush_intervall: {unknown} (did you mean flush_interval?)",
            f"{file}, line 12: sinks.sqlite.paht: {unknown} (did you mean path?)",
        ]
    )
    done = persistd("check", "-c", str(file), cwd=tmp_path, PERSISTD_SERVER__HOTS="x")
    said = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(said)) == (2, "", 9)
    assert all(line.startswith("persistd: ") for line in said)
    assert persistd("run", "-c", str(file), cwd=tmp_path, PERSISTD_SERVER__HOTS="x").stderr == done.stderr
    assert persistd("start", "-c", str(file), cwd=tmp_path, PERSISTD_SERVER__HOTS="x").stderr == done.stderr


def test_a_table_in_a_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSISTD_BUFFER", "{capacity")
    assert mistakes(None) == ["PERSISTD_BUFFER: is not valid JSON"]


def test_what_kubernetes_says_of_a_service_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {
        "PERSISTD_SERVICE_HOST": "10.0.0.11",
        "PERSISTD_SERVICE_PORT": "8001",
        "PERSISTD_SERVICE_PORT_HTTP": "8001",
        "PERSISTD_PORT": "tcp://10.0.0.11:8001",
        "PERSISTD_PORT_8001_TCP": "tcp://10.0.0.11:8001",
        "PERSISTD_PORT_8001_TCP_PROTO": "tcp",
        "PERSISTD_PORT_8001_TCP_PORT": "8001",
        "PERSISTD_PORT_8001_TCP_ADDR": "10.0.0.11",
        "PERSISTD_SERVER_PORT": "tcp://10.0.0.12:80",  # of a Service called persistd-server
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert loading.load(None).server.port == 8001
    monkeypatch.setenv("PERSISTD_PORT", "9001")
    monkeypatch.setenv("PERSISTD_SERVER_PORT", "9001")
    assert [line.partition(":")[0] for line in mistakes(None)] == ["PERSISTD_PORT", "PERSISTD_SERVER_PORT"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("64MB", 64_000_000),
        ("64 mib", 64 << 20),
        ("4096", 4096),
        ("4.5KiB", 4608),
        ("70000B", 70_000),
    ],
)
def test_a_size_may_have_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    assert loading.load(write(tmp_path / "c.toml", f"[journal]\nmax_bytes = '{text}'")).journal.max_bytes == size
    monkeypatch.setenv("PERSISTD_JOURNAL__MAX_BYTES", text)
    assert loading.load(None).journal.max_bytes == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("5m", 300.0), ("1.5 h", 5400.0), ("1d", 86_400.0), ("2", 2.0), ("0.25", 0.25)],
)
def test_a_duration_may_have_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    file = write(tmp_path / "c.toml", f"[buffer]\nflush_interval = '{text}'")
    assert loading.load(file).buffer.flush_interval == seconds
    monkeypatch.setenv("PERSISTD_BUFFER__FLUSH_INTERVAL", text)
    assert loading.load(None).buffer.flush_interval == seconds


@pytest.mark.parametrize("text", ["'5 weeks'", "'s'", "''", "'-1s'", "'1ms'", "'2d'", "'nan'", "nan", "inf", "true"])
def test_a_wrong_duration_is_named(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "c.toml", f"[buffer]\nflush_interval = {text}")
    assert mistakes(file)[0].startswith(f"{file}, line 2: buffer.flush_interval: ")


@pytest.mark.parametrize("text", ["'8 GiBs'", "'MiB'", "''", "'-1'", "'1KiB'", "8.5", "true"])
def test_a_wrong_size_is_named(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "c.toml", f"[journal]\nmax_bytes = {text}")
    assert mistakes(file)[0].startswith(f"{file}, line 2: journal.max_bytes: ")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("statuses = []", "records.statuses"),
        ('statuses = ["done", "done"]', "records.statuses"),
        ('statuses = [""]', "records.statuses"),
        (f'statuses = ["{"x" * 21}"]', "records.statuses"),
        ('timezone = "Mars/Olympus"', "records.timezone"),
        ('timezone = "../../etc/passwd"', "records.timezone"),
        ('timezone = "Europe"', "records.timezone"),
        ('timezone = ""', "records.timezone"),
    ],
)
def test_wrong_statuses_and_time_zones_are_named(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        loading.load(write(tmp_path / "c.toml", f"[records]\n{line}\n"))


def test_wrong_statuses_time_zone_and_host_are_a_line_each(tmp_path: Path) -> None:
    text = """
[server]
host = "localhost:8001"
[records]
statuses = ["done", "done"]
timezone = "Asia/Shanhai"
invalid_rows = "setaside"
"""
    file = write(tmp_path / "c.toml", text)
    keys = ["3: server.host", "5: records.statuses", "6: records.timezone", "7: records.invalid_rows"]
    for command in (["check"], ["run"]):
        done = persistd(*command, "-c", str(file), cwd=tmp_path)
        said = sorted(done.stderr.splitlines())
        assert (done.returncode, done.stdout, len(said)) == (2, "", 4), said
        for line, key in zip(said, keys, strict=True):
            assert line.startswith(f"persistd: {file}, line {key}: ")
        assert "Asia/Shanghai" in said[2]


def test_statuses_and_time_zone_are_read(tmp_path: Path) -> None:
    text = '[records]\nstatuses = ["offen", "\u5b8c\u6210"]\ntimezone = "Asia/Shanghai"\n'
    records = loading.load(write(tmp_path / "c.toml", text)).records
    assert records.statuses == ("offen", "\u5b8c\u6210")
    assert str(records.zone) == "Asia/Shanghai"


def test_every_size_and_every_duration_may_have_a_unit() -> None:
    tables = [field.annotation for field in Settings.model_fields.values()]
    models = [model for model in tables if isinstance(model, type) and issubclass(model, BaseModel)]
    models += [registry.find(name).Settings for name in registry.names()]
    for model in models:
        for name, field in model.model_fields.items():
            reads = {it.func for it in field.metadata if isinstance(it, BeforeValidator)}
            if name.endswith("bytes"):
                assert read_size in reads, f"{model.__name__}.{name} is to be sinks.base.Bytes"
            if field.annotation is float:
                assert read_seconds in reads, f"{model.__name__}.{name} is to be sinks.base.Seconds"
