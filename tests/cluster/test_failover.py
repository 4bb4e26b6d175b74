"""Databases whose primary is killed, or hands over: the service follows without a restart, and nothing is lost.

PostgreSQL by a list of hosts, behind HAProxy with its example of ``conf/``, and behind PgBouncer in both of its modes;
MariaDB by a list of hosts. Replication is synchronous, so that all that the service was told is committed is there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import balancers, tools
from tests.balancers import PgBouncer
from tests.cluster.replicas import Source, Standby, follow, status, wait_for_write
from tests.faults.load import Load
from tests.process import Persistd, wait_until
from tests.rows import session
from tests.servers import Postgres, database_of, free_port
from tests.sinks.readers import read_mysql, read_postgres
from tornado_persist.sinks import postgres
from tornado_persist.testing import Stored

#: Seconds from the moment in which the new primary can be written to until it has a row.
SOON = 3.0
#: Seconds that a cluster manager takes to see that the primary is gone.
DETECTION = 3.0
#: For a server that is silent: how long an answer may take, and when at the latest the new primary has a row.
LIMIT = "answer_timeout = 2"
GIVEN_UP = SOON + 2 + postgres.GRACE


@pytest.fixture
def primary() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@contextlib.contextmanager
def haproxy(directory: Path, *servers: Postgres) -> Iterator[int]:
    """The example before these servers; its port."""
    port = free_port()
    changes = {
        "127.0.0.1:5000": f"127.0.0.1:{port}",
        "/etc/haproxy/postgres-is-primary": str(balancers.CONF / "postgres-is-primary"),
        "/usr/local/bin:/usr/bin:/bin": f"{tools.require('psql').parent}:/usr/bin:/bin",
        "127.0.0.1:5432": f"127.0.0.1:{servers[0].port}",
        "127.0.0.1:5433": f"127.0.0.1:{servers[1].port}",
    }
    with balancers.haproxy(directory, "haproxy-postgres.cfg", changes):
        yield port


def url(name: str, *ports: int, scheme: str = "postgresql") -> str:
    return f"{scheme}://persist:secret@{','.join(f'127.0.0.1:{port}' for port in ports)}/{name}"


@contextlib.contextmanager
def way(name: str, directory: Path, database: str, primary: Postgres, standby: Postgres) -> Iterator[str]:
    """The service's URL, for one way to the servers."""
    if name == "hosts":
        yield url(database, primary.port, standby.port)
        return
    with haproxy(directory, primary, standby) as port:
        if name == "haproxy":
            yield url(database, port)
        else:
            with PgBouncer(primary, mode=name.partition(" ")[2], behind=port) as pool:
                yield pool.url(database)


def serve(directory: Path, sink: str, url: str, more: str = "") -> Persistd:
    config = f"sink = '{sink}'\n[buffer]\nflush_interval = 1\n[sinks.{sink}]\n{more}\nurl = '{url}'\n"
    return Persistd(directory, config)


def skip_if_long(how: str, soak: int) -> None:
    if how == "silent" and not soak:
        pytest.skip("it waits for time limits: bin/test --soak 1 tests/cluster/test_failover.py")


def settle(service: Persistd, load: Load, stored: Stored) -> None:
    load.record.check(stored)
    accounting = service.stats()["accounting"]
    assert accounting["accepted"] == load.record.acknowledged
    assert (accounting["pending"], accounting["rejected"]) == (0, 0)


def history(service: Persistd) -> str:
    """The log without its requests."""
    lines = [line for line in service.log() if line["event"] != "request"]
    return "\n".join(f"{line['time'][14:23]} {line['event']} {line.get('error', '')}" for line in lines)


