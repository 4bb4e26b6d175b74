"""The two shapes of the log, and whose messages get in."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.process import environment
from tornado_persist.telemetry import log, redaction


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("tornado_persist")
    before = root.handlers[:], root.level, package.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, package.level = before
    structlog.reset_defaults()


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_file_gets_json_lines_with_time_level_and_event_first(tmp_path: Path) -> None:
    log.configure("info", "auto", tmp_path / "log")
    log.get("tornado_persist.x").info("hello", rows=3, text="你好")
    (line,) = lines(tmp_path / "log")
    assert list(line)[:3] == ["time", "level", "event"]
    assert (line["event"], line["level"], line["rows"]) == ("hello", "info", 3)
    assert str(line["time"]).endswith("Z")
    assert "你好" in (tmp_path / "log").read_text()


def test_an_exception_is_one_line_with_its_traceback(tmp_path: Path) -> None:
    log.configure("info", "json", tmp_path / "log")
    try:
        raise ZeroDivisionError("x")
    except ZeroDivisionError:
        log.get("tornado_persist.x").exception("a bug")
    (line,) = lines(tmp_path / "log")
    assert "ZeroDivisionError: x" in str(line["exception"])


def test_other_libraries_speak_in_the_same_shape_but_only_from_warning_on(tmp_path: Path) -> None:
    log.configure("debug", "json", tmp_path / "log")
    logging.getLogger("tornado.general").info("chatter")
    logging.getLogger("tornado.general").warning("odd %s", "request")
    logging.getLogger("psycopg").warning("error ignored terminating %r", "a connection that is given up")
    assert [(line["event"], line["level"]) for line in lines(tmp_path / "log")] == [("odd request", "warning")]


def test_the_level_changes_at_once(tmp_path: Path) -> None:
    log.configure("warning", "json", tmp_path / "log")
    logger = log.get("tornado_persist.x")
    logger.info("not said")
    log.set_level("debug")
    logger.debug("said")
    log.set_level("error")
    logger.warning("not said either")
    assert [line["event"] for line in lines(tmp_path / "log")] == ["said"]


def test_whether_debug_lines_are_said_can_be_asked_first(tmp_path: Path) -> None:
    log.configure("info", "json", tmp_path / "log")
    assert not log.debugging("tornado_persist.web.app")
    log.set_level("debug")
    assert log.debugging("tornado_persist.web.app")


def test_standard_output_can_be_the_log() -> None:
    program = (
        "from tornado_persist.telemetry import log; log.configure('info', 'auto', log.STDOUT); "
        "log.get('tornado_persist').info('hi')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout)["event"], done.stderr) == ("hi", "")


def test_tracebacks_and_all_values_of_a_line_hide_secrets(tmp_path: Path) -> None:
    log.configure("info", "json", tmp_path / "log")
    redaction.hide(["postgresql://me:hush-hush@host/db"])
    try:
        raise ValueError("hush-hush in a message")
    except ValueError as exc:
        log.get("tornado_persist.x").exception("a bug", error=exc, nested={"list": ["hush-hush", 3]})
    logging.getLogger("other").warning("says %s", "hush-hush")
    redaction.forget()
    text = (tmp_path / "log").read_text()
    assert "hush" not in text
    first, second = lines(tmp_path / "log")
    assert first["nested"] == {"list": ["***", 3]}
    assert second["event"] == "says ***"


def test_configuring_again_leaves_one_handler(tmp_path: Path) -> None:
    log.configure("info", "json", tmp_path / "first")
    log.configure("info", "json", tmp_path / "second")
    log.get("tornado_persist.x").info("once")
    assert (tmp_path / "first").read_text() == ""
    assert len(lines(tmp_path / "second")) == 1


def test_a_terminal_gets_lines_for_people() -> None:
    program = (
        "from tornado_persist.telemetry import log; log.configure('info', 'auto'); "
        "log.get('tornado_persist').info('hello')"
    )
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stderr=theirs, env=environment(), check=True)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert "hello" in said
    assert not said.startswith("{")
