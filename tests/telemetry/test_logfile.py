"""Log files: rotation, reopening, and full disks."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.process import PATIENCE, Persistd, environment, persistd, wait_until
from tornado_persist.files import DataDir
from tornado_persist.telemetry.log import LogFile, Stream

Make = Callable[..., LogFile]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[LogFile] = []

    def make(*, max_bytes: int = 0, backups: int = 2) -> LogFile:
        made.append(LogFile(tmp_path / "log", max_bytes=max_bytes, backups=backups))
        return made[-1]

    yield make
    for handler in made:
        handler.close()


def say(handler: logging.Handler, *texts: str) -> None:
    for text in texts:
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))


def test_a_file_is_rotated_before_the_line_that_would_not_fit_and_the_oldest_goes(make: Make, tmp_path: Path) -> None:
    handler = make(max_bytes=10, backups=2)
    say(handler, "aaaa", "bbb", "cccccc", "dddddd", "eeeeee")
    assert [(tmp_path / name).read_text() for name in ("log", "log.1", "log.2")] == ["eeeeee\n", "dddddd\n", "cccccc\n"]
    assert not (tmp_path / "log.3").exists()


def test_what_the_file_held_before_counts_for_its_rotation(make: Make, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("long before\n")
    say(make(max_bytes=12), "now")
    assert (tmp_path / "log.1").read_text() == "long before\n"
    assert (tmp_path / "log").read_text() == "now\n"


def test_with_0_bytes_a_file_is_never_rotated(make: Make, tmp_path: Path) -> None:
    say(make(max_bytes=0), *["x" * 100] * 100)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").stat().st_size == 10_100


def test_a_file_that_cannot_be_rotated_goes_on(make: Make, tmp_path: Path) -> None:
    handler = make(max_bytes=10, backups=1)
    (tmp_path / "log.1" / "in the way").mkdir(parents=True)
    say(handler, "aaaaaa", "bbbbbb", "cccccc")
    assert (tmp_path / "log").read_text() == "aaaaaa\nbbbbbb\ncccccc\n"


def test_a_file_that_was_renamed_is_left_when_it_is_opened_again(make: Make, tmp_path: Path) -> None:
    handler = make()
    say(handler, "one")
    (tmp_path / "log").rename(tmp_path / "moved")
    say(handler, "two")
    handler.reopen()
    say(handler, "three")
    assert (tmp_path / "moved").read_text() == "one\ntwo\n"
    assert (tmp_path / "log").read_text() == "three\n"


def test_a_file_that_cannot_be_opened_again_is_kept(make: Make, tmp_path: Path) -> None:
    handler = make()
    (tmp_path / "log").rename(tmp_path / "moved")
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        handler.reopen()
    say(handler, "still here")
    assert (tmp_path / "moved").read_text() == "still here\n"


def test_lines_for_which_there_was_no_room_are_counted_in_the_next_one_and_never_joined_to_it(tmp_path: Path) -> None:
    program = f"""
