"""A real Chromium: the pages with a token, and a host name that was rebound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.process import PATIENCE, Persistd
from tests.tools import require
from tornado_persist.config import tokens
from tornado_persist.web.app import PREFIX

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP rebound.example 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(require("chromium")), args=ARGUMENTS)
        yield browser
        browser.close()


def test_dashboard_and_docs_work_with_a_token_as_the_password(tmp_path: Path, browser: Browser) -> None:
    token, line = tokens.make("me", ["read"])
    with Persistd(tmp_path, f'[auth]\ntokens = ["{line}"]\n') as service:
        with browser.new_context(http_credentials={"username": "me", "password": token}) as context:
            page = context.new_page()
            page.set_default_timeout(PATIENCE * 1000)
            page.goto(f"{service.url}/dashboard")
            expect(page.locator("#headline")).to_have_text("All is well", timeout=PATIENCE * 1000)
            page.goto(f"{service.url}/docs")
            expect(page.locator(".opblock").first).to_be_visible(timeout=PATIENCE * 1000)
        assert token not in service.log_text()


def test_a_rebound_name_reads_nothing(tmp_path: Path, browser: Browser) -> None:
    with Persistd(tmp_path) as service:
        page = browser.new_page()
        answer = page.goto(f"http://rebound.example:{httpx.URL(service.url).port}{PREFIX}/history")
        assert answer is not None
        assert answer.status == 403
        assert service.wait_for_log("request denied")["reason"] == "host"
        page.close()
