"""A real Chromium: the pages with a token, pages of other origins, and a host name that was rebound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.process import PATIENCE, Persistd, persistd
from tests.rows import body, task
from tornado_persist.config import tokens
from tornado_persist.web.app import PREFIX


def test_dashboard_and_docs_work_with_a_token_as_the_password(tmp_path: Path, browser: Browser) -> None:
    token, line = tokens.make("me", ["read"])
    with Persistd(tmp_path, f'[auth]\ntokens = ["{line}"]\n') as service:
        with browser.new_context(http_credentials={"username": "me", "password": token}) as context:
            page = context.new_page()
            page.set_default_timeout(PATIENCE * 1000)
            page.goto(f"{service.url}/dashboard")
            expect(page.locator("#headline")).to_have_text("All is well")
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


@pytest.mark.parametrize(
    ("language", "words"), [("en", ("wants a token", "scope read")), ("zh-CN", ("需要令牌", "read 权限"))]
)
def test_the_dashboard_says_what_to_do_when_its_token_is_taken_away_or_may_not_read(
    tmp_path: Path, browser: Browser, language: str, words: tuple[str, str]
) -> None:
    token, line = tokens.make("me", ["read"])
    _, other = tokens.make("other", ["read"])
    file = tmp_path / "tokens"
    file.write_text(line)
    with (
        Persistd(tmp_path, f'[auth]\ntokens_file = "{file}"\n') as service,
        browser.new_context(http_credentials={"username": "me", "password": token}, locale=language) as context,
    ):
        page = context.new_page()
        page.goto(f"{service.url}/dashboard")
        expect(page.locator("#state")).to_have_attribute("data-level", "good", timeout=PATIENCE * 1000)
        for tokens_now, status in ((line.replace(":read:", ":write:"), 403), (other, 401)):
            file.write_text(tokens_now)
            assert persistd("reload", "-c", str(service.file), cwd=tmp_path).returncode == 0
            expect(page.locator("#reason")).to_contain_text(
                "token is not known" if status == 401 else "lacks the scope read", timeout=PATIENCE * 1000
            )
            if status == 401:
                expect(page.locator("#headline")).to_contain_text(words[0])
            expect(page.locator("#sentence")).to_contain_text(words[1])
            page.evaluate("location.hash = 'sessions'")
            expect(page.locator("#view-sessions")).to_contain_text(words[1], timeout=PATIENCE * 1000)
            page.evaluate("location.hash = ''")
        file.write_text(line)
        assert persistd("reload", "-c", str(service.file), cwd=tmp_path).returncode == 0
        page.reload()  # the browser has forgotten a token that was refused
        expect(page.locator("#state")).to_have_attribute("data-level", "good", timeout=PATIENCE * 1000)


class Elsewhere(BaseHTTPRequestHandler):
    """Somebody's page, without any policy."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """The port of a server of such pages."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


#: What a page may try with ``{url, rows}``; what came of it: a status, ``opaque`` (sent, and nothing can be read), or
#: ``blocked``. A form and a frame tell nothing.
TRY = """async ({ url, rows, how, token }) => {
  const batch = `${url}/api/v1/persistence/tasks/batch`, flush = `${url}/api/v1/persistence/flush`;
  const post = (body, more = {}) => [batch, { method: "POST", body, ...more }];
  const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const requests = {
    "no type": post(new Blob([rows])),
    "no type, no cors": post(new Blob([rows]), { mode: "no-cors" }),
    "text": post(rows),
    "text, no cors": post(rows, { mode: "no-cors", credentials: "include" }),
    "json": post(rows, { headers }),
    "flush": [flush, { method: "POST" }],
    "flush, no cors": [flush, { method: "POST", mode: "no-cors" }],
    "delete": [`${url}/api/v1/persistence/sessions/s1`, { method: "DELETE" }],
    "history": [`${url}/api/v1/persistence/history`, token ? { headers } : {}],
    "history, no cors": [`${url}/api/v1/persistence/history`, { mode: "no-cors" }],
  };
  if (how in requests) {
    try {
      const response = await fetch(...requests[how]);
      return response.type === "opaque" ? "opaque" : response.status;
    } catch {
      return "blocked";
    }
  }
  if (how.startsWith("beacon")) {
    navigator.sendBeacon(batch, how === "beacon" ? rows : new Blob([rows]));
    return "sent";
  }
  const frame = document.createElement("iframe");
  frame.name = "frame";
  document.body.append(frame);
  const loaded = new Promise((done) => frame.addEventListener("load", () => done("sent")));
  if (how === "frame") {
    frame.src = `${url}/dashboard`;
    return loaded;
  }
  if (how === "script") {
    const script = document.createElement("script");
    script.src = `${url}/api/v1/persistence/history`;
    const ran = new Promise((done) => { script.onload = () => done("ran"); script.onerror = () => done("blocked"); });
    document.body.append(script);
    return ran;
  }
  // The body of such a form is NAME=VALUE: JSON, if they are cut in the right place.
  const form = document.createElement("form"), input = document.createElement("input");
  Object.assign(form, { method: "POST", action: batch, enctype: how === "form" ? "text/plain" : "", target: "frame" });
  const cut = rows.lastIndexOf("}]}");
  [input.name, input.value] = [`${rows.slice(0, cut)}, "x": "`, `"${rows.slice(cut)}`];
  form.append(input);
  document.body.append(form);
  form.submit();
  return loaded;
}"""
READS = ("history", "history, no cors", "script", "frame")
WRITES = (
    *("no type", "no type, no cors", "text", "text, no cors", "json", "flush", "flush, no cors", "delete"),
    *("beacon", "beacon, no type", "form", "form, urlencoded"),
)


