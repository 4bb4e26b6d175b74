"""Sinks by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tornado_persist.errors import ConfigError
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Sink

Install = Callable[..., None]

PLUGIN = """
from tornado_persist.testing import MemorySink
class Elastic(MemorySink):
    name = "elastic"
class Other(MemorySink):
    name = "other"
class Half(MemorySink):
    name = "half"
    from abc import abstractmethod
    @abstractmethod
    def missing(self): ...
class NoSettings(MemorySink):
    name = "nosettings"
    Settings = dict
class NoSink:
    name = "nosink"
text = "no class at all"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with the module ``persist_plugin`` and these entry points (lines ``name = value``)."""
    (tmp_path / "persist_plugin.py").write_text(PLUGIN)
    (tmp_path / "persist_broken.py").write_text("raise RuntimeError('no such\\nluck')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(*lines: str, name: str = "persist-elastic", version: str = "2.5", where: Path = tmp_path) -> None:
        info = where / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))

    return install


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_built_in_sink_is_found_by_the_name_it_has(name: str) -> None:
    found = registry.find(name)
    assert issubclass(found, Sink)
    assert found.name == name
    assert name in registry.names()


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_finding_one_sink_imports_no_other_driver(name: str) -> None:
    drivers = {"sqlite": "sqlite3", "postgres": "psycopg", "mysql": "pymysql"}
    others = [driver for sink, driver in drivers.items() if sink != name]
    code = f"from tornado_persist.sinks import registry; registry.find({name!r}); import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(others) & set(modules)


def test_an_unknown_name_is_refused_with_the_known_ones(install: Install) -> None:
    install("elastic = persist_plugin:Elastic")
    with pytest.raises(ConfigError) as failure:
        registry.find("elastc")
    assert str(failure.value) == "sink: there is no sink 'elastc'; known: elastic, jsonl, mysql, postgres, sqlite"
    assert failure.value.key == "sink"


def test_an_installed_package_offers_a_sink(install: Install) -> None:
    install("elastic = persist_plugin:Elastic")
    assert registry.find("elastic").name == "elastic"
    assert registry.names() == ["elastic", "jsonl", "mysql", "postgres", "sqlite"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x = persist_nowhere:Elastic", "cannot be loaded: ModuleNotFoundError: No module named 'persist_nowhere'"),
        ("x = persist_plugin:Nothing", "cannot be loaded: AttributeError: .*Nothing"),
        ("x = persist_broken:Elastic", "cannot be loaded: RuntimeError: no such$"),
        ("x = persist_plugin:NoSink", "is no subclass of tornado_persist.sinks.base.Sink"),
        ("x = persist_plugin:text", "is no subclass of"),
        ("x = persist_plugin:Other", "calls itself 'other'"),
        ("half = persist_plugin:Half", "lacks missing"),
        ("nosettings = persist_plugin:NoSettings", "has no Settings"),
    ],
)
def test_an_offer_that_cannot_be_used_is_named_with_its_package(install: Install, line: str, problem: str) -> None:
    install(line)
    name = line.split()[0]
    with pytest.raises(ConfigError, match=f"^sink: {line} of persist-elastic 2.5 {problem}"):
        registry.find(name)


def test_a_built_in_name_stays_the_built_in_sinks(install: Install) -> None:
    assert registry.shadowed() == []
    install("sqlite = persist_plugin:Elastic")
    assert registry.find("sqlite").__module__ == "tornado_persist.sinks.sqlite"
    assert registry.names() == ["jsonl", "mysql", "postgres", "sqlite"]
    assert registry.shadowed() == ["sqlite = persist_plugin:Elastic of persist-elastic 2.5"]


def test_two_packages_cannot_offer_the_same_name(install: Install) -> None:
    install("elastic = persist_plugin:Elastic")
    install("elastic = persist_plugin:Other", name="another", version="1")
    with pytest.raises(ConfigError, match=r"more than once: .*another 1") as failure:
        registry.find("elastic")
    assert "persist-elastic 2.5" in str(failure.value)


def test_a_package_that_is_listed_twice_is_one_offer(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("elastic = persist_plugin:Elastic")
    install("elastic = persist_plugin:Elastic", where=tmp_path / "again")
    monkeypatch.syspath_prepend(str(tmp_path / "again"))
    assert registry.find("elastic").name == "elastic"


def test_a_built_in_sink_whose_driver_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tornado_persist.sinks.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"^sink: postgres cannot be loaded: .*psycopg"):
        registry.find("postgres")


@pytest.mark.parametrize(
    ("name", "table", "address"),
    [
        ("sqlite", {}, "{data}/persist.db"),
        ("jsonl", {"dir": "/var/rows"}, "/var/rows"),
        ("postgres", {"url": "postgresql://me:hush@db.example:6000/x?password=hush"}, "db.example:6000/x"),
        ("postgres", {"url": "postgresql://me:hush@/x?host=/run/postgres"}, "/run/postgres/x"),
        ("postgres", {"url": "postgresql://me:hush@[::1]/x"}, "[::1]/x"),
        ("mysql", {"url": "mysql://me:hush@localhost/x?unix_socket=/run/my.sock"}, "localhost/x"),
    ],
)
def test_an_address_tells_the_place_and_no_secret_before_the_sink_was_ever_open(
    tmp_path: Path, name: str, table: dict[str, str], address: str
) -> None:
    sink_class = registry.find(name)
    sink = sink_class(sink_class.Settings.model_validate(table), tmp_path)
    assert sink.address == address.format(data=tmp_path)
