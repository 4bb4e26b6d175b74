"""The pages for people: whole without the internet, and allowed to load nothing from elsewhere."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import tornado_persist
from tests.process import Persistd

ASSETS = Path(tornado_persist.__file__).parent / "web" / "assets"
PAGES = ["dashboard", "docs"]
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

#: What the dashboard leads to.
OTHERS = {"docs": "text/html", "metrics": "text/plain"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with Persistd(tmp_path_factory.mktemp("pages")) as service:
        yield service.http


@pytest.mark.parametrize("page", PAGES)
def test_everything_that_a_page_names_is_there_and_from_here(page: str, http: httpx.Client) -> None:
    answer = http.get(f"/{page}")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "://" not in answer.text
    named = [name for name in re.findall(r'(?:src|href)="([^"]+)"', answer.text) if not name.startswith(("data:", "#"))]
    assert len(named) == {"dashboard": 7, "docs": 4}[page]
    for name in named:
        file = http.get(f"/{name}")
        assert file.status_code == 200, name
        expected = OTHERS.get(name) or TYPES.get(Path(name).suffix, "application/json; charset=utf-8")
        assert file.headers["Content-Type"].startswith(expected)


def test_the_docs_read_the_description_from_here_and_send_it_nowhere(http: httpx.Client) -> None:
    start = http.get("/docs/start.js").text
    assert re.findall(r'url: "([^"]+)"', start) == ["openapi.json"]
    assert "validatorUrl: null" in start


@pytest.mark.parametrize("page", PAGES)
def test_a_page_may_load_and_send_nothing_elsewhere(page: str, http: httpx.Client) -> None:
    headers = http.get(f"/{page}").headers
    rules = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_dashboard_takes_no_styles_and_images_but_its_files(http: httpx.Client) -> None:
    policy = http.get("/dashboard").headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "data:" not in policy


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/dashboard.js", "/docs/swagger-ui.css"])
def test_a_browser_that_has_a_file_gets_it_no_second_time(path: str, http: httpx.Client) -> None:
    first = http.get(path)
    again = http.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/dashboard/dashboard.js"])
def test_what_is_large_is_sent_compressed_to_who_takes_that(path: str, http: httpx.Client) -> None:
    plain = http.get(path, headers={"Accept-Encoding": "identity"})
    with http.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert "Content-Encoding" not in plain.headers
    assert len(packed) < len(plain.content) / 2
    assert gzip.decompress(packed) == plain.content


@pytest.mark.parametrize(
    "path",
    [
        *("docs/nothing.js", "docs/../base.py", "docs/..%2fbase.py"),
        *("dashboard/../base.py", "dashboard/..%2Fbase.py", "dashboard/uplot", "dashboard/uplot/", "docs/dashboard.js"),
    ],
)
def test_nothing_else_is_handed_out(path: str, http: httpx.Client) -> None:
    answer = http.get(f"/{path}")
    assert answer.status_code == 404
    assert answer.json()["detail"]


@pytest.mark.parametrize("path", ["/dashboard", "/docs", "/docs/swagger-ui.css"])
def test_head_works_here_too(path: str, http: httpx.Client) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0


def test_what_comes_from_others_has_its_licence_beside_it(http: httpx.Client) -> None:
    assert "Apache License" in http.get("/docs/LICENSE").text
    assert http.get("/docs/swagger-ui-bundle.js.LICENSE.txt").status_code == 200
    assert http.get("/docs/NOTICE").status_code == 200
    library = (ASSETS / "dashboard" / "uplot" / "uPlot.iife.min.js").read_text()
    assert re.match(r"/\*! https://github.com/leeoniya/uPlot \(v\d+\.\d+\.\d+\) \*/", library)
    assert "MIT License" in (ASSETS / "dashboard" / "uplot" / "LICENSE").read_text()
