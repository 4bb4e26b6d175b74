"""The description as programs get it."""

from __future__ import annotations

from pathlib import Path

from tests.process import Persistd
from tornado_persist.web.description import Limits, describe


def test_the_description_is_served_with_the_limits_in_force(tmp_path: Path) -> None:
    with Persistd(tmp_path, server="max_batch = 77\n") as service:
        answer = service.http.get("/openapi.json")
        head = service.http.head("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json() == describe(Limits(max_batch=77, max_body_bytes=10_485_760, flush_timeout=8.0))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]
