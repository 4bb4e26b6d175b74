"""The HTTP interface on its parts, without a process of its own: what pytest-tornado serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from tests.rig import Rig
from tornado_persist.testing import FlakySink
from tornado_persist.web.app import Api

#: ``server.max_body_bytes``.
LIMIT = 65536


@pytest.fixture
def sink() -> FlakySink:
    return FlakySink()


@pytest.fixture
def parts(io_loop: IOLoop, sink: FlakySink, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, sink)
    io_loop.run_sync(lambda: rig.start(interval=30, max_batch=100, max_bytes=1 << 20))
    yield rig
    rig.assert_conserved()
    io_loop.run_sync(rig.stop)


@pytest.fixture
def app(parts: Rig) -> Api:
    return Api(parts.ingest, parts.flusher, parts.journal, parts.metrics, max_body_bytes=LIMIT, flush_timeout=0.5)
