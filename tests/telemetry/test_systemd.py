"""What the service manager hears over a real socket, and the unit file that sets it up."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tools
from tests.process import PATIENCE, Persistd
from tests.rows import task
from tornado_persist.telemetry.systemd import ServiceManager

CONF = Path(__file__).parent.parent.parent / "conf"
UNITS = ["persistd.service", "persistd@.service"]
MANUAL = "[buffer]\nflush_interval = 3600\n"


class Manager:
    """The listening end, as systemd has it."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(PATIENCE)
        self.heard: list[str] = []

    def hear(self, wanted: str) -> None:
        """Listen until a message has come that begins with ``wanted``; messages before it are kept, too."""
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            self.heard += lines
            if any(line.startswith(wanted) for line in lines):
                return


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    it = Manager(tmp_path)
    yield it
    it.socket.close()


def test_a_life_from_ready_to_stopping(tmp_path: Path, manager: Manager) -> None:
    # The queue of the socket holds few messages, and what has no room is not sent: it must not beat too often.
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    with Persistd(tmp_path, MANUAL, variables=variables) as service:
        manager.hear("READY=1")
        assert "STATUS=Reading the journal" in manager.heard
        assert not any(line.startswith("WATCHDOG") for line in manager.heard), "before it serves there is no watchdog"
        manager.hear(f"STATUS=Serving on {service.url}, 0 rows wait, sqlite is up")
        for _ in range(3):
            manager.hear("WATCHDOG=1")
        manager.heard.clear()
        service.send(signal.SIGHUP)
        manager.hear("READY=1")
        said = [line.partition("=")[0] for line in manager.heard if not line.startswith(("WATCHDOG", "STATUS"))]
        assert said == ["RELOADING", "MONOTONIC_USEC", "READY"]
        service.post("task", task("a"))
        assert service.stop() == 0
        manager.hear("STATUS=Shutting down, 1 rows wait")
        assert "STOPPING=1" in manager.heard


