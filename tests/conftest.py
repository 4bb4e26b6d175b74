"""Fixtures that every test may use: the database servers, started when a test first asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.servers import MariaDB, Postgres
from tests.tools import describe

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
        help="the long form of the tests with faults: so many rounds (200) of each instead of 20",
    )


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """Rounds of a test that repeats itself: 20, or as many as ``--soak`` says."""
    count: int = request.config.getoption("--soak") or 20
    return count


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
    url = postgres_server.fresh_database()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def mysql_url(mariadb_server: MariaDB) -> Iterator[str]:
    """A fresh, empty MariaDB database."""
    url = mariadb_server.fresh_database()
    yield url
    mariadb_server.drop(url)
