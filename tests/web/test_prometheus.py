"""What a scrape shows: checked with Prometheus's own tool, against the documentation and the board."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.process import Persistd, wait_until
from tests.rows import session, task
from tests.servers import Postgres
from tests.tools import require

ROOT = Path(__file__).resolve().parent.parent.parent
HISTORY = "/api/v1/persistence/history"
BOARD = ROOT / "conf" / "grafana-dashboard.json"
NAME = re.compile(r"\b(?:persistd|process|python)_\w+")
SUFFIX = re.compile(r"_(?:bucket|sum|count)$")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# SQLite with a trigger that refuses one task.
TRIGGER = """CREATE TRIGGER no BEFORE INSERT ON translation_tasks WHEN NEW.task_id = 'bad'
BEGIN SELECT RAISE(ABORT, 'no'); END"""


def scrape(service: Persistd) -> str:
    response = service.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return response.text


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    """One that has accepted, merged, written and refused rows, and answered well and badly."""
    with Persistd(tmp_path_factory.mktemp("service"), "[buffer]\nflush_interval = 3600") as service:
        assert service.post("session", session("s1")).status_code == 200
        service.flush()
        with closing(sqlite3.connect(service.data_dir / "persist.db")) as database, database:
            database.execute(TRIGGER)
        assert service.post("task", task("a"), task("b"), task("bad")).status_code == 200
        assert service.post("task", task("a", status="completed")).status_code == 200
        service.flush()
        assert service.post("task", task("c")).status_code == 200
        assert service.post("task", task("c", status="wrong")).status_code == 422
        assert service.http.get("/nothing/here").status_code == 404
        # A request is counted when its answer has gone out, which its client may see first.
        wait_until(lambda: 'handler="NotFound"' in scrape(service), "the requests to be counted")
        yield service


@pytest.fixture(scope="module")
def text(service: Persistd) -> str:
    return scrape(service)


def test_promtool_finds_nothing_to_say_about_a_scrape(text: str) -> None:
    done = subprocess.run(
        [require("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rows_add_up_and_are_those_of_the_stats(service: Persistd, text: str) -> None:
    found, accounting = samples(text), service.stats()["accounting"]
    by_term = {
        term: sum(value(found, f"persistd_rows_{term}_total", kind=kind) for kind in ("session", "task"))
        for term in ("accepted", "recovered", "written", "merged", "rejected", "lost")
    }
    pending = sum(value(found, "persistd_rows_pending", kind=kind) for kind in ("session", "task"))
    assert by_term == {"accepted": 6, "recovered": 0, "written": 3, "merged": 1, "rejected": 1, "lost": 0}
    assert pending == 1
    for state, rows in accounting.items():
        assert rows == sum(
            value(found, "persistd_accounting_rows", kind=kind, state=state) for kind in ("session", "task")
        )


def test_requests_are_counted_by_handler_class_and_status(text: str) -> None:
    found = samples(text)
    assert value(found, "persistd_http_requests_total", handler="TasksBatch", method="POST", status="200") == 3
    assert value(found, "persistd_http_requests_total", handler="TasksBatch", method="POST", status="422") == 1
    assert value(found, "persistd_http_requests_total", handler="NotFound", method="GET", status="404") == 1
    assert value(found, "persistd_http_request_duration_seconds_count", handler="TasksBatch", method="POST") == 4
    assert "/nothing" not in text
    assert "_created" not in text, "no gauges of the times at which series were made"


def test_flushes_fsyncs_and_the_sink_show(text: str) -> None:
    found = samples(text)
    assert value(found, "persistd_flush_duration_seconds_count") == 2
    assert value(found, "persistd_flush_rows_sum") == 3
    assert value(found, "persistd_flush_failures_total", error="SinkUnavailable") == 0
    assert value(found, "persistd_journal_fsync_duration_seconds_count") == 4, "one for each batch that came alone"
    assert value(found, "persistd_journal_records") == 1
    assert 0 < value(found, "persistd_journal_bytes") < value(found, "persistd_journal_max_bytes")
    assert value(found, "persistd_sink_up", sink="sqlite") == 1
    assert value(found, "persistd_accepting") == 1


def test_a_bucket_holds_all_below_its_bound_and_the_last_one_everything(text: str) -> None:
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            series: dict[frozenset[tuple[str, str]], list[float]] = {}
            for sample in family.samples:
                labels = frozenset((key, label) for key, label in sample.labels.items() if key != "le")
                if sample.name.endswith("_bucket"):
                    series.setdefault(labels, []).append(sample.value)
                elif sample.name.endswith("_count"):
                    assert series[labels][-1] == sample.value
            assert series
            assert all(buckets == sorted(buckets) for buckets in series.values()), family.name


def names(text: str) -> set[str]:
    """Metrics in a scrape, as an expression would name them without a histogram's suffix."""
    return {SUFFIX.sub("", name) for name, _labels in samples(text)}


