"""Three instances over a Galera cluster of three real nodes, which are killed, stopped and cut off."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from tests import balancers, galera, tools
from tests.cluster import load
from tests.galera import Cluster, Node
from tests.process import AtWork, Persistd, wait_until
from tests.rows import session, task
from tests.servers import free_port
from tests.sinks.readers import connect_mysql, read_mysql
from tests.test_balancer import haproxy
from tornado_persist import testing
from tornado_persist.errors import SinkConflict, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.records.queries import Query
from tornado_persist.sinks.mysql import MySQLSettings, MySQLSink
from tornado_persist.testing import Stored

pytestmark = pytest.mark.skipif(
    galera.LIBRARY is None or tools.find("wsrep_sst_rsync") is None,
    reason="Galera is not installed (Debian: galera-4, mariadb-server)",
)

#: Seconds from the cluster's own recovery until rows are written as before.
BACK = 10
#: Seconds between two updates of a busy row by one writer: less than a transaction of 20,000 rows takes, and four times
#: as often as the users whose backlog starved had it.
PAUSE = 0.05
#: Longer than a commit waits while the cluster drops a member (6 s), shorter than a stopped node stays.
CONFIG = "[buffer]\nflush_interval = 0.5\ncapacity = 500\n[sinks.mysql]\nanswer_timeout = 10\nwriters = 'several'\n"
names = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """An empty database on all nodes."""
    cluster.wait()
    name = f"cluster_{next(names)}"
    cluster.nodes[0].create_database(name)
    yield name
    cluster.nodes[0].drop_database(name)


def config(url: str, more: str = CONFIG) -> str:
    return f"sink = 'mysql'\n{more}url = '{url}'\n"


def read(node: Node, database: str) -> Stored:
    node.catch_up()
    return read_mysql(node.url(database))


def drain(instance: Persistd) -> None:
    def empty() -> bool:
        instance.http.post("/api/v1/persistence/flush")
        pending: int = instance.stats()["accounting"]["pending"]
        return pending == 0

    wait_until(empty, "the backlog to be written")


# Faults under load


class Bench:
    """What a fault happens to, and how it is told that all is well again."""

    def __init__(self, cluster: Cluster, instances: list[Persistd], rng: random.Random) -> None:
        self.cluster, self.instances, self.rng = cluster, instances, rng

    def others(self, node: Node) -> list[Node]:
        return [other for other in self.cluster.nodes if other is not node]

    def back(self) -> float:
        """Wait until every instance writes again and has no backlog; the seconds that took."""
        began = time.monotonic()
        before: list[int] = [one.stats()["accounting"]["written"] for one in self.instances]

        def well() -> bool:
            now = [one.stats()["accounting"] for one in self.instances]
            return all(one["written"] > least and one["pending"] < 1000 for one, least in zip(now, before, strict=True))

        wait_until(well, "all instances to write again")
        return time.monotonic() - began

    def lose(self, node: Node) -> float:
        """After a node was lost: the seconds from the recovery of the others until all instances write."""
        lost = self.cluster.wait(2, among=self.others(node))
        seconds = self.back()
        sys.stdout.write(f"the others went on after {lost:.1f} s, all instances {seconds:.1f} s later\n")
        return seconds


def kill_node(bench: Bench) -> float:
    node = bench.rng.choice(bench.cluster.nodes)
    node.kill()
    seconds = bench.lose(node)
    node.start()
    bench.cluster.wait()
    return seconds


def kill_instance(bench: Bench) -> float:
    one = bench.rng.choice(bench.instances)
    one.kill()
    time.sleep(2)
    one.start()
    return bench.back()


def stop_node(bench: Bench) -> float:
    node = bench.rng.choice(bench.cluster.nodes)
    node.suspend()
    resume = threading.Timer(15, node.resume)
    resume.start()
    try:
        return bench.lose(node)
    finally:
        resume.join()
        bench.cluster.wait()


def isolate_node(bench: Bench) -> float:
    node = bench.rng.choice(bench.cluster.nodes)
    node.isolate(True)
    try:
        return bench.lose(node)
    finally:
        node.isolate(False)
        bench.cluster.wait()


@pytest.mark.alone
def test_lost_nodes_and_instances_under_load_cost_no_row_and_all_nodes_agree(
    cluster: Cluster, database: str, tmp_path: Path, soak: int
) -> None:
    seed = time.time_ns() % 10**9
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    faults: list[Callable[[Bench], float]] = [kill_node, kill_instance, stop_node, isolate_node]
    for _ in range((soak or len(faults)) - len(faults)):
        faults.append(rng.choice(faults))
    with contextlib.ExitStack() as stack:
        instances = []
        for number, url in enumerate(cluster.urls(database)):
            (tmp_path / f"{number}").mkdir()
            instances.append(stack.enter_context(Persistd(tmp_path / f"{number}", config(url), port=free_port())))
        balancer = stack.enter_context(haproxy(tmp_path, instances))
        bench = Bench(cluster, instances, rng)
        clients = load.Clients(str(balancer.base_url), seed=seed)
        with clients:
            bench.back()
            for fault in faults:
                seconds = fault(bench)
                assert seconds < BACK, f"{fault.__name__}: written again {seconds:.1f} s after the cluster's recovery"
        sys.stdout.write(f"{len(clients.updates)} rows, longest gap {clients.longest_gap:.1f} s\n")
        assert clients.longest_gap < 5, "the others must go on to accept"
        for one in instances:
            drain(one)
            accounting = one.stats()["accounting"]
            assert accounting["accepted"] == accounting["written"] + accounting["merged"], accounting
            assert not one.log("a bug in the sink")
        assert sum(one.stats()["accounting"]["accepted"] for one in instances) >= len(clients.updates)
        load.check(read(cluster.nodes[0], database), clients.updates)
        for node in cluster.nodes[1:]:
            assert read(node, database) == read(cluster.nodes[0], database)


# Conflicts


@contextlib.contextmanager
def busy_elsewhere(node: Node, database: str, statement: str, pause: float) -> Iterator[list[int]]:
    """Another writer runs ``statement`` on ``node`` again and again; yields how often it went through."""
    done = [0]

    def change() -> None:
        with contextlib.suppress(pymysql.err.OperationalError):
            done[0] += cursor.execute(statement)
        time.sleep(pause)

    with (
        contextlib.closing(connect_mysql(node.url(database))) as connection,
        connection.cursor() as cursor,
        AtWork(change),
    ):
        yield done


@pytest.mark.alone
def test_a_backlog_with_a_row_that_is_busy_on_another_node_does_not_starve(
    cluster: Cluster, database: str, tmp_path: Path
) -> None:
    more = "[buffer]\nflush_interval = 3600\ncapacity = 100000\n[sinks.mysql]\nwriters = 'several'\n"
    with Persistd(tmp_path, config(cluster.urls(database)[0], more)) as instance:
        assert instance.post("session", session("hot")).status_code == 200
        instance.flush()
        for number in range(40):
            rows = [task(f"{number}-{n}", session_id="hot", context="x" * 300) for n in range(1000)]
            assert instance.post("task", *rows).status_code == 200
            if number == 10:
                assert instance.post("session", session("hot", status="completed")).status_code == 200
        change = "UPDATE translation_sessions SET total_tasks = total_tasks + 1 WHERE session_id = 'hot'"
        with contextlib.ExitStack() as stack:
            others = [
                stack.enter_context(busy_elsewhere(node, database, change, PAUSE)) for node in cluster.nodes[1:] * 2
            ]
            wait_until(lambda: sum(count[0] for count in others) > 10, "the other writers")
            began = time.monotonic()
            while (waiting := instance.stats()["accounting"]["pending"]) and time.monotonic() - began < 20:
                instance.http.post("/api/v1/persistence/flush")
        sys.stdout.write(f"{time.monotonic() - began:.1f} s, {sum(count[0] for count in others)} changes by others\n")
        assert not waiting
    stored = read(cluster.nodes[2], database)
    assert len(stored["task"]) == 40_000
    assert stored["session"]["hot",]["status"] == "completed"


@pytest.mark.parametrize("way", ["bulk", "literals"])
def test_a_write_that_lost_to_another_node_is_never_taken_for_a_commit(
    cluster: Cluster, database: str, tmp_path: Path, way: str
) -> None:
    first, second, third = cluster.nodes
    with first.variable("max_prepared_stmt_count", 0 if way == "literals" else 99):
        sink = MySQLSink(MySQLSettings(url=first.url(database)), tmp_path)
        sink.open()
    hot = [testing.task(f"a-{n}") for n in range(20)]
    sink.write(Batch([], hot))
    change = "UPDATE translation_tasks SET retry_count = retry_count + 1 WHERE task_id = 'a-7'"
    written = conflicts = 0
    try:
        with busy_elsewhere(second, database, change, 0.05):
            deadline = time.monotonic() + 30
            while (written < 10 or conflicts < 20) and time.monotonic() < deadline:
                # They come after the busy ones in the order of the keys: there is more to do when that one is lost.
                rows = [testing.task(f"b-{written:02}-{n:04}", context="x" * 1000) for n in range(1500)]
                try:
                    sink.write(Batch([], [*hot, *rows]))
                    written += 1
                except SinkConflict:
                    conflicts += 1
    finally:
        sink.close()
    sys.stdout.write(f"{written} writes, {conflicts} conflicts\n")
    assert min(written, conflicts) > 0
    for node in (first, second, third):
        with contextlib.closing(connect_mysql(node.url(database))) as connection, connection.cursor() as cursor:
            node.catch_up()
            cursor.execute("SELECT count(*) FROM translation_tasks")
            assert cursor.fetchall() == ((1500 * written + 20,),)


# Which node


@contextlib.contextmanager
def read_only(node: Node) -> Iterator[None]:
    with node.variable("read_only", 1):
        yield


@contextlib.contextmanager
def desynced(node: Node) -> Iterator[None]:
    """The node is as one that gives its data to a new one."""

    def desync() -> bool:
        with contextlib.suppress(pymysql.err.OperationalError):  # the cluster is still busy with itself
            node.admin("SET GLOBAL wsrep_desync = ON")
            return True
        return False

    wait_until(desync, "desync")
    try:
        yield
    finally:
        node.admin("SET GLOBAL wsrep_desync = OFF")


@contextlib.contextmanager
def locked(node: Node) -> Iterator[Callable[[], object]]:
    """The node applies nothing until the context ends, or what it yields is called."""
    admin = pymysql.connect(user="root", unix_socket=str(node.socket_file))
    with contextlib.closing(admin), admin.cursor() as cursor:
        cursor.execute("FLUSH TABLES WITH READ LOCK")
        yield lambda: cursor.execute("UNLOCK TABLES")


def test_of_several_hosts_the_first_that_may_write_is_taken(cluster: Cluster, database: str, tmp_path: Path) -> None:
    first, second, third = cluster.nodes

    def taken() -> int:
        sink = MySQLSink(MySQLSettings(url=cluster.urls(database)[0]), tmp_path)
        sink.open()
        sink.close()
        return int(sink.describe().partition("127.0.0.1:")[2].partition("/")[0])

    assert taken() == first.port
    with read_only(first):
        assert taken() == second.port
        second.suspend()
        try:
            began = time.monotonic()
            assert taken() == third.port
            assert time.monotonic() - began < 20
        finally:
            second.resume()
            cluster.wait()
    with desynced(first):
        assert first.state == "Donor/Desynced"
        assert taken() == second.port
        with read_only(second), read_only(third):
            assert taken() == first.port, "better than one that may not write"
    cluster.wait()


def test_a_node_that_does_not_replicate_is_not_written_to(cluster: Cluster, database: str, tmp_path: Path) -> None:
    first, second, third = cluster.nodes
    one_host = MySQLSink(MySQLSettings(url=first.url(database)), tmp_path)
    three = MySQLSink(MySQLSettings(url=cluster.urls(database)[0]), tmp_path)
    first.admin("SET GLOBAL wsrep_on = OFF")
    try:
        with contextlib.closing(connect_mysql(first.url(database))) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (a INT PRIMARY KEY)")  # it says OK
        with pytest.raises(SinkUnavailable, match="wsrep_on is OFF"):
            one_host.open()
        three.open()
        three.write(Batch([testing.session("s")]))
    finally:
        first.admin("DROP TABLE IF EXISTS t", database)
        first.admin("SET GLOBAL wsrep_on = ON")
        one_host.close()
        three.close()
    assert three.describe().endswith(f":{second.port}/{database}")
    for node in cluster.nodes:
        assert [*read(node, database)["session"]] == [("s",)]
    with pytest.raises(pymysql.err.ProgrammingError):
        third.admin("SELECT * FROM t", database)
    one_host.open()
    one_host.close()


def test_a_read_by_another_node_sees_what_was_written_before(cluster: Cluster, database: str, tmp_path: Path) -> None:
    first, second, _third = cluster.nodes
    sink = MySQLSink(MySQLSettings(url=cluster.urls(database)[0]), tmp_path)
    with read_only(first):
        sink.open()
    reader = sink.reader()
    sink._place = None  # as behind a balancer: reads need not go where the rows go
    try:
        with read_only(second):
            reader.open()
        sink.write(Batch([testing.session("before")]))
        with locked(first) as unlock:  # it applies nothing meanwhile
            sink.write(Batch([testing.session("s")]))
            release = threading.Timer(1, unlock)
            release.start()
            found = reader.page(Query("session"), 1 << 20)
            release.join()
    finally:
        reader.close()
        sink.close()
        cluster.wait()
    assert [row["session_id"] for row in found.rows] == ["before", "s"]


# HAProxy before the nodes


@pytest.mark.alone
def test_haproxy_takes_a_node_that_has_left_the_cluster_out(cluster: Cluster, database: str, tmp_path: Path) -> None:
    first = cluster.nodes[0]
    aborted = first.admin("SHOW GLOBAL STATUS LIKE 'Aborted_connects'")
    port = free_port()
    changes = {f"192.0.2.{n}:3306": f"127.0.0.1:{node.port}" for n, node in enumerate(cluster.nodes, 1)}
    changes["bind 127.0.0.1:3307"] = f"bind 127.0.0.1:{port}"
    with balancers.haproxy(tmp_path, "haproxy-galera.cfg", changes):
        url = f"mysql://persist:secret@127.0.0.1:{port}/{database}"
        wait_until(lambda: answers(url), "HAProxy to find a node")
        with Persistd(tmp_path, config(url)) as instance:
            written: list[float] = []

            def write() -> bool:
                instance.post("task", task())
                if instance.stats()["accounting"]["written"] > counts[-1]:
                    written.append(time.monotonic())
                    counts.append(instance.stats()["accounting"]["written"])
                return len(written) > 1 and written[-1] - began > 12

            counts, began = [0], time.monotonic()
            time.sleep(5)
            wait_until(lambda: write() or counts[-1], "a write")
            # The checks log in and out in good order: the server counts no broken connections.
            assert first.admin("SHOW GLOBAL STATUS LIKE 'Aborted_connects'") == aborted
            faults: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
                ("isolated", lambda: first.isolate(True), lambda: first.isolate(False)),
                ("stopped", first.suspend, first.resume),
            ]
            for way, lose, regain in faults:
                lose()
                began = time.monotonic()
                try:
                    wait_until(write, "writes by another node")
                finally:
                    regain()
                    cluster.wait()
                gap = max(b - a for a, b in itertools.pairwise(written))
                sys.stdout.write(f"{way}: {gap:.1f} s without a write\n")
                assert gap < 11
                time.sleep(3)  # HAProxy takes the node back
                written.clear()


def answers(url: str) -> bool:
    with contextlib.suppress(pymysql.err.OperationalError), contextlib.closing(connect_mysql(url)):
        return True
    return False
