"""The dashboard in a real browser, on a real service: under load, without its database, and gone."""

from __future__ import annotations

import itertools
import re
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import gethostname

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.process import PATIENCE, AtWork, Persistd, persistd, wait_until
from tests.rows import body, session, task
from tests.servers import Postgres, free_port

HISTORY = "/api/v1/persistence/history"
LIMIT = 0.5
#: All Chinese words of the page; a function is named by its text.
WORDS = "({ZH}) => JSON.stringify(ZH, (_, value) => (typeof value === 'function' ? `${value}` : value))"
TRIGGER = """CREATE TRIGGER no BEFORE INSERT ON translation_tasks WHEN NEW.task_id = 'bad'
BEGIN SELECT RAISE(ABORT, '<img src="/x" onerror="document.body.remove()">'); END"""

Open = Callable[..., Page]


@pytest.fixture
def complaints() -> list[str]:
    """What pages wrote to the console, and scripts' errors; a test that expects some clears it."""
    return []


def close(page: Page) -> None:
    if not page.is_closed():
        page.close()


@pytest.fixture
def visit(browser: Browser, complaints: list[str]) -> Iterator[Open]:
    """Opens the dashboard of a service; every page must have been quiet, and sent requests to the service alone."""
    pages: list[Page] = []
    asked: list[tuple[str, str]] = []

    def visit(
        service: Persistd,
        *,
        width: int = 1280,
        scheme: str = "light",
        locale: str = "en-GB",
        view: str = "",
        before: Callable[[Page], None] = lambda page: None,
    ) -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            locale=locale,
        )
        pages.append(page)
        service.users.callback(close, page)  # else it asks a service that is killed, and complains
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append((service.url, request.url)))
        before(page)
        page.goto(f"{service.url}/dashboard{view}")
        return page

    yield visit
    for page in pages:
        close(page)
    assert complaints == []
    assert [url for origin, url in asked if not url.startswith(f"{origin}/")] == []


@contextmanager
def load(service: Persistd) -> Iterator[None]:
    """A client that sends batches all the time."""
    numbers = itertools.count(step=20)

    def send() -> None:
        number = next(numbers)
        rows = [task(f"t{(number + index) % 50}") for index in range(20)]
        http.post("/api/v1/persistence/tasks/batch", content=body("task", *rows))
        time.sleep(0.02)

    with httpx.Client(base_url=service.url, timeout=PATIENCE) as http, AtWork(send):
        yield


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    """One under load, for so long that its history has something to show."""
    with Persistd(tmp_path_factory.mktemp("service"), "[buffer]\nflush_interval = 0.5") as service, load(service):
        wait_until(lambda: service.http.get(HISTORY).json()["samples"]["at"], "the first sample")
        yield service


def sideways(page: Page) -> int:
    """Pixels that the page is wider than its window."""
    overflow: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return overflow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_service_under_load_is_shown_to_be_well(service: Persistd, visit: Open, width: int, scheme: str) -> None:
    page = visit(service, width=width, scheme=scheme)
    expect(page.locator("#headline")).to_have_text("All is well")
    expect(page.locator("#sentence")).to_contain_text("SQLite")
    for tile in ("accepted", "written", "merged"):
        expect(page.locator(f"#tile-{tile}")).to_have_text(re.compile(r"[1-9]"))
    for tile in ("p50", "p99"):  # read from buckets: all that is known is a bound
        expect(page.locator(f"#tile-{tile}")).to_have_text(re.compile(r"^< [\d.]+ m?s$"))
    expect(page.locator("#answers")).to_have_text(re.compile(r"200 accepted\s*[1-9]"))
    expect(page.locator("#sink")).to_contain_text("✓ Up")
    expect(page.locator("#flushes tr").first).to_contain_text("✓ written")
    expect(page.locator("#no-errors")).to_be_visible()
    expect(page.locator("#chart-throughput strong").first).to_have_text(re.compile(r"[1-9]"))
    assert page.locator(".chart canvas").count() == 5
    assert sideways(page) == 0


def test_a_reload_shows_the_same_history(service: Persistd, visit: Open) -> None:
    page = visit(service)
    for _ in range(2):
        expect(page.locator("#headline")).to_have_text("All is well")
        values = page.locator("#chart-throughput strong")
        expect(values.first).to_have_text(re.compile(r"[1-9]"))
        page.reload()
    samples = service.http.get(HISTORY).json()["samples"]
    assert {len(column) for column in samples.values()} == {len(samples["at"])}
    assert samples["at"] == sorted(samples["at"])
    assert sum(samples["accepted"]) > 0


