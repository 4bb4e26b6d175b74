"""Servers that are stopped and killed."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator

import pytest

from tests.servers import MariaDB, Postgres, Server


@pytest.fixture(scope="module", params=[Postgres, MariaDB], ids=["postgres", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of a module's own: it is stopped and killed there, and the other tests need theirs."""
    started: Server = request.param()
    with started:
        yield started


@pytest.fixture
def rng() -> random.Random:
    """Other moments and rows every time; the seed is in the output of a test that fails."""
    seed = int(os.environ.get("PERSIST_TEST_SEED") or time.time_ns() % 10**9)
    sys.stdout.write(f"PERSIST_TEST_SEED={seed}\n")
    return random.Random(seed)
