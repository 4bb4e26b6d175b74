"""The commands that are called all the time load only what they need: imports are most of what they cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import Persistd, environment

ROOT = Path(__file__).parents[2]
PROGRAM = """
import contextlib, io, json, sys
from tornado_persist.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""
HEAVY = {"sqlalchemy", "psycopg", "pymysql", "tornado.web", "prometheus_client"}


def loaded(directory: Path, *words: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("words", [("status",), ("stats",), ("stop",), ("--version",), ("-c", "c.toml", "--version")])
def test_of_a_service_that_does_not_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert loaded(tmp_path, *words) & HEAVY == set()


def test_of_a_running_service(service: Persistd) -> None:
    file = str(service.file)
    assert loaded(service.directory, "status", "-c", file) & HEAVY == set()
    found = loaded(service.directory, "stats", "-c", file, "--url", service.url)
    assert found & HEAVY == set()
    assert "rich" in found  # it has printed a table


def test_the_version_needs_no_configuration(tmp_path: Path) -> None:
    assert not loaded(tmp_path, "--version") & {"pydantic", "tornado_persist.config"}
