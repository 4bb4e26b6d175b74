"""Which instance this is: one name, everywhere the same, that goes with the data directory."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.process import Persistd
from tests.rows import task
from tornado_persist.files import DataDir

HISTORY = "/api/v1/persistence/history"


def said(service: Persistd) -> str:
    """The one name that the answers of the service give."""
    health, stats = service.http.get("/health").json(), service.stats()
    found = re.findall(r'^persistd_instance_info\{name="(.*)"\} 1\.0$', service.http.get("/metrics").text, re.MULTILINE)
    names = {health["instance"]["name"], stats["health"]["instance"], *found}
    names.add(service.http.get(HISTORY).json()["instance"]["name"])
    assert len(found) == len(names) == 1, names
    return str(names.pop())


def test_a_name_is_made_once_and_goes_with_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Persistd(tmp_path / "a") as service:
        name = said(service)
        assert re.fullmatch(r"[A-Za-z0-9-]+-[0-9a-f]{4}", name)
        service.post("task", task("a"))
        service.kill()
        service.start()
        assert said(service) == name
        assert service.stop() == 0
    shutil.move(tmp_path / "a" / "data", tmp_path / "b" / "data")
    with Persistd(tmp_path / "b") as elsewhere:
        assert said(elsewhere) == name
    with Persistd(tmp_path / "a") as other:
        assert said(other) != name


def test_every_line_of_the_log_has_the_name_whoever_logs_it(tmp_path: Path) -> None:
    with Persistd(tmp_path, "instance = 'eu-1.a'\n") as service:
        assert said(service) == "eu-1.a"
        service.post("task", task("a"))
        service.http.get("/nothing")
        service.send(signal.SIGHUP)
        service.wait_for_log("configuration reloaded")
        service.flush()
        assert service.stop() == 0
    lines = service.log()
    assert {"serving", "request", "configuration reloaded", "stopped"} <= {line["event"] for line in lines}
    assert {line["instance"] for line in lines} == {"eu-1.a"}
    assert not (service.data_dir / "instance").exists(), "the configuration has it"


def test_another_name_needs_a_restart(tmp_path: Path) -> None:
    with Persistd(tmp_path, "instance = 'old'\n") as service:
        service.configure("instance = 'new'\n")
        service.send(signal.SIGHUP)
        assert service.wait_for_log("this setting changes only with a restart")["key"] == "instance"
        assert said(service) == "old"
        service.stop()
        service.start()
        assert said(service) == "new"


@pytest.mark.parametrize("text", ["", "two words\n", "\xff", "-x", "x" * 65])
def test_a_file_that_holds_no_name_gets_a_new_one(tmp_path: Path, text: str) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.name_file.write_bytes(text.encode("latin-1"))
    name = data_dir.instance_name()
    assert data_dir.name_file.read_text() == f"{name}\n"
    assert data_dir.instance_name() == name


def test_a_name_that_cannot_be_kept_is_no_reason_not_to_start(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.name_file.with_suffix(".new").mkdir()
    assert re.fullmatch(r"[A-Za-z0-9-]+-[0-9a-f]{4}", data_dir.instance_name())
    assert not data_dir.name_file.exists()


@pytest.mark.parametrize("host", ["web-1.example.org", "Büro 7", "...", "h" * 64])
def test_the_made_name_is_a_name_that_the_configuration_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    from tornado_persist.config.loading import Settings

    monkeypatch.setattr("socket.gethostname", lambda: host)
    name = DataDir(tmp_path).instance_name()
    assert Settings(instance=name).instance == name
    if host == "web-1.example.org":
        assert name.startswith("web-1-")
