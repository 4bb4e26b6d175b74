"""``persistd stats`` and ``persistd flush``."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal
from tests.process import COMMAND, Persistd, environment, wait_until
from tests.rows import session, task
from tornado_persist.cli.output import print_table


def test_stats_are_an_aligned_table_or_the_services_own_json(service: Persistd, command: Command) -> None:
    service.post("task", task("a"), task("b"))
    code, said, _ = command("stats", "--url", service.url)
    assert code == 0
    figures = dict(re.findall(r"^.{14}(\S+(?: \S+)*) {2,}(\S.*)$", said, re.MULTILINE))
    assert figures["tasks count"] == figures["accepted"] == figures["pending"] == "2"
    assert figures["capacity"] == "1,000"
    assert figures["in memory"] == "2 of 100,000"
    assert re.fullmatch(r"\d+ B of 256\.0 MiB", figures["memory"])
    assert re.fullmatch(r"\d+ B of 8\.0 GiB", figures["bytes"])
    assert (figures["full in"], figures["rejected open rows"]) == ("never", "0")
    assert figures["last flush"] == "never"
    assert len({len(line) for line in said.splitlines()[2:] if "count" in line}) == 1, "figures end in one column"

    code, said, _ = command("stats", "--json", "--url", service.url)
    assert json.loads(said)["accounting"] == service.stats()["accounting"]
    assert said.count("\n") == 1


def test_flush_says_what_it_wrote(service: Persistd, command: Command) -> None:
    service.post("session", session("s"))
    service.post("task", task("a"), task("b"))
    code, said, _ = command("flush", "--url", service.url)
    assert (code, re.sub(r"\d+ ms", "9 ms", said)) == (0, "flushed: 1 session and 2 tasks written in 9 ms\n")
    assert service.stats()["accounting"]["pending"] == 0
    code, said, _ = command("flush", "--json", "--url", service.url)
    assert (code, json.loads(said)["status"]) == (0, "flushed")


def test_a_flush_that_fails_says_why_and_is_1(tmp_path: Path, command: Command) -> None:
    config = 'sink = "postgres"\n[sinks.postgres]\nurl = "postgresql://me:hush@127.0.0.1:9/x"\n'
    with Persistd(tmp_path, config) as service:
        service.post("task", task("a"))
        code, said, complaint = command("flush", "--url", service.url)
        assert (code, said) == (1, "")
        assert re.match(r"persistd: not flushed: .*refused.* \(0 sessions and 0 tasks written in \d+ ms\)\n", complaint)
        code, said, _ = command("flush", "--json", "--url", service.url)
        assert (code, json.loads(said)["status"]) == (1, "error")
        assert "hush" not in complaint + said


@pytest.mark.parametrize("name", ["stats", "flush"])
def test_a_service_that_does_not_answer_is_one_line_and_3(command: Command, name: str) -> None:
    assert command(name) == (3, "", "persistd: no answer from http://localhost:9: Connection refused\n")


@pytest.fixture
def stranger() -> Iterator[str]:
    """The URL of a server that is no persistd."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n<html")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_another_server_at_that_place_is_told_apart(stranger: str, command: Command) -> None:
    problem = f"persistd: {stranger} answers 404 Not Found, but not as persistd does\n"
    assert command("stats", "--url", stranger) == (3, "", problem)


def test_what_cannot_be_a_url_and_an_unknown_port_are_2(command: Command, tmp_path: Path) -> None:
    problem = "persistd: --url: localhost:8001 is no URL such as http://localhost:8001\n"
    assert command("stats", "--url", "localhost:8001") == (2, "", problem)
    code, _, complaint = command("stats", "--url", "http://me:hush@localhost:8001")
    assert (code, "hush" in complaint) == (2, False)
    (tmp_path / "persistd.toml").write_text("[server]\nport = 0\n")
    assert command("stats")[::2] == (
        2,
        "persistd: server.port: 0 does not say where the service is; give --url (its log has it)\n",
    )


def test_the_running_service_is_found_on_any_port(service: Persistd, command: Command) -> None:
    assert service.port == 0
    assert command("stats").out.startswith(f"{service.url}, ")
    assert command("flush").code == 0


def test_watch_fits_a_small_terminal_over_a_restart_until_ctrl_c(service: Persistd, tmp_path: Path) -> None:
    with OnTerminal("stats", "--watch", "0.1", "--url", service.url, cwd=tmp_path) as watcher:
        wait_until(lambda: watcher.said.count(b"ACCOUNTING") >= 2, "a second look")
        assert b"+0/s" in watcher.said
        frames = re.sub(rb"\x1b\[[^A-Za-z]*[A-Za-z]", b"", watcher.said).decode().split("http://")
        lines = frames[1].splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        words = " ".join(lines).split()
        assert {"BUFFER", "PERFORMANCE", "ACCOUNTING", "JOURNAL", "HEALTH"} <= set(words)
        assert "sessions written" in frames[1]
        assert "rejected, open" in frames[1]
        service.kill()
        wait_until(lambda: b"Connection refused" in watcher.said, "the outage")
        watcher.process.send_signal(signal.SIGINT)
        assert watcher.process.wait(10) == 0
    assert b"Traceback" not in watcher.said


def test_watch_into_a_file_is_plain_tables(service: Persistd, tmp_path: Path) -> None:
    words = [*COMMAND, "stats", "--watch", "0.1", "--url", service.url]
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout
        said = [watcher.stdout.readline() for _ in range(48)]
        watcher.send_signal(signal.SIGINT)
        watcher.stdout.read()
    assert watcher.returncode == 0
    assert "\x1b" not in "".join(said)
    assert sum("http://" in line for line in said) == 2


def test_wide_characters_keep_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["译文", "1"], ["e\u0301", "22"], ["\x1b[31mred", "333"]], "-r")
    assert capsys.readouterr().out == "译文        1\ne\u0301          22\n\N{REPLACEMENT CHARACTER}[31mred  333\n"