def test_it_speaks_the_browsers_language(service: Persistd, visit: Open) -> None:
    page = visit(service, locale="zh-CN", width=400)
    expect(page.locator("#headline")).to_have_text("一切正常")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    shown = page.locator("body").inner_text()
    assert "undefined" not in shown
    assert not re.search(r"Accepted|Waiting|Last|rows", shown)
    assert sideways(page) == 0
    assert not re.search(r"(?<!预写)(?<!运行)日志", page.evaluate(f"import('/dashboard/text.js').then({WORDS})"))
    english, chinese = page.evaluate("import('/dashboard/text.js').then(({EN, ZH}) => [EN, ZH].map(Object.keys))")
    assert english == chinese
    expect(visit(service, locale="de-DE").locator("#headline")).to_have_text("All is well")


def test_it_says_which_instance_this_is(service: Persistd, visit: Open) -> None:
    page = visit(service)
    instance = page.locator("#instance")
    name = service.http.get("/health").json()["instance"]["name"]
    for shown in (name, gethostname(), service.url, str(service.data_dir), str(service.process.pid)):
        expect(instance).to_contain_text(shown)
    expect(instance).to_contain_text(re.compile(r"Up for\s*[\d]+ (s|min)"))
    for name, there in (("HTTP interface", "/docs"), ("Metrics", "/metrics")):
        target = page.get_by_role("link", name=name).evaluate("node => node.href")
        assert target == service.url + there
        assert service.http.get(target).status_code == 200


@pytest.mark.parametrize(
    ("columns", "ceiling"),
    [
        ([[]], None),
        ([[0, 0, 0]], None),
        ([[10] * 50], None),
        ([[0] * 50 + [5000]], None),  # nothing but the burst
        ([[10] * 50 + [5000]], 20),
        ([[10] * 50, [0, 0, 0, 0, 0, 60] * 8], None),  # a line that is written by flushes
        ([[10] * 50 + [5000], [0, 0, 0, 0, 0, 60] * 8 + [5000]], 120),
    ],
)
def test_one_burst_does_not_flatten_the_chart_of_rates(
    service: Persistd, visit: Open, columns: list[list[float]], ceiling: float | None
) -> None:
    page = visit(service)
    script = "columns => import('/dashboard/charts.js').then(({ceiling}) => ceiling(columns))"
    assert page.evaluate(script, columns) == ceiling


def test_a_clipped_peak_is_told(service: Persistd, visit: Open) -> None:
    def burst(route: Route) -> None:
        history = service.http.get(HISTORY).json()
        count = 40
        for name in history["samples"]:
            history["samples"][name] = [True if name == "sink_up" else 0] * count
        history["samples"]["at"] = [history["now"] - 5 * (count - index) for index in range(count)]
        history["samples"]["accepted"] = [*[100.0] * 30, 54321.0, *[100.0] * 9]
        route.fulfill(json=history)

    page = visit(service, before=lambda page: page.route(f"**{HISTORY}", burst))
    expect(page.locator("#chart-throughput .legend")).to_contain_text("Clipped; peak:Accepted 54,321")
    page.unroute(f"**{HISTORY}")
    expect(page.locator("#chart-throughput .clipped")).to_be_hidden()