def test_every_metric_is_documented_and_every_documented_one_is_there(text: str) -> None:
    documented = set(re.findall(r"``((?:persistd|process|python)_\w+)", (ROOT / "docs" / "metrics.rst").read_text()))
    assert documented == names(text)


def expressions(tree: Any) -> Iterator[str]:
    """Every query in a Grafana board."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            if key in ("expr", "query", "definition") and isinstance(branch, str):
                yield branch
            else:
                yield from expressions(branch)
    elif isinstance(tree, list):
        for branch in tree:
            yield from expressions(branch)


def test_the_board_names_metrics_that_there_are(text: str) -> None:
    board = json.loads(BOARD.read_text())
    named = {SUFFIX.sub("", name) for expression in expressions(board) for name in NAME.findall(expression)}
    assert len(named) > 15
    assert named <= names(text)
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["targets"], panel["title"]


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=1.0.0", "application/openmetrics-text;version=x"]
)
def test_openmetrics_is_given_to_who_asks_for_it(service: Persistd, accept: str) -> None:
    response = service.http.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")


def test_after_a_crash_counters_begin_anew_and_the_accounting_goes_on(tmp_path: Path) -> None:
    with Persistd(tmp_path, "[buffer]\nflush_interval = 3600") as service:
        service.post("task", task("a"), task("b"))
        service.flush()
        service.post("task", task("c"))
        service.kill()
        service.start()
        found = samples(scrape(service))
    assert value(found, "persistd_rows_accepted_total", kind="task") == 0
    assert value(found, "persistd_rows_recovered_total", kind="task") == 1
    assert value(found, "persistd_rows_written_total", kind="task") == 0
    assert value(found, "persistd_rows_pending", kind="task") == 1
    assert value(found, "persistd_accounting_rows", kind="task", state="accepted") == 3
    assert value(found, "persistd_accounting_rows", kind="task", state="written") == 2


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """A server of this module's own: it is killed and suspended here, and the other tests need theirs."""
    with Postgres() as server:
        yield server


@pytest.mark.alone
@pytest.mark.parametrize("hung", [False, True], ids=["dead", "hung"])
def test_a_scrape_and_the_dashboard_are_quick_without_a_database_and_say_so(
    tmp_path: Path, database: Postgres, hung: bool
) -> None:
    url = database.fresh_database()
    config = f'sink = "postgres"\n[sinks.postgres]\nurl = "{url}"\n[buffer]\ncapacity = 1\nflush_interval = 0.2'
    with Persistd(tmp_path, config) as service:
        assert value(samples(scrape(service)), "persistd_sink_up", sink="postgres") == 1
        slowest = 0.0

        def shows(name: str, most: float, least: float = 0, **labels: str) -> bool:
            nonlocal slowest
            began = time.monotonic()
            found = samples(scrape(service))
            slowest = max(slowest, time.monotonic() - began)
            return least <= value(found, name, **labels) <= most

        if hung:
            database.suspend()
        else:
            database.kill()
        try:
            service.post("task", task("a"))
            wait_until(lambda: shows("persistd_sink_up", 0, sink="postgres"), "the scrape to say that the sink is down")
            assert shows("persistd_rows_pending", 1, 1, kind="task")
            for path in ("/dashboard", HISTORY):
                began = time.monotonic()
                assert service.http.get(path).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            assert service.http.get(HISTORY).json()["sink"]["up"] is False
            if not hung:
                failures = "persistd_flush_failures_total"
                wait_until(lambda: shows(failures, 1000, 2, error="SinkUnavailable"), "failed flushes to be counted")
        finally:
            if hung:
                database.resume()
            else:
                database.start()
        assert slowest < 0.5
        wait_until(lambda: shows("persistd_rows_pending", 0, kind="task"), "the row to be written")
        assert shows("persistd_sink_up", 1, 1, sink="postgres")