import logging, resource
from tests.telemetry.test_logfile import say
from tornado_persist.telemetry.log import LogFile
from pathlib import Path
handler = LogFile(Path({str(tmp_path / "log")!r}), max_bytes=0, backups=1)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (25, hard))
say(handler, "1" * 20, "2" * 20, "3" * 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
say(handler, "4" * 20, "5" * 20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    said = (tmp_path / "log").read_text().splitlines()
    assert said == ["1" * 20, "2" * 4, "2 log lines could not be written", "4" * 20, "5" * 20]


def test_a_stream_without_a_reader_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    handler = Stream(writer)
    say(handler, "heard")
    assert os.read(reader, 100) == b"heard\n"
    os.close(reader)
    say(handler, "unheard")
    os.close(writer)
    assert capfd.readouterr() == ("", "")


# The whole service.


def test_a_full_disk_under_the_log_costs_its_lines_alone(tmp_path: Path) -> None:
    with Persistd(tmp_path, log="file = '/dev/full'\n") as service:
        assert service.http.get("/health").status_code == 200
        service.send(signal.SIGHUP)
        assert service.flush()["status"] == "flushed"
        assert service.stop() == 0
    assert service.log_text() == "", "no traceback on standard error"


def test_a_full_disk_under_standard_error_costs_its_lines_alone(tmp_path: Path) -> None:
    full = ("sh", "-c", 'exec "$@" 2>/dev/full', "sh")
    with Persistd(tmp_path, prefix=full) as service:
        assert service.http.get("/health").status_code == 200
        assert service.stop() == 0


def test_a_live_log_that_runs_out_of_room_goes_on_once_there_is_some(tmp_path: Path) -> None:
    with Persistd(tmp_path, log="file = 'own.log'\n") as service:
        log = service.data_dir / "own.log"

        def events() -> list[str]:
            return [json.loads(line)["event"] for line in log.read_text().splitlines() if line.endswith("}")]

        _, hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 10, hard))
        for _ in range(4):
            assert service.http.get("/health/live").status_code == 200
        assert "request" not in events()
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        service.http.get("/health/live")
        # A request's line comes after its answer, so the fourth may find room already.
        wait_until(lambda: {"3 log lines could not be written", "4 log lines could not be written"} & {*events()})
        wait_until(lambda: events().count("request") == ("3 log lines could not be written" in events()) + 1)
        assert service.stop() == 0
    assert service.log_text() == ""


def test_sighup_opens_the_file_again_and_changes_the_level_even_if_the_configuration_is_broken(tmp_path: Path) -> None:
    with Persistd(tmp_path, log="file = 'own.log'\n") as service:
        log, moved = service.data_dir / "own.log", service.data_dir / "own.log-1"
        log.rename(moved)
        config = service.file.read_text().replace('level = "debug"', 'level = "warning"')
        service.file.write_text(f"{config}[buffer]\ncapacity = 7\n")
        service.send(signal.SIGHUP)
        # The file is opened before the configuration is read; this is seen when all of it holds.
        wait_until(lambda: service.stats()["buffer"]["capacity"] == 7)
        assert log.exists()
        service.http.get("/health/live")  # would be a debug line
        service.file.write_text("nonsense")
        log.rename(service.data_dir / "own.log-2")
        service.send(signal.SIGHUP)
        wait_until(lambda: log.exists() and "configuration not reloaded" in log.read_text())
        assert '"serving"' in moved.read_text()
        assert '"/health/live"' not in moved.read_text() + (service.data_dir / "own.log-2").read_text()


def test_the_log_of_a_daemon_is_rotated_and_opened_again_with_what_it_prints_besides(tmp_path: Path) -> None:
    (tmp_path / "persistd.toml").write_text("[server]\nport = 0\n[log]\nlevel = 'debug'\nmax_bytes = 2000\n")
    variables = {"PERSISTD_CONFIG": str(tmp_path / "persistd.toml")}
    data_dir = DataDir(tmp_path / "data")

    def outputs(pid: int) -> set[str]:
        return {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (1, 2)}

    started = persistd("start", cwd=tmp_path, **variables)
    pid = data_dir.holder()
    assert pid
    try:
        log, moved = data_dir.log_file, data_dir.path / "moved"
        log.rename(moved)
        assert outputs(pid) == {str(moved)}
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: log.exists() and "configuration reloaded" in log.read_text())
        assert outputs(pid) == {str(log)}
        url = started.stdout.split()[-1]
        for _ in range(20):
            httpx.get(f"{url}/health/live", timeout=PATIENCE)
        wait_until((data_dir.path / "persistd.log.1").exists)
        wait_until(lambda: outputs(pid) == {str(log)})
    finally:
        assert persistd("stop", cwd=tmp_path, **variables).returncode == 0
    assert '"stopped"' in log.read_text()
