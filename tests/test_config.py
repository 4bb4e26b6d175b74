"""The configuration file, the environment over it, and what is said about a wrong one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tornado_persist import config
from tornado_persist.config import Settings
from tornado_persist.errors import ConfigError
from tornado_persist.sinks import registry

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
    defaults = flat(config.load(None).model_dump(mode="json"))
    defaults["data_dir"] = "data"  # a loaded one is absolute
    sinks = {
        f"sinks.{name}.{field}" for name in registry.names() for field in registry.find(name).Settings.model_fields
    }
    assert shipped.keys() == set(keys(Settings)) | sinks
    assert {key: value for key, value in shipped.items() if key not in sinks} == defaults
    loaded, bare = config.load(SHIPPED), config.load(None)
    for name in registry.names():
        assert loaded.sink_settings(name) == bare.sink_settings(name)


def test_every_key_of_the_shipped_file_has_a_comment_above_or_is_the_common_one() -> None:
    lines = SHIPPED.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+ =", line) and not line.startswith(("create_tables", "url =")):
            assert lines[number - 1].startswith("#"), line


def test_a_file_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path / "c.toml", 'sink = "jsonl"\n[server]\nport = 9001\n'))
    assert (settings.sink, settings.server.port, settings.server.max_batch) == ("jsonl", 9001, 1000)


def test_the_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        tmp_path / "c.toml",
        'sink = "jsonl"\n[server]\nport = 9001\nmax_batch = 5\n[sinks.postgres]\ncreate_tables = false\n',
    )
    monkeypatch.setenv("PERSISTD_SINK", "postgres")
    monkeypatch.setenv("PERSISTD_SERVER__PORT", "9002")
    monkeypatch.setenv("PERSISTD_SINKS__POSTGRES__URL", "postgresql://me:secret@db.example/x")
    settings = config.load(file)
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
        ("[sinks.oracle]\nurl = 'x'", "sinks.oracle"),
        ("[sinks.sqlite]\npaht = 'x'", "sinks.sqlite.paht"),
        ("[sinks.postgres]\nurl = 'not a url'", "sinks.postgres.url"),
        ("[sinks.mysql]\nurl = 'postgresql://me:secret@h/x'", "sinks.mysql.url"),
    ],
)
def test_a_wrong_key_is_named_in_one_line(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path / "c.toml", text))
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
        config.load(None)
    assert str(caught.value).startswith((variable, "sink:"))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "missing.toml", write(tmp_path / "bad.toml", "a = \n"), tmp_path):
        with pytest.raises(ConfigError, match=re.escape(str(file))) as caught:
            config.load(file)
        assert "\n" not in str(caught.value)


def test_the_file_is_the_named_one_else_the_variables_else_the_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.find_file() == SHIPPED
    monkeypatch.setenv("PERSISTD_CONFIG", "/a/b.toml")
    assert config.find_file() == Path("/a/b.toml")
    assert config.find_file("c.toml") == Path("c.toml")


def test_a_relative_path_lies_below_data_dir_and_an_absolute_one_stays() -> None:
    settings = config.load(None)
    assert settings.path("x.log") == Path.cwd() / "data" / "x.log"
    assert settings.path("/var/log/x.log") == Path("/var/log/x.log")
