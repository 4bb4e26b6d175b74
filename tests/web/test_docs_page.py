"""``/docs`` in a real browser: in the reader's colours, and behind a prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.process import PATIENCE, Persistd

Scheme = Literal["light", "dark"]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that has nothing to complain about."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE * 1000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert complaints == []


def brightness(page: Page, selector: str, property: str) -> float:
    """From 0, black, to 255; what is transparent shows the page's white."""
    shown = page.locator(selector).first.evaluate("(element, name) => getComputedStyle(element)[name]", property)
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", shown))
    return 255.0 if alpha == [0] else (red + green + blue) / 3


def test_the_docs_are_dark_for_who_prefers_that_and_follow_a_change(tmp_path: Path, page: Page) -> None:
    with Persistd(tmp_path) as service:
        page.emulate_media(color_scheme="dark")
        page.goto(f"{service.url}/docs")
        paths = service.http.get("/openapi.json").json()["paths"]
        expect(page.locator(".opblock")).to_have_count(sum(map(len, paths.values())))
        schemes: tuple[Scheme, ...] = ("dark", "light", "dark")
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("html")).to_have_class("dark-mode" if scheme == "dark" else "")
            dark = scheme == "dark"
            assert (brightness(page, "html", "backgroundColor") < 60) == dark
            # The title, the paragraphs below it, and the name of a path.
            for text in (".info .title", ".info p", ".opblock-summary-path"):
                assert (brightness(page, text, "color") > 150) == dark, text


def test_the_docs_work_behind_a_prefix(tmp_path: Path, page: Page) -> None:
    with Persistd(tmp_path) as service:
        asked: list[str] = []

        def forward(route: Route) -> None:
            """As a proxy does that takes the prefix away."""
            path = route.request.url.removeprefix(f"{service.url}/some/prefix/")
            asked.append(path)
            route.fulfill(response=route.fetch(url=f"{service.url}/{path}"))

        page.route(f"{service.url}/some/prefix/**", forward)
        page.goto(f"{service.url}/some/prefix/docs")
        block = page.locator("#operations-health-live")
        block.locator(".opblock-summary-control").click()
        block.get_by_role("button", name="Try it out").click()
        block.get_by_role("button", name="Execute").click()
        answer = block.locator(".live-responses-table")
        expect(answer).to_contain_text('"status": "alive"')
        expect(block.locator(".request-url")).to_contain_text(f"{service.url}/some/prefix/health/live")
        assert "health/live" in asked
