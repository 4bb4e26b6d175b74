"""Fixtures that every test may use: the database servers, started when a test first asks for them; and how the suite
is shared by several processes (``-n``), each of which has servers of its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.servers import MariaDB, Postgres, Server
from tests.tools import describe

# A suite that a shell runs in the background ignores SIGINT, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "suite",
    # An example may wait for a database's fsync.
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
    # A red CI run should be the change's fault, not the dice's; at a desk new examples are welcome.
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        nargs="?",
        type=int,
        const=200,
        default=0,
        metavar="COUNT",
        help="the long form of the tests with faults and of those of reads: so many rounds (200) of each instead of 20",
    )
    parser.addoption(
        "--fuzz-examples",
        type=int,
        default=500,
        metavar="COUNT",
        help="mutated bodies for each test in tests/fuzz (500)",
    )


@pytest.fixture
def fuzz_examples(request: pytest.FixtureRequest) -> int:
    """How many examples a test in ``tests/fuzz`` tries."""
    count: int = request.config.getoption("--fuzz-examples")
    return count


# Several processes

#: Where the longest tests are: they are given out first, lest one process is left with them at the end. Most of those
#: that are to be alone come later, in company of short ones, for whose end they do not wait long.
LONG = (
    "tests/cluster/test_galera.py",
    *("tests/faults/test_kill.py", "tests/faults/test_delete.py"),
    *("tests/faults/test_bad_rows.py", "tests/faults/test_memory.py"),
    *("tests/web/test_dashboard.py", "tests/cli/test_daemon.py"),
)


def group(nodeid: str) -> str:
    """Tests of one group run in one process: those of a module, since they may share its fixtures.

    The tests with faults take too long for that; they share no more than one server, and are parted by that.
    """
    module, _, name = nodeid.partition("::")
    if not module.startswith("tests/faults/"):
        return module
    database = re.search(r"\[.*(sqlite|jsonl|postgres|mysql)", name)
    return f"{module} {database[1]}" if database else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    return scheduler


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Lets no test of another process run meanwhile if this one is to be alone."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    shared = Path(item.config.option.basetemp).parent  # each process has a directory of its own in it
    with (shared / "door").open("a") as door, (shared / "room").open("a") as room:
        # Who waits for the room to be empty keeps the door closed, so that the others do not come in one after another.
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> int:
    """What ``--soak`` says; 0: the short form."""
    count: int = request.config.getoption("--soak")
    return count


@pytest.fixture(scope="session")
def rounds(soak: int) -> int:
    """Rounds of a test that repeats itself: 20, or as many as ``--soak`` says."""
    return soak or 20


def pytest_report_header() -> list[str]:
    return [f"servers: {describe('postgres')}; {describe('mariadbd')}"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A running PostgreSQL."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    """A running MariaDB."""
    with MariaDB() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    yield from fresh(postgres_server)


@pytest.fixture
def mysql_url(mariadb_server: MariaDB) -> Iterator[str]:
    """A fresh, empty MariaDB database."""
    yield from fresh(mariadb_server)


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """A fresh, empty database on the ``server`` of the module or package that asks."""
    yield from fresh(server)


def fresh(server: Server) -> Iterator[str]:
    """An empty database, dropped after the test."""
    url = server.fresh_database()
    yield url
    server.drop(url)
