"""Servers that are stopped and killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import MariaDB, Postgres, Server


@pytest.fixture(scope="module", params=[Postgres, MariaDB], ids=["postgres", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of a module's own: it is stopped and killed there, and the other tests need theirs."""
    started: Server = request.param()
    with started:
        yield started
