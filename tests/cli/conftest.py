"""A running service, and the commands called on it as functions: what a process adds to them is in test_daemon.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

from tests.process import Persistd
from tornado_persist.cli import main


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Command: TypeAlias = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls ``persistd`` with these words and the configuration of :func:`service`."""
    monkeypatch.chdir(tmp_path)
    # Every command has one; where there is no service yet, its data directory is the same.
    if not (tmp_path / "persistd.toml").exists():
        (tmp_path / "persistd.toml").write_text("[server]\nport = 9\n")

    def call(*words: str | Path) -> Done:
        capsys.readouterr()
        try:
            code = main(["-c", str(tmp_path / "persistd.toml"), *map(str, words)])
        except SystemExit as exc:  # argparse
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Persistd]:
    """A running service with the SQLite sink, which flushes only when it is asked to; tests give its --url."""
    with Persistd(tmp_path, "[buffer]\nflush_interval = 3600\n") as it:
        yield it
