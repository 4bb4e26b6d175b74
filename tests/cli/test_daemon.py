"""The commands and their exit codes, as processes."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.process import COMMAND, PATIENCE, environment, persistd
from tests.rows import body, task
from tornado_persist import __version__
from tornado_persist.files import DataDir


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with a configuration; a daemon left in it is ended."""
    (tmp_path / "persistd.toml").write_text("[server]\nport = 0\n[buffer]\nflush_interval = 3600\n")
    yield tmp_path
    pid = DataDir(tmp_path / "data").holder()
    if pid:
        os.kill(pid, signal.SIGKILL)


def run(place: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    done = persistd(*arguments, cwd=place, PERSISTD_CONFIG=str(place / "persistd.toml"), **variables)
    return done.returncode, done.stdout, done.stderr


def test_a_daemon_from_start_to_stop(place: Path) -> None:
    assert run(place, "status") == (3, f"persistd does not run: no service has {place}/data\n", "")
    code, said, _ = run(place, "start")
    assert code == 0
    pid, url = re.fullmatch(r"persistd runs, pid (\d+), on (http://\S+)\n", said).groups()  # type: ignore[union-attr]
    assert (place / "data" / "persistd.pid").read_text() == f"{pid}\n"
    assert httpx.get(f"{url}/health", timeout=PATIENCE).json()["database"] == "healthy"
    httpx.post(f"{url}/api/v1/persistence/tasks/batch", content=body("task", task("a")), timeout=PATIENCE)

    code, said, _ = run(place, "status")
    assert code == 0
    assert f"pid {pid}, data in {place}/data\n" in said
    assert run(place, "start") == (1, "", f"persistd: it runs already, pid {pid}\n")
    log = place / "data" / "persistd.log"
    assert run(place, "reload") == (0, "reloaded: nothing has changed\n", "")
    assert "configuration reloaded" in log.read_text()

    assert run(place, "stop") == (0, "persistd stopped\n", "")
    assert '"event": "flush", "rows": 1' in log.read_text()
    assert not (place / "data" / "persistd.pid").exists()
    assert run(place, "status")[0] == 3


def test_start_says_that_the_sink_is_away_and_stop_how_many_rows_stay(place: Path) -> None:
    (place / "persistd.toml").write_text(
        'sink = "postgres"\n[server]\nport = 0\nshutdown_timeout = 1\n'
        '[sinks.postgres]\nurl = "postgresql://me:hush@127.0.0.1:9/x"\n'
    )
    code, said, _ = run(place, "start")
    first, second = said.splitlines()
    assert code == 0
    assert re.fullmatch(r"the sink postgres is down: .*Connection refused.*; rows wait in the journal", second)
    assert "hush" not in second
    url = f"{first.rpartition(' ')[2]}/api/v1/persistence/tasks/batch"
    httpx.post(url, content=body("task", task("a"), task("b")), timeout=PATIENCE)
    assert run(place, "stop") == (0, "persistd stopped; 2 rows stay in the journal, for the next start\n", "")


def test_reload_says_what_it_did_what_needs_a_restart_and_what_failed(place: Path) -> None:
    assert run(place, "start")[0] == 0
    file = place / "persistd.toml"

    def reload(config: str) -> tuple[int, str, str]:
        file.write_text(config)
        return run(place, "reload")

    assert reload("[server]\nport = 9\n[buffer]\ncapacity = 7\nflush_interval = 3600\n") == (
        0,
        "reloaded: buffer.capacity\nthese need a restart: server.port\n",
        "",
    )
    # Whole or not at all: neither the sink nor the number.
    code, said, complaint = reload(
        'sink = "postgres"\n[server]\nport = 0\n[buffer]\ncapacity = 8\nflush_interval = 3600\n'
        '[sinks.postgres]\nurl = "postgresql://me:hush@127.0.0.1:9/x"\n'
    )
    assert (code, said) == (1, "")
    assert re.match("persistd: not reloaded: sink: postgres cannot be used: .*Connection refused", complaint)
    assert "hush" not in complaint
    code, said, complaint = reload("[server]\nport = 0\n[buffer]\ncapacity = 0\nflush_interval = 0\n")
    assert (code, said) == (1, "")
    assert [line.count("not reloaded: ") for line in complaint.splitlines()] == [1, 1], complaint
    file.write_text("[server]\nport = 0\n")
    health = json.loads(run(place, "status", "--json")[1])
    assert (health["waiting"]["capacity"], health["sink"]["name"]) == (7, "sqlite")
    assert (health["reloads"]["begun"], health["reloads"]["done"]) == (3, 3)
    assert reload('sink = "jsonl"\n[server]\nport = 0\n[buffer]\ncapacity = 8\nflush_interval = 3600\n') == (
        0,
        "reloaded: buffer.capacity, sink\n",
        "",
    )


def test_reload_of_a_service_that_does_not_answer_is_1(place: Path) -> None:
    assert run(place, "start")[0] == 0
    pid = DataDir(place / "data").holder()
    assert pid
    os.kill(pid, signal.SIGSTOP)
    code, _, complaint = run(place, "reload")
    assert code == 1
    assert complaint.startswith("persistd: it was told to reload, but the outcome is not known: no answer from http://")


def test_stop_of_nothing_is_0_and_reload_of_nothing_1(place: Path) -> None:
    assert run(place, "stop") == (0, f"persistd does not run: no service has {place}/data\n", "")
    assert run(place, "reload") == (1, "", f"persistd: it does not run: no service has {place}/data\n")


def test_a_pid_file_without_a_process_is_not_believed(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "persistd.pid").write_text(f"{os.getpid()}\n")
    assert run(place, "status")[0] == 3
    assert run(place, "stop")[0] == 0


@pytest.mark.parametrize("damage", ["empty", "missing", "forged", "negative", "no lock file"])
def test_the_lock_alone_tells_which_process_to_stop(place: Path, damage: str) -> None:
    code, said, _ = run(place, "start")
    assert code == 0
    pid = re.search(r"pid (\d+)", said)[1]  # type: ignore[index]
    data = place / "data"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        match damage:
            case "empty":
                (data / "persistd.pid").write_text("")
                (data / "lock").write_text("")
            case "missing":
                (data / "persistd.pid").unlink()
            case "no lock file":
                (data / "lock").unlink()
            case _:
                wrong = stranger.pid if damage == "forged" else -1
                (data / "persistd.pid").write_text(f"{wrong}\n")
                (data / "lock").write_text(json.dumps({"pid": wrong}))
        assert f"pid {pid}, data in {data}\n" in run(place, "status")[1]
        assert run(place, "start") == (1, "", f"persistd: it runs already, pid {pid}\n")
        assert "is in use by another persistd" in run(place, "run")[2]
        assert run(place, "stop") == (0, "persistd stopped\n", "")
        assert stranger.poll() is None
        stranger.kill()


def test_a_service_in_another_pid_namespace_is_never_signalled(place: Path) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare may not make a process namespace here")
    assert run(place, "start")[0] == 0
    done = subprocess.run(
        [*apart, *COMMAND, "stop", "-c", str(place / "persistd.toml")],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    words = "it runs, but its process cannot be seen from here (another container, host or user): nothing was signalled"
    assert (done.returncode, done.stderr) == (1, f"persistd: {words}\n")
    assert run(place, "stop")[0] == 0


def test_after_kill_9_the_daemon_starts_again(place: Path) -> None:
    assert run(place, "start")[0] == 0
    data_dir = DataDir(place / "data")
    pid = data_dir.holder()
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert data_dir.wait_unlocked(10)
    assert run(place, "start")[0] == 0
    assert run(place, "stop")[0] == 0


def test_start_says_why_it_did_not(place: Path) -> None:
    (place / "persistd.toml").write_text('[server]\nhost = "203.0.113.1"\n')
    # Tornado leaves the socket that it could not bind to the garbage collector.
    code, _, said = run(place, "start", PYTHONWARNINGS="error,ignore::ResourceWarning")
    assert code == 1
    assert said == "persistd: it did not start: cannot listen on 203.0.113.1:8001: Cannot assign requested address\n"


def test_the_daemons_log_goes_to_the_file_that_the_configuration_names(place: Path) -> None:
    assert run(place, "start", PERSISTD_LOG__FILE="own.log")[0] == 0
    assert run(place, "stop")[0] == 0
    assert '"event": "serving"' in (place / "data" / "own.log").read_text()
    assert (place / "data" / "persistd.log").read_text() == ""


@pytest.mark.parametrize("command", ["run", "start", "check"])
def test_a_bad_configuration_is_one_line_and_exit_code_2(place: Path, command: str) -> None:
    (place / "persistd.toml").write_text("[server]\nprot = 1\n")
    problem = "server.prot: this key is not known (did you mean port?)"
    assert run(place, command) == (2, "", f"persistd: {place}/persistd.toml, line 2: {problem}\n")


def test_a_data_directory_that_cannot_be_made_is_named(place: Path) -> None:
    (place / "file").write_text("")
    for command in ("run", "start", "check"):
        code, _, said = run(place, command, PERSISTD_DATA_DIR="file/data")
        assert (code, said) == (2, f"persistd: data_dir: {place}/file/data cannot be written: Not a directory\n")


def test_a_data_directory_that_cannot_be_looked_at_is_named(place: Path) -> None:
    (place / "file").write_text("")
    for command in ("status", "stop", "reload"):
        code, _, said = run(place, command, PERSISTD_DATA_DIR="file/data")
        assert (code, said) == (2, f"persistd: data_dir: {place}/file/data cannot be read: Not a directory\n")


def test_a_log_file_that_cannot_be_written_is_named(place: Path) -> None:
    code, _, said = run(place, "run", PERSISTD_LOG__FILE="missing/x.log")
    problem = f"{place}/data/missing/x.log cannot be written: No such file or directory"
    assert (code, said) == (2, f"persistd: log.file: {problem}\n")


def test_check_says_what_it_found(place: Path) -> None:
    assert f"sqlite: a start creates {place}/data/persist.db\n" in run(place, "check")[1]
    assert run(place, "start")[0] == 0
    assert run(place, "stop")[0] == 0
    code, said, _ = run(place, "check")
    assert code == 0
    assert f"configuration  {place}/persistd.toml: valid\n" in said
    assert f"data_dir       {place}/data: writable\n" in said
    assert re.search(r"sink           sqlite: SQLite 3\.\S+ at .*persist\.db\n", said)


def test_check_of_a_database_that_cannot_be_reached_is_1_and_shows_no_password(place: Path) -> None:
    url = "postgresql://me:hush@127.0.0.1:9/x"
    code, said, complaint = run(place, "check", PERSISTD_SINK="postgres", PERSISTD_SINKS__POSTGRES__URL=url)
    assert code == 1
    assert "sink           postgres: unavailable: " in said
    assert "hush" not in said + complaint


def test_check_of_a_running_service_says_so_and_leaves_it_alone(place: Path) -> None:
    assert run(place, "start", PERSISTD_SINK="jsonl")[0] == 0
    code, said, _ = run(place, "check", PERSISTD_SINK="jsonl")
    assert code == 0
    assert "in use, pid" in said
    assert re.search(r"^service        http://\S+: it is well$", said, re.MULTILINE)
    assert run(place, "stop")[0] == 0


def test_the_config_option_may_stand_before_or_after_the_command(place: Path) -> None:
    for arguments in (("-c", "other.toml", "status"), ("status", "-c", "other.toml")):
        code, _, said = run(place, *arguments)
        assert (code, said) == (2, "persistd: other.toml: cannot be read: No such file or directory\n")


def test_an_output_that_is_not_read_to_its_end_is_no_traceback(place: Path) -> None:
    (place / "data" / "journal").mkdir(parents=True)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "journal", "ls"],
        cwd=place,
        env=environment(PERSISTD_CONFIG=str(place / "persistd.toml")),
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_the_version_and_the_help_are_there(place: Path) -> None:
    assert run(place, "--version")[:2] == (0, f"persistd {__version__}\n")
    help_text = run(place, "--help")[1]
    commands = ("run", "start", "stop", "status", "reload", "check")
    for command in (*commands, "stats", "flush", "journal", "rejected", "import", "completion"):
        assert re.search(rf"^    {command} ", help_text, re.MULTILINE)
    assert run(place, "dance")[0] == 2


def test_start_without_standard_streams_returns_and_the_service_runs(place: Path) -> None:
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND]
    variables = environment(PERSISTD_CONFIG=str(place / "persistd.toml"))
    assert subprocess.run([*words, "start"], cwd=place, env=variables, timeout=30, check=False).returncode == 0
    assert subprocess.run([*words, "status"], cwd=place, env=variables, timeout=30, check=False).returncode == 0
    assert run(place, "stop")[0] == 0


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["status"], ["check"], ["completion", "bash"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_output_is_one_line_and_1(place: Path, words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=place,
            env=environment(PERSISTD_CONFIG=str(place / "persistd.toml"), PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    problem = "persistd: standard output cannot be written: No space left on device\n"
    silent = unbuffered and words[0].startswith("--")  # argparse itself passes over the error
    assert (done.returncode, done.stderr) == ((0, "") if silent else (1, problem))


def test_an_unknown_option_names_the_nearest_one_of_its_command(place: Path) -> None:
    code, _, said = run(place, "rejected", "ls", "--jsno")
    assert code == 2
    assert said.startswith("usage: persistd rejected ls ")
    assert said.endswith("unrecognized arguments: --jsno (did you mean --json?)\n")


@pytest.mark.parametrize("mistake", ["[server]\nprot = 1\n", "[server\n", "[journal]\nsync = 3\n"])
def test_the_running_service_is_reached_despite_a_mistake_in_the_configuration(place: Path, mistake: str) -> None:
    assert run(place, "start")[0] == 0
    (place / "persistd.toml").write_text(mistake)
    assert run(place, "rejected", "ls")[0] == 0
    assert run(place, "status")[0] == 0
    assert run(place, "stop") == (0, "persistd stopped\n", "")


#: Large rows with small ones between them, as the buffer holds them, are freed; the MiB that the process keeps.
LARGE_ROWS = """
import sys
from tornado_persist.cli import daemon

if "limited" in sys.argv:
    daemon._return_large_memory()
body = bytes(16 << 20)
del body  # by itself glibc keeps what is smaller than this from now on
rows = [(b"x" * 1_000_000, bytes(100_000)) for _ in range(200)]
rows = [small for _, small in rows]
print(int(next(line for line in open("/proc/self/status") if "VmRSS" in line).split()[1]) // 1024)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="other C libraries give memory back in other ways")
def test_the_memory_of_large_rows_is_given_back() -> None:
    kept = {}
    for word in ("limited", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", LARGE_ROWS, word], env=environment(), capture_output=True, text=True, check=True
        )
        kept[word] = int(done.stdout)
    assert kept["limited"] < 110 < 200 < kept["plain"]