def test_a_configuration_that_cannot_be_reloaded_is_no_end_of_being_ready(tmp_path: Path, manager: Manager) -> None:
    with Persistd(tmp_path, MANUAL, variables={"NOTIFY_SOCKET": manager.address}) as service:
        manager.hear("READY=1")
        service.file.write_text("nonsense")
        service.send(signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        service.wait_for_log("configuration not reloaded")


def test_an_event_loop_that_is_stuck_says_no_more_that_it_lives(tmp_path: Path, manager: Manager) -> None:
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    with Persistd(tmp_path, MANUAL, variables=variables) as service:
        manager.hear("WATCHDOG=1")
        service.send(signal.SIGSTOP)
        manager.socket.settimeout(1)
        # What was sent before, then nothing.
        with pytest.raises(TimeoutError):
            manager.hear("never")
        service.send(signal.SIGCONT)
        manager.socket.settimeout(PATIENCE)
        manager.hear("WATCHDOG=1")


def test_a_manager_that_is_gone_or_does_not_listen_changes_nothing(tmp_path: Path, manager: Manager) -> None:
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000"}
    with Persistd(tmp_path, MANUAL, variables=variables) as service:
        # Its queue is full after some messages; every later one would wait for it.
        for _ in range(50):
            assert service.http.get("/health/live").status_code == 200
        manager.socket.close()
        service.send(signal.SIGHUP)
        service.wait_for_log("configuration reloaded")
        assert service.stop() == 0
    assert "Traceback" not in service.log_text()


def test_without_a_manager_nothing_is_sent_and_nothing_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    silent = ServiceManager()
    assert silent.interval is None
    for act in (silent.ready, silent.beat, silent.reloading, silent.stopping):
        act()
    silent.close()


def test_a_long_start_and_a_long_drain_ask_for_time(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    ours = ServiceManager()
    assert ours.interval == 10
    ours.beat()
    manager.hear("EXTEND_TIMEOUT_USEC=60000000")
    ours.ready()
    ours.beat()
    manager.hear("WATCHDOG=1")
    ours.stopping()
    ours.beat()
    manager.hear("EXTEND_TIMEOUT_USEC=60000000")
    ours.close()


# The unit.


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with a program that is on this machine."""
    if not tools.SYSTEMD:
        pytest.skip("unit files are checked with systemd-analyze, which this system has no package of")
    text = (CONF / request.param).read_text()
    assert "ExecStart=/opt/persistd/bin/persistd " in text
    copy = tmp_path / str(request.param).replace("@", "@one")
    copy.write_text(text.replace("/opt/persistd/bin/persistd ", "/bin/true "))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(tools.require("systemd-analyze")), "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_systemd_understands_every_line_of_the_unit(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=11", str(unit))
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


#: What the unit makes of a process's surroundings, as far as it can be made without systemd: a root that is read-only,
#: no other user's processes, no rights of root.
HARDENED = """
mount --make-rprivate /
mount --bind "$0" "$0"
mount -o remount,bind,ro /
mount -t proc -o hidepid=invisible proc /proc
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def test_the_service_runs_where_it_can_write_to_its_directory_alone(tmp_path: Path) -> None:
    prefix = ("unshare", "--mount", "sh", "-ec", HARDENED, str(tmp_path))
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("read-only mounts cannot be made here: that takes root, and a container that allows it")
    with Persistd(tmp_path, MANUAL, prefix=prefix) as service:
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert service.post("task", task("a")).status_code == 200
        assert service.flush()["tasks_written"] == 1
        metrics = service.http.get("/metrics").text
        for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"):
            assert f"\n{name} " in metrics
        service.send(signal.SIGHUP)
        service.wait_for_log("configuration reloaded")
        assert service.stop() == 0
        assert not [line for line in service.log() if line["level"] in ("warning", "error")]


def test_the_unit_calls_for_what_the_service_does(unit: Path) -> None:
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0] != "#")
    assert lines["Type"] == "notify"
    assert int(lines["WatchdogSec"]) > 0
    assert float(lines["TimeoutStopSec"]) > 10.0, "server.shutdown_timeout"
    assert lines["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert lines["RestartPreventExitStatus"] == "2"
    assert lines["LimitCORE"] == "0"
    assert {"MemoryMax", "TasksMax"} <= lines.keys()
    assert lines["Environment"] == f"PERSISTD_DATA_DIR=/var/lib/{lines['StateDirectory']}"


def test_the_template_is_the_unit_with_a_directory_a_name_and_a_file_for_each_instance() -> None:
    one, many = ((CONF / name).read_text().splitlines() for name in UNITS)
    own = [line for line in many if line not in one and not line.startswith("#")]
    assert [line.partition("=")[0] for line in own] == [
        *("Description", "StateDirectory", "Environment", "Environment", "EnvironmentFile", "RuntimeDirectory"),
    ]
    assert all("%i" in line for line in own)
    assert [line for line in one if line not in many] == [
        "# For systemd: /etc/systemd/system/persistd.service. docs/running.rst has the prerequisites.",
        "Description=tornado-persist, a durable write buffer over HTTP",
        "StateDirectory=persistd",
        "Environment=PERSISTD_DATA_DIR=/var/lib/persistd",
        "RuntimeDirectory=persistd",
    ]


def test_no_system_call_of_the_service_is_one_that_the_unit_forbids(tmp_path: Path, unit: Path) -> None:
    if not tools.STRACE:
        pytest.skip("the system calls are watched with strace, which only Linux has")

    def group(name: str) -> set[str]:
        names = [line.strip() for line in analyze("syscall-filter", name).stdout.splitlines()[1:]]
        found: set[str] = set()
        for inner in names:
            if inner and not inner.startswith("#"):
                found |= group(inner) if inner.startswith("@") else {inner}
        return found

    trace = tmp_path / "trace"
    with Persistd(tmp_path, prefix=(str(tools.require("strace")), "-f", "-qq", "-o", str(trace))) as service:
        service.post("task", task("a"))
        service.flush()
        (child,) = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        subprocess.run(["kill", "-HUP", child], check=True)
        service.wait_for_log("configuration reloaded")
        subprocess.run(["kill", "-TERM", child], check=True)
        assert service.process.wait(PATIENCE) == 0
    calls = trace.read_text().splitlines()
    used = {line.split(maxsplit=1)[1].partition("(")[0] for line in calls if "(" in line and "resumed>" not in line}
    assert {"fsync", "pwrite64"} & used or {"fdatasync", "writev"} & used
    allowed = group("@system-service") - group("@privileged") - group("@resources")
    # SQLite gives its files to their owner when root runs it, and does not mind if it may not.
    assert {name for name in used if name.isidentifier()} - allowed <= {"fchown"}
    # MemoryDenyWriteExecute.
    assert not [line for line in calls if "PROT_WRITE|PROT_EXEC" in line]
