"""Secrets in files: ``url_file`` and ``PERSISTD_..._FILE``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process import Persistd, persistd
from tests.rows import task
from tornado_persist.config import loading
from tornado_persist.errors import ConfigError
from tornado_persist.telemetry.redaction import mask

MANUAL = "[buffer]\nflush_interval = 3600\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "url"


def test_a_url_comes_from_a_file_and_is_hidden(tmp_path: Path, file: Path) -> None:
    file.write_text("postgresql://me:s3cretword@db.example/x\n")
    config = tmp_path / "c.toml"
    config.write_text(f"sink = 'postgres'\n[sinks.postgres]\nurl_file = '{file}'\n")
    found = loading.load(config).sink_settings()
    assert found.url.get_secret_value() == "postgresql://me:s3cretword@db.example/x"  # type: ignore[attr-defined]
    assert "s3cretword" not in mask("it is s3cretword") + repr(found)
    config.write_text(config.read_text() + "url = 'postgresql://other@h/x'\n")
    with pytest.raises(ConfigError, match="url and url_file are both given"):
        loading.load(config)


@pytest.mark.parametrize("content", [None, "s3cretword2"])
def test_a_file_without_a_url_is_named_and_not_quoted(tmp_path: Path, file: Path, content: str | None) -> None:
    if content:
        file.write_text(content)
    config = tmp_path / "c.toml"
    config.write_text(f"[sinks.mysql]\nurl_file = '{file}'\n")
    with pytest.raises(ConfigError) as caught:
        loading.load(config)
    assert str(file) in str(caught.value)
    assert "s3cretword2" not in str(caught.value)


def test_any_setting_may_come_from_a_file_that_a_variable_names(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "port").write_text("9001\n")
    file.write_text("mysql://me:s3cretword@h/x\n")
    monkeypatch.setenv("PERSISTD_SERVER__PORT_FILE", str(tmp_path / "port"))
    monkeypatch.setenv("PERSISTD_SINKS__MYSQL__URL_FILE", str(file))
    monkeypatch.setenv("PERSISTD_SINK", "mysql")
    config = tmp_path / "c.toml"
    config.write_text("[sinks.mysql]\nurl = 'mysql://another@h/x'\n")
    settings = loading.load(config)
    assert settings.server.port == 9001
    assert settings.sink_settings().url.get_secret_value() == "mysql://me:s3cretword@h/x"  # type: ignore[attr-defined]
    monkeypatch.setenv("PERSISTD_SERVER__PORT", "9002")
    with pytest.raises(ConfigError, match="PERSISTD_SERVER__PORT is set, too"):
        loading.load(config)
    monkeypatch.delenv("PERSISTD_SERVER__PORT")
    (tmp_path / "port").unlink()
    with pytest.raises(ConfigError, match="port cannot be read: No such file"):
        loading.load(config)


def test_a_reload_reads_the_file_again(tmp_path: Path, file: Path, postgres_url: str) -> None:
    file.write_text(f"{postgres_url}?application_name=one\n")
    config = f"sink = 'postgres'\n{MANUAL}[sinks.postgres]\nurl_file = '{file}'\n"
    with Persistd(tmp_path, config) as service:
        file.write_text(f"{postgres_url}?application_name=two\n")
        done = persistd("reload", "-c", str(service.file), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "reloaded: sinks.postgres.url_file\n"), done.stderr
        file.unlink()
        assert persistd("reload", "-c", str(service.file), cwd=tmp_path).returncode == 1
        service.post("task", task("t1"))
        assert service.flush()["tasks_written"] == 1
