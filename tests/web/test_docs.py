"""The page on the interface: whole without the internet, and allowed to load nothing from elsewhere."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.process import Persistd
from tornado_persist.web.description import Limits, describe


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with Persistd(tmp_path_factory.mktemp("docs"), server="max_batch = 77\n") as service:
        yield service.http


def test_the_description_is_served_with_the_limits_in_force(http: httpx.Client) -> None:
    answer = http.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json() == describe(Limits(max_batch=77, max_body_bytes=10_485_760, flush_timeout=8.0))


def test_everything_that_the_page_names_is_there_and_from_here(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "://" not in page.text
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) == 5
    for name in named:
        if not name.startswith("data:"):
            assert http.get(f"/{name}").status_code == 200, name
    start = http.get("/docs/start.js").text
    assert re.findall(r'url: "([^"]+)"', start) == ["openapi.json"]
    assert "validatorUrl: null" in start


def test_the_page_may_load_and_send_nothing_elsewhere(http: httpx.Client) -> None:
    policy = http.get("/docs").headers["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_what_is_large_is_sent_compressed_to_who_takes_that(http: httpx.Client, name: str) -> None:
    plain = http.get(f"/docs/{name}", headers={"Accept-Encoding": "identity"})
    with http.stream("GET", f"/docs/{name}", headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert "Content-Encoding" not in plain.headers
    assert len(packed) < len(plain.content) / 2
    assert gzip.decompress(packed) == plain.content


def test_the_licence_of_what_comes_from_others_goes_with_it(http: httpx.Client) -> None:
    assert "Apache License" in http.get("/docs/LICENSE").text
    assert http.get("/docs/swagger-ui-bundle.js.LICENSE.txt").status_code == 200
    assert http.get("/docs/NOTICE").status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "../base.py", "..%2fbase.py", "swagger-ui.css/"])
def test_nothing_else_is_handed_out(http: httpx.Client, name: str) -> None:
    assert http.get(f"/docs/{name}").status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/docs/swagger-ui.css"])
def test_head_works_here_too(http: httpx.Client, path: str) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0


def test_the_assets_are_part_of_the_package(tmp_path: Path) -> None:
    import tornado_persist

    directory = Path(tornado_persist.__file__).parent / "web" / "assets" / "swagger-ui"
    names = {path.name for path in directory.iterdir()}
    assert names == {"swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt", "swagger-ui.css", "LICENSE", "NOTICE"}
