"""``persistd config``."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.cli.conftest import Command
from tornado_persist.config import loading

SAMPLE = Path(__file__).parents[2] / "conf" / "persistd.toml"


def test_it_prints_the_sample_under_any_configuration(command: Command) -> None:
    assert command("config") == (0, SAMPLE.read_text(), "")


def test_effective_prints_every_value_in_force_and_no_secret(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "persistd.toml"
    file.write_text(
        'sink = "postgres"\n[server]\nport = 9\n[buffer]\nflush_interval = "5m"\n'
        '[sinks.postgres]\nurl = "postgresql://me:hush%20hush@h/db?sslpassword=hushest"\n[log]\nfile = "a\\"b 你.log"\n'
    )
    code, said, complaint = command("config", "--effective")
    assert (code, complaint) == (0, "")
    assert said.startswith(f"# {file}, ")
    assert "hush" not in said
    found = tomllib.loads(said)
    assert found["data_dir"] == str(tmp_path / "data")
    assert found["buffer"]["flush_interval"] == 300.0
    assert found["log"]["file"] == 'a"b 你.log'
    assert found["sinks"]["postgres"]["url"] == "postgresql://me:***@h/db?sslpassword=***"
    assert found["sinks"].keys() == {"postgres"}
    # It is a configuration itself, but for the secrets.
    file.write_text(said)
    again = loading.load(file)
    assert (again.server.port, again.buffer.flush_interval, again.log.file) == (9, 300.0, 'a"b 你.log')


def test_effective_of_a_wrong_configuration_is_2(command: Command, tmp_path: Path) -> None:
    (tmp_path / "persistd.toml").write_text("[server]\nprot = 9\n")
    assert command("config", "--effective").code == 2
    assert command("config").code == 0