def test_the_keyboard_reads_a_chart(service: Persistd, visit: Open) -> None:
    page = visit(service)
    chart = page.locator("#chart-throughput")
    expect(chart).to_have_attribute("aria-label", re.compile(r"Rows a second, Accepted \d"))
    page.get_by_role("link", name="Metrics").focus()
    page.keyboard.press("Tab")
    expect(chart).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(chart.locator(".when")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    page.keyboard.press("Home")
    expect(chart).to_have_attribute("aria-label", re.compile(r"Rows a second, \d\d:\d\d:\d\d, Accepted"))
    expect(page.locator("#spoken")).to_have_text(re.compile(r"Rows a second, \d\d:\d\d:\d\d, Accepted"))
    # It stays chosen while new samples come and the chart moves on.
    chosen, legend = chart.locator(".when").inner_text(), chart.locator(".legend").inner_text()
    count = len(service.http.get(HISTORY).json()["samples"]["at"])
    wait_until(lambda: len(service.http.get(HISTORY).json()["samples"]["at"]) >= count + 2, "two more samples")
    with page.expect_response(f"**{HISTORY}"):
        pass
    page.evaluate("new Promise(requestAnimationFrame)")
    assert (chart.locator(".when").inner_text(), chart.locator(".legend").inner_text()) == (chosen, legend)
    page.keyboard.press("ArrowRight")
    expect(chart.locator(".when")).not_to_have_text(chosen)
    page.keyboard.press("Escape")
    expect(chart.locator(".when")).to_have_text("")
    page.keyboard.press("Tab")
    expect(page.locator("#chart-waitingRows")).to_be_focused()


def test_what_a_database_says_is_never_taken_for_html(tmp_path: Path, visit: Open) -> None:
    with Persistd(tmp_path) as service:
        service.post("session", session())
        service.flush()
        with closing(sqlite3.connect(service.data_dir / "persist.db")) as database, database:
            database.execute(TRIGGER)
        service.post("task", task("bad"))
        service.flush()
        page = visit(service)
        expect(page.locator("#errors")).to_contain_text('<img src="/x" onerror=')
        expect(page.locator("#errors")).to_contain_text("Rows rejected")
        expect(page.locator("#headline")).to_have_text("Rows were rejected")
        expect(page.locator("#rejected-title")).to_have_text("Rejected rows that are open: 1")
        expect(page.locator("#open")).to_contain_text("s1 / bad")
        expect(page.locator("#open")).to_contain_text('<img src="/x" onerror=')
        expect(page.locator("#accounting")).to_contain_text("+ Rejected1")
        expect(page.locator("#flushes tr").first).to_contain_text("! some rejected")
        assert sideways(page) == 0
        done = persistd("rejected", "drop", "1", "-c", str(service.file), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        expect(page.locator("#rejected")).to_be_hidden()
        expect(page.locator("#headline")).to_have_text("All is well")
        page.close()


def test_rows_that_clients_dropped_are_shown(tmp_path: Path, visit: Open) -> None:
    with Persistd(tmp_path) as service:
        page = visit(service)
        expect(page.locator("#headline")).to_have_text("All is well")
        expect(page.locator("#client-drops")).to_be_hidden()
        told = {"X-Persist-Dropped": "1234; since=0; client=a1", "User-Agent": "tornado-persist-client"}
        service.http.post("/api/v1/persistence/tasks/batch", content=body("task", task()), headers=told)
        for shown in ("Clients dropped rows", "Rows 1,234 since the start", "from 127.0.0.1 (tornado-persist-client)"):
            expect(page.locator("#client-drops")).to_contain_text(shown)
        assert sideways(page) == 0
        narrow = visit(service, width=400, locale="zh-CN")
        expect(narrow.locator("#client-drops")).to_contain_text("客户端丢弃了行")
        assert sideways(narrow) == 0


def test_refused_batches_are_shown_with_reason_and_client(tmp_path: Path, visit: Open) -> None:
    with Persistd(tmp_path) as service:
        page = visit(service)
        expect(page.locator("#headline")).to_have_text("All is well")
        expect(page.locator("#refused")).to_be_hidden()
        wrong = body("task", task("good"), {**task("bad"), "status": "cancelled"})
        hostile = {"User-Agent": "<img src=/x onerror=document.body.remove()>", "X-Request-ID": "job-7"}
        for _ in range(2):
            service.http.post("/api/v1/persistence/tasks/batch", content=wrong, headers=hostile)
        refused = page.locator("#refused")
        for shown in ("batches 2, rows 4", "Tasks", "422 ", "status", "127.0.0.1", hostile["User-Agent"], "job-7"):
            expect(refused).to_contain_text(shown)
        expect(page.locator("#headline")).to_have_text("Batches were refused")
        expect(page.locator("#state")).to_have_attribute("data-level", "warning")
        expect(page.locator("#reason")).to_contain_text("127.0.0.1, <img")
        expect(page.locator("#answers")).to_contain_text("422 invalid")
        expect(page.locator("#errors")).to_contain_text("Batches refused")
        assert sideways(page) == 0
        narrow = visit(service, width=400, locale="zh-CN")
        expect(narrow.locator("#headline")).to_have_text("有批次被拒收")
        assert sideways(narrow) == 0
        page.close()
        narrow.close()


def test_rows_set_aside_at_the_door_are_open_rejected_rows_too(tmp_path: Path, visit: Open) -> None:
    with Persistd(tmp_path, '[records]\ninvalid_rows = "set_aside"') as service:
        answer = service.post("task", task("good"), {**task("bad"), "status": "cancelled"}, {"nothing": "known"})
        assert (answer.status_code, answer.json()["count"]) == (200, 1)
        page = visit(service)
        expect(page.locator("#headline")).to_have_text("Rows were rejected")
        expect(page.locator("#rejected-title")).to_have_text("Rejected rows that are open: 2")
        expect(page.locator("#open")).to_contain_text("s1 / bad")
        expect(page.locator("#refused")).to_be_hidden()
        page.close()


HOSTILE = '<img src="/x" onerror="document.body.remove()">'


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    """A service with sixty sessions; the first has three failed tasks of four, and hostile texts."""
    with Persistd(tmp_path_factory.mktemp("stored")) as service:
        rows = [session(f"s{number:02}", status="processing" if number % 2 else "completed") for number in range(60)]
        rows[0]["filename"] = HOSTILE
        service.post("session", *rows)
        failed = {"session_id": "s00", "status": "failed", "error_message": HOSTILE, "sheet_name": HOSTILE}
        service.post("task", *(task(f"t{number}", **failed) for number in range(3)), task("t3", session_id="s00"))
        many = {"session_id": "s02", "status": "failed"}
        service.post("task", *(task(f"t{number:03}", **many) for number in range(130)))
        service.flush()
        with closing(sqlite3.connect(service.data_dir / "persist.db", isolation_level=None)) as database:
            odd = "updated_at = 'soon', total_tasks = 'many'"  # what others may have stored
            database.execute(f"UPDATE translation_sessions SET {odd} WHERE session_id = 's03'")
        yield service


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_sessions_are_shown_with_progress_and_failed_tasks(
    stored: Persistd, visit: Open, width: int, scheme: str
) -> None:
    page = visit(stored, width=width, scheme=scheme, view="#sessions")
    rows = page.locator("#stored-sessions tr:not(.below)")
    expect(rows).to_have_count(25)
    expect(page.locator("#view-overview")).to_be_hidden()
    expect(rows.first).to_contain_text(HOSTILE)
    expect(rows.first).to_contain_text("75% · 3 of 4 · 3 failed")
    expect(rows.nth(3)).to_contain_text("soon")
    expect(rows.first.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "75")
    page.get_by_role("button", name="s00").click()
    expect(page.locator(".failures li")).to_have_count(3)
    expect(page.locator(".failures p").first).to_have_text(HOSTILE)
    page.get_by_role("button", name="s01").click()
    expect(page.locator(".below:visible").nth(1)).to_contain_text("No stored task has failed")
    assert page.locator("#view-sessions img").count() == 0
    assert sideways(page) == 0
    page.reload()
    expect(rows).to_have_count(25)


def test_sessions_are_filtered_and_paged_by_keyboard_alone(stored: Persistd, visit: Open) -> None:
    page = visit(stored)
    expect(page.locator("#headline")).to_have_text("All is well")
    page.get_by_role("link", name="Overview").focus()
    for key in ("Tab", "Enter"):
        page.keyboard.press(key)
    first, shown = page.locator(".opener").first, page.locator("#sessions-page")
    expect(first).to_have_text("s00")
    page.locator("#sessions-next").focus()
    for number, expected in ((2, "s25"), (3, "s50")):
        page.keyboard.press("Enter")
        expect(shown).to_have_text(f"Page {number}")
        expect(first).to_have_text(expected)
        expect(page.locator("#sessions-next")).to_be_focused()
    expect(page.locator("#sessions-next")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(first).to_have_text("s25")
    page.locator("#sessions-status").focus()
    page.keyboard.press("P")
    page.keyboard.press("P")
    expect(page.locator("#sessions-status")).to_have_value("processing")
    expect(first).to_have_text("s01")
    expect(shown).to_have_text("Page 1")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(first).to_have_attribute("aria-expanded", "true")
    with page.expect_response("**/sessions?*"):  # the next reading changes neither what is open nor the focus
        pass
    expect(first).to_be_focused()
    expect(page.locator(".below:visible")).to_have_count(1)


def test_many_failed_tasks_are_shown_piece_by_piece(stored: Persistd, visit: Open) -> None:
    page = visit(stored, view="#sessions")
    opener = page.get_by_role("button", name="s02")
    opener.click()
    expect(page.locator(".failures li")).to_have_count(20)
    page.get_by_role("button", name="Show more").focus()
    for count in (120, 130):
        page.keyboard.press("Enter")
        expect(page.locator(".failures li")).to_have_count(count)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    expect(opener).to_be_focused()


def test_sessions_are_read_only_while_they_are_shown(stored: Persistd, visit: Open) -> None:
    asked: list[str] = []
    page = visit(stored, before=lambda page: page.on("request", lambda request: asked.append(request.url)))
    expect(page.locator("#headline")).to_have_text("All is well")
    page.get_by_role("link", name="Sessions").click()
    expect(page.locator(".opener").first).to_be_visible()
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("#view-sessions")).to_be_hidden()
    seen = len([url for url in asked if "/sessions?" in url])
    page.wait_for_timeout(6000)
    assert seen == len([url for url in asked if "/sessions?" in url]) > 0


@pytest.mark.parametrize(
    ("locale", "sink", "status", "sentence"),
    [
        ("en-GB", "jsonl", 501, "This sink cannot be read"),
        ("zh-CN", "jsonl", 501, "此写入目标不能读取"),
        ("en-GB", "postgres", 503, "The database cannot be read now"),
        ("zh-CN", "postgres", 503, "目前无法读取数据库"),
    ],
)
def test_a_sink_that_cannot_be_read_is_told_in_a_sentence(
    tmp_path: Path, visit: Open, complaints: list[str], locale: str, sink: str, status: int, sentence: str
) -> None:
    url = f'[sinks.postgres]\nurl = "postgresql://persist@127.0.0.1:{free_port()}/persist"' if status == 503 else ""
    with Persistd(tmp_path, f'sink = "{sink}"\n{url}') as service:
        page = visit(service, width=400, locale=locale, view="#sessions")
        expect(page.locator("#sessions-sentence")).to_contain_text(sentence)
        expect(page.locator("#sessions-reason")).not_to_be_empty()
        expect(page.locator(".sessions")).to_be_hidden()
        assert sideways(page) == 0
        page.close()
    assert all(f"status of {status}" in complaint for complaint in complaints)
    complaints.clear()


@pytest.mark.parametrize("width", [1280, 400])
def test_a_full_journal_is_told_with_its_cause(tmp_path: Path, visit: Open, width: int) -> None:
    sink = f'sink = "postgres"\n[sinks.postgres]\nurl = "postgresql://persist@127.0.0.1:{free_port()}/persist"\n'
    with Persistd(tmp_path, f"{sink}[journal]\nmax_bytes = 4096") as service:
        rows = [task(f"t{index}") for index in range(20)]
        wait_until(lambda: service.post("task", *rows).status_code == 503, "a full journal")
        page = visit(service, width=width)
        expect(page.locator("#headline")).to_have_text("The journal is full")
        expect(page.locator("#state")).to_have_attribute("data-level", "bad")
        expect(page.locator("#sentence")).to_contain_text("The sink postgres does not answer, so nothing leaves")
        expect(page.locator("#reason")).to_have_text(
            re.compile(r"The journal is full.*sink postgres is down", re.DOTALL)
        )
        expect(page.locator("#journal-value")).to_contain_text("of 4 KiB")
        expect(page.locator("#memory-value")).to_contain_text("of 100,000")
        expect(page.locator("#held-value")).to_contain_text(re.compile(r"KiB of 256 MiB$"))
        expect(page.locator("#answers")).to_contain_text("503 not now")
        assert sideways(page) == 0
        chinese = visit(service, width=width, locale="zh-CN")
        expect(chinese.locator("#headline")).to_have_text("预写日志已满")
        assert sideways(chinese) == 0
        page.close()
        chinese.close()


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """A server of this module's own: it is killed here, and the other tests need theirs."""
    with Postgres() as server:
        yield server


@pytest.mark.alone
def test_without_a_database_it_answers_at_once_and_says_so(tmp_path: Path, database: Postgres, visit: Open) -> None:
    config = f'sink = "postgres"\n[sinks.postgres]\nurl = "{database.fresh_database()}"\n[buffer]\nflush_interval = 0.5'
    with Persistd(tmp_path, config) as service:
        page = visit(service, width=400)
        expect(page.locator("#headline")).to_have_text("All is well")
        with load(service):
            database.kill()
            try:
                expect(page.locator("#headline")).to_have_text("The database does not answer")
                expect(page.locator("#state")).to_have_attribute("data-level", "warning")
                expect(page.locator("#sentence")).to_have_text(re.compile(r"nothing is lost: [\d,]+ rows? wait"))
                expect(page.locator("#sink")).to_contain_text("✕ Down")
                expect(page.locator("#sink")).to_contain_text(f"127.0.0.1:{database.port}/")
                expect(page.locator("#errors tr").first).to_contain_text("Flush failed")
                expect(page.locator("#flushes tr").first).to_contain_text("✕ failed")
                for path in ("/dashboard", "/dashboard/dashboard.js", HISTORY):
                    began = time.monotonic()
                    assert service.http.get(path).status_code == 200
                    assert time.monotonic() - began < LIMIT, path
                # Sampled while it is down, so that the charts will tell.
                expect(page.locator("#chart-throughput .band")).to_be_visible()
                assert sideways(page) == 0
            finally:
                database.start()
            expect(page.locator("#headline")).to_have_text("All is well")
            expect(page.locator("#sink")).to_contain_text("✓ Up")


@pytest.mark.alone
def test_shown_sessions_stay_while_the_database_is_away(
    tmp_path: Path, database: Postgres, visit: Open, complaints: list[str]
) -> None:
    with Persistd(tmp_path, f'sink = "postgres"\n[sinks.postgres]\nurl = "{database.fresh_database()}"') as service:
        service.post("session", session())
        service.flush()
        page = visit(service, view="#sessions")
        expect(page.locator(".opener")).to_have_text("s1")
        database.kill()
        try:
            expect(page.locator("#sessions-sentence")).to_contain_text("cannot be read now")
            expect(page.locator(".sessions")).to_have_attribute("data-stale", "yes")
            expect(page.locator(".opener")).to_be_visible()
        finally:
            database.start()
        expect(page.locator("#sessions-failed")).to_be_hidden()
        page.close()
    assert all("status of 503" in complaint for complaint in complaints)
    complaints.clear()


@pytest.mark.alone
def test_a_database_that_hangs_is_told_like_one_that_is_dead(tmp_path: Path, database: Postgres, visit: Open) -> None:
    config = f'sink = "postgres"\n[sinks.postgres]\nurl = "{database.fresh_database()}"\n[buffer]\nflush_interval = 0.5'
    with Persistd(tmp_path, config) as service:
        page = visit(service)
        expect(page.locator("#headline")).to_have_text("All is well")
        database.suspend()
        try:
            service.post("task", task())
            expect(page.locator("#headline")).to_have_text("The database does not answer")
            expect(page.locator("#reason")).to_contain_text("not answered")
        finally:
            database.resume()
        expect(page.locator("#headline")).to_have_text("All is well")
        page.close()


def test_a_full_disk_is_told_and_its_end_too(tmp_path: Path, visit: Open) -> None:
    limit = ("sh", "-c", 'ulimit -S -f 512; exec "$@"', "sh")  # fails a write as a full disk does
    with Persistd(tmp_path, "[buffer]\nflush_interval = 600", prefix=limit) as service:
        large = [task(f"t{index}", source_text="x" * 5000) for index in range(20)]
        wait_until(lambda: service.post("task", *large).status_code == 503, "a full disk")
        page = visit(service)
        expect(page.locator("#headline")).to_have_text("No batch is accepted")
        expect(page.locator("#state")).to_have_attribute("data-level", "bad")
        expect(page.locator("#reason")).to_contain_text("The journal cannot be written: File too large")
        expect(page.locator("#room")).to_contain_text(re.compile(r"Disk free\s*[\d.]+ [MGT]iB"))
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        expect(page.locator("#headline")).to_have_text("Batches were refused")
        expect(page.locator("#refused")).to_contain_text("503 The journal cannot be written")
        page.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_does_not_answer_is_said_to_be_gone(
    tmp_path: Path, visit: Open, complaints: list[str], number: signal.Signals
) -> None:
    with Persistd(tmp_path) as service:
        page = visit(service)
        expect(page.locator("#headline")).to_have_text("All is well")
        service.send(number)
        expect(page.locator("#headline")).to_have_text("The service does not answer")
        expect(page.locator("#live")).to_contain_text("No answer since")
        if number == signal.SIGSTOP:
            service.send(signal.SIGCONT)
            expect(page.locator("#headline")).to_have_text("All is well")
            page.close()
    assert all("net::ERR_" in complaint for complaint in complaints)
    complaints.clear()