def read(service: Persistd, key: str) -> set[int]:
    """How fresh reads of a session are answered, over all of the service's connections for reads."""
    return {service.http.get(f"/api/v1/persistence/sessions/{key}").status_code for _ in range(8)}


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "killed") for name in ("hosts", "haproxy", "pgbouncer session", "pgbouncer transaction")),
        ("hosts", "silent"),
    ],
)
def test_a_postgres_that_is_gone_is_followed_to_its_standby(
    name: str, how: str, primary: Postgres, tmp_path: Path, soak: int
) -> None:
    skip_if_long(how, soak)
    database = database_of(primary.fresh_database())
    with (
        Standby(primary) as standby,
        way(name, tmp_path, database, primary, standby) as address,
        serve(tmp_path, "postgres", address, LIMIT if how == "silent" else "") as service,
    ):
        load = Load(service, seed=23, pause=0.02)
        with load:
            load.wait_for(50)
            wait_until(lambda: service.stats()["accounting"]["written"] > 100)
            (primary.suspend if how == "silent" else primary.kill)()
            time.sleep(DETECTION)
            alone_later = standby.admin("SHOW synchronous_standby_names")
            standby.promote()
            seconds = wait_for_write(standby, database)
            load.wait_for(50)
        service.flush()
        assert seconds < (SOON if how == "killed" else GIVEN_UP), history(service)
        assert alone_later == [("",)]
        settle(service, load, read_postgres(url(database, standby.port)))


def test_an_idle_service_writes_to_the_new_primary_at_once_and_says_so(primary: Postgres, tmp_path: Path) -> None:
    database = database_of(primary.fresh_database())
    with (
        Standby(primary) as standby,
        serve(tmp_path, "postgres", url(database, primary.port, standby.port)) as service,
    ):
        service.post("session", session("before"))
        service.flush()
        primary.stop()
        standby.promote()
        service.post("session", session("after"))
        service.flush()
        assert f":{standby.port}/" in service.log("sink up")[-1]["at"]
        state = service.http.get("/health").json()
        assert f":{standby.port}/" in state["sink"]["description"]
        assert read(service, "before") == read(service, "after") == {200}


@pytest.mark.alone
@pytest.mark.parametrize("name", ["hosts", "haproxy"])
def test_a_postgres_that_hands_over_and_comes_back_read_only_is_left(
    name: str, primary: Postgres, tmp_path: Path
) -> None:
    database = database_of(primary.fresh_database())
    with (
        Standby(primary) as standby,
        way(name, tmp_path, database, primary, standby) as address,
        serve(tmp_path, "postgres", address) as service,
    ):
        load = Load(service, seed=24, pause=0.02)
        with load:
            wait_until(lambda: service.stats()["accounting"]["written"] > 100)
            primary.stop()
            standby.promote()
            seconds = wait_for_write(standby, database)
            follow(primary, standby)
            # The list begins with the old primary, which takes connections again.
            standby.admin(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
                " AND pid <> pg_backend_pid()"
            )
            again = wait_for_write(standby, database)
            load.wait_for(50)
        service.flush()
        assert (seconds < SOON, again < SOON) == (True, True), (seconds, again)
        settle(service, load, read_postgres(url(database, standby.port)))
        wait_until(lambda: read_postgres(url(database, primary.port)) == read_postgres(url(database, standby.port)))


@pytest.mark.alone
@pytest.mark.parametrize("how", ["killed", "silent", "read-only"])
def test_a_mariadb_is_followed_to_its_replica(how: str, tmp_path: Path, soak: int) -> None:
    skip_if_long(how, soak)
    with Source() as source, source.replica() as replica:
        database = database_of(source.fresh_database())
        address = url(database, source.port, replica.port, scheme="mysql")
        with serve(tmp_path, "mysql", address, LIMIT if how == "silent" else "") as service:
            load = Load(service, seed=25, pause=0.02)
            with load:
                wait_until(lambda: service.stats()["accounting"]["written"] > 100)
                assert read(service, "none") == {404}
                if how != "read-only":
                    (source.suspend if how == "silent" else source.kill)()
                    time.sleep(DETECTION)
                else:  # its connections stay
                    source.admin("SET GLOBAL read_only = 1")
                    time.sleep(DETECTION)
                    assert status(source, "Rpl_semi_sync_master_clients") == "1"
                replica.promote()
                seconds = wait_for_write(replica, database)
                load.wait_for(50)
            service.flush()
            assert seconds < (GIVEN_UP if how == "silent" else SOON), history(service)
            settle(service, load, read_mysql(url(database, replica.port, scheme="mysql")))
            service.post("session", session("after"))
            assert read(service, "after") == {200}, "and not what the old primary still has"
            if how == "read-only":
                assert len(read_mysql(url(database, source.port, scheme="mysql"))["task"]) > 0