def attempt(page: Page, service: Persistd, url: str, how: str, token: str = "") -> Any:
    """What came of it, once the service has answered whatever was sent."""
    rows = body("task", task("a")).decode()
    before = len(service.log("request"))
    found = page.evaluate(TRY, {"url": url, "rows": rows, "how": how, "token": token})
    if how.startswith("beacon"):
        page.wait_for_function("() => performance.getEntriesByType('resource').length > 0", timeout=PATIENCE * 1000)
        service.http.get("/health/live")
        assert len(service.log("request")) > before
    return found


@pytest.mark.parametrize("host", ["evil.example", "localhost"], ids=["of another site", "of another port"])
def test_a_page_of_another_origin_writes_and_reads_nothing(
    tmp_path: Path, browser: Browser, elsewhere: int, host: str
) -> None:
    with Persistd(tmp_path, "[buffer]\nflush_interval = 3600\n") as service:
        url = f"http://localhost:{httpx.URL(service.url).port}"
        with browser.new_context() as context:
            for how in (*WRITES, *READS):
                page = context.new_page()
                page.goto(f"http://{host}:{elsewhere}/")
                found = attempt(page, service, url, how)
                if how == "history":
                    assert found == "blocked"
                elif how not in ("script", "frame"):
                    assert found in ("blocked", "opaque", "sent"), (how, found)
                if how == "frame":
                    assert [frame.locator("#headline").count() for frame in page.frames[1:]] == [0]
                page.close()
        stats = service.stats()
        assert (stats["accounting"]["accepted"], stats["performance"]["total_flush_count"]) == (0, 0)
        # They arrived and were refused: nothing but the service's own protection is in the way.
        text = service.http.get("/metrics").text
        (denied,) = (
            line for line in text.splitlines() if line.startswith('persistd_auth_failures_total{reason="origin"')
        )
        assert float(denied.split()[-1]) >= 7, denied
        # The same rows, sent by no page.
        assert service.post("task", task("a")).status_code == 200


@pytest.mark.parametrize("with_token", [False, True])
def test_a_page_of_a_trusted_origin_writes_and_reads_as_json_alone(
    tmp_path: Path, browser: Browser, elsewhere: int, with_token: bool
) -> None:
    token, line = tokens.make("page", ["write", "flush", "read"])
    auth = f'[auth]\ntokens = ["{line}"]\n' if with_token else ""
    origin = f"http://evil.example:{elsewhere}"
    config = f"{auth}[buffer]\nflush_interval = 3600\n"
    with Persistd(tmp_path, config, server=f'trusted_origins = ["{origin}"]') as service:
        service.http.headers["Authorization"] = f"Bearer {token}"
        url = f"http://localhost:{httpx.URL(service.url).port}"
        page = browser.new_page()
        page.goto(origin)
        shown = token if with_token else ""
        # No form can say that its body is JSON; a page that says nothing is not taken either.
        for how in ("no type", "text", "form", "beacon"):
            found = attempt(page, service, url, how, shown)
            assert found in (401 if with_token else 415, "sent"), how
        assert service.stats()["accounting"]["accepted"] == 0
        assert attempt(page, service, url, "json", shown) == 200
        assert attempt(page, service, url, "history", shown) == 200
        if with_token:
            assert attempt(page, service, url, "json") == 401
        assert service.stats()["accounting"]["accepted"] == 1
        page.close()
