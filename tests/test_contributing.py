"""docs/contributing.rst: its files exist, and what it builds works as it says."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path

import httpx
import pytest

import tornado_persist
from tests import test_architecture
from tests.rig import rig
from tornado_persist import listening
from tornado_persist.web import app, handlers
from tornado_persist.web.base import Handler

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contributing.rst").read_text(encoding="utf-8")


def examples() -> list[str]:
    """The blocks of Python on the page."""
    found = re.findall(r"^   \.\. code-block:: python\n\n((?: {7}.*\n|\n)+)", PAGE, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"``((?:tornado_persist|tests|docs|conf)/[\w./-]+)``", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_layout_is_the_one_that_the_architecture_test_holds() -> None:
    rows = re.findall(r"^   \* - ``(\w+)(?:\.py|/)``\n     - .+\n     -(.*)$", PAGE, re.MULTILINE)
    for part, imports in rows:
        allowed = test_architecture.ALLOWED[part] - {part}
        shown = {name.strip() for name in imports.split(",")} - {""}
        assert shown in (allowed, {"all of the above"}), part
    assert {part for part, _ in rows} == test_architecture.ALLOWED.keys() - {"__main__"}


@pytest.mark.gen_test
async def test_the_endpoint_of_the_page_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handler, route = examples()
    space = dict(vars(handlers))
    exec(compile(handler, "contributing.rst", "exec"), space)
    monkeypatch.setattr(handlers, "Version", space["Version"], raising=False)
    added = eval(route.strip().rstrip(","), {"handlers": handlers})
    assert issubclass(added[1], Handler)
    monkeypatch.setattr(app, "ROUTES", [*app.ROUTES, added])
    async with rig(tmp_path) as parts:
        server = app.make_server(parts.api(max_body_bytes=65536))
        sockets = listening.listen("127.0.0.1", 0)
        server.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        try:
            answer = await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{port}/version")
            refused = await asyncio.to_thread(httpx.post, f"http://127.0.0.1:{port}/version")
        finally:
            server.stop()
            await server.close_all_connections()
    assert (answer.status_code, answer.json()) == (200, {"version": tornado_persist.__version__})
    assert (refused.status_code, list(refused.json())) == (405, ["detail"])
