"""The real Patroni, with etcd and three PostgreSQL servers: the service follows every fail-over, and nothing is lost.

Each fault comes under load, with a list of hosts and behind HAProxy with its example of ``conf/``. Patroni counts
seconds, and so does this: it takes some minutes. ``test_failover.py`` shows in short what promotes by hand.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests import balancers, tools
from tests.cluster.patroni import Cluster, Member
from tests.cluster.replicas import newest
from tests.cluster.test_failover import SOON, history, read, serve, settle
from tests.faults.load import Load
from tests.process import wait_until
from tests.servers import PASSWORD, USER, free_port
from tests.sinks.readers import read_postgres

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        any(tools.find(program) is None for program in tools.PATRONI),
        reason="Patroni or etcd is not installed (Debian: patroni, etcd-server; bin/test --soak installs them)",
    ),
]
#: Seconds until a write without an answer is given up, in the configuration; and after it, in the sink.
ANSWER, GRACE = 5, 5
#: Seconds that Patroni may take to see a fault and promote: its ttl, and as much again on a slow machine.
PATIENCE = 60
#: Seconds that etcd is away.
AWAY = 8


@pytest.fixture(scope="module")
def cluster(soak: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not soak:
        pytest.skip("it takes eight minutes: bin/test --soak 1 tests/cluster/test_patroni.py")
    with Cluster(tmp_path_factory.mktemp("patroni")) as started:
        yield started


def writable(member: Member) -> bool:
    """Whether its PostgreSQL takes writes."""
    try:
        return member.admin("SELECT pg_is_in_recovery()") == [(False,)]
    except psycopg.Error:
        return False


def wait_for(condition: Callable[[], object], what: str) -> float:
    """As ``wait_until``, for as long as Patroni may take; the seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, what
        time.sleep(0.02)
    return time.monotonic() - began


@contextlib.contextmanager
def way(name: str, directory: Path, cluster: Cluster, database: str) -> Iterator[str]:
    """The service's URL: the list begins with the primary."""
    if name == "hosts":
        members = sorted(cluster.members, key=lambda member: not member.answers("primary"))
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in members)
        yield f"postgresql://{USER}:{PASSWORD}@{hosts}/{database}"
        return
    port = free_port()
    servers = (
        f"    server {member.name} 127.0.0.1:{member.port} check port {member.api}" for member in cluster.members
    )
    changes = {
        "127.0.0.1:5000": f"127.0.0.1:{port}",
        # What its comment says.
        "    option external-check\n": "",
        '    external-check path "/usr/local/bin:/usr/bin:/bin"\n': "",
        "    external-check command /etc/haproxy/postgres-is-primary\n": "",
        "#option httpchk": "option httpchk",
        "#default-server port 8008": "default-server port 8008",
        "    server one 127.0.0.1:5432\n    server two 127.0.0.1:5433\n": "\n".join(servers) + "\n",
    }
    with balancers.haproxy(directory, "haproxy-postgres.cfg", changes):
        yield f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{database}"


def do(fault: str, cluster: Cluster, old: Member) -> None:
    """Do to the primary or to etcd what the fault's name says."""
    match fault:
        case "switch-over":
            cluster.switch_over()
        case "PostgreSQL killed":
            old.crash()
        case "PostgreSQL and Patroni killed":
            old.kill()
        case "Patroni stopped":
            old.suspend()
        case "etcd away":
            cluster.etcd.stop()
            wait_for(lambda: not any(map(writable, cluster.members)), "the primary to become read-only")
            time.sleep(AWAY)
            cluster.etcd.start()


def mend(fault: str, old: Member) -> None:
    if fault == "Patroni stopped":
        # As its watchdog would: a Patroni 3.0.2 that was let go on instead led again at times, and had the new primary
        # undo what that had written.
        old.kill()
    if fault in ("Patroni stopped", "PostgreSQL and Patroni killed"):
        old.start()


@pytest.mark.parametrize("name", ["hosts", "haproxy"])
@pytest.mark.parametrize(
    "fault",
    ["switch-over", "PostgreSQL killed", "PostgreSQL and Patroni killed", "Patroni stopped", "etcd away"],
)
def test_what_patroni_does_is_followed(fault: str, name: str, cluster: Cluster, tmp_path: Path) -> None:
    cluster.wait()
    old = cluster.primary
    others = [member for member in cluster.members if member is not old or fault == "etcd away"]
    database = f"db_{time.monotonic_ns()}"
    old.create_database(database)
    with (
        way(name, tmp_path, cluster, database) as url,
        serve(tmp_path, "postgres", url, f"answer_timeout = {ANSWER}") as service,
    ):
        load = Load(service, seed=23, pause=0.02)
        with load:
            wait_until(lambda: service.stats()["accounting"]["written"] > 100)
            began = time.monotonic()
            do(fault, cluster, old)
            wait_for(lambda: any(map(writable, others)), "another primary")
            new = next(member for member in others if writable(member))
            ready, before = time.monotonic() - began, newest(new, database)
            seconds = wait_for(lambda: newest(new, database) > before, history(service))
            sys.stdout.write(f"{fault}, {name}: promoted after {ready:.1f} s, the first row after {seconds:.1f} s\n")
            # The old primary says that it can be written to, and its commits hang.
            hangs = fault == "Patroni stopped" and name == "hosts"
            assert seconds < SOON + hangs * (ANSWER + GRACE), history(service)
            assert read(service, "c0-0") == {200}
            mend(fault, old)
            load.wait_for(50)
            wait_for(cluster.whole, "the old primary to follow the new one")
            load.wait_for(50)
        service.flush()
        settle(service, load, read_postgres(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{new.port}/{database}"))
        assert len(service.log("sink down")) <= 2, history(service)
        assert {line["logger"].partition(".")[0] for line in service.log()} == {"tornado_persist"}, history(service)
