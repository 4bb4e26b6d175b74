"""The alerts, by Prometheus's own tool: each one fires at its trouble and not without it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.process import Persistd
from tests.tools import require
from tornado_persist.web.app import ROUTES

ALERTS = Path(__file__).resolve().parent.parent / "conf" / "prometheus-alerts.yaml"
BOARD = ALERTS.parent / "grafana-dashboard.json"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
Series = dict[str, str]

#: Half an hour in which nothing is wrong, on two busy instances; a value a minute. Counters have old trouble.
QUIET: Series = {}
for instance in ("a:8001", "b:8001"):
    place = f'instance="{instance}",job="some"'
    QUIET |= {
        f"up{{{place}}}": "1x30",
        f"persistd_build_info{{{place}}}": "1x30",
        f"persistd_accepting{{{place}}}": "1x30",
        f'persistd_sink_up{{{place},sink="postgres"}}': "1x30",
        f"persistd_journal_oldest_age_seconds{{{place}}}": "20x30",
        f"persistd_journal_bytes{{{place}}}": "10x30",
        f"persistd_journal_max_bytes{{{place}}}": "100x30",
        f"persistd_journal_full_seconds{{{place}}}": "1e6x30",
        f"persistd_rejected_open_rows{{{place}}}": "0x30",
        f'persistd_batches_refused_total{{{place},kind="task",status="422",reason="invalid"}}': "9x30",
        f'persistd_rows_rejected_total{{{place},kind="task"}}': "7x30",
        f'persistd_rows_lost_total{{{place},kind="task"}}': "3x30",
        f'persistd_flush_failures_total{{{place},error="SinkUnavailable"}}': "5x30",
        f'persistd_journal_fsync_duration_seconds_bucket{{{place},le="0.25"}}': "0+100x30",
        f'persistd_journal_fsync_duration_seconds_bucket{{{place},le="0.5"}}': "0+100x30",
        f'persistd_journal_fsync_duration_seconds_bucket{{{place},le="+Inf"}}': "0+100x30",
        f'persistd_http_requests_total{{{place},handler="TasksBatch",method="POST",status="500"}}': "1x30",
        f"persistd_clock_skew_seconds{{{place}}}": "0.01x30",
        f'persistd_retention_runs_total{{{place},result="done"}}': "1+1x30",
        f'persistd_retention_runs_total{{{place},result="failed"}}': "4x30",
        f'persistd_retention_runs_total{{{place},result="waited"}}': "3x30",
    }

#: The fsyncs that took less than the bound of the alert.
FAST = 'persistd_journal_fsync_duration_seconds_bucket{instance="a:8001",job="some",le="0.25"}'

#: Runs of the retention.
RUNS = 'persistd_retention_runs_total{{instance="a:8001",job="some",result="{}"}}'.format

#: What is unlike that on one of them when an alert has to fire, by the beginning of the series' names.
TROUBLE: dict[str, Series] = {
    "PersistdAbsent": {"up": "1x20 0x10", "persistd_": "1x20 _x10"},
    "PersistdNotAccepting": {"persistd_accepting": "1x5 0x25"},
    "PersistdSinkDown": {"persistd_sink_up": "1x5 0x25"},
    "PersistdBacklogOld": {"persistd_journal_oldest_age_seconds": "0+60x30"},
    "PersistdJournalNearlyFull": {"persistd_journal_bytes": "0+3x30"},
    "PersistdJournalFullSoon": {"persistd_journal_full_seconds": "1e6x10 7000-60x20"},
    "PersistdBatchesRefused": {"persistd_batches_refused_total": "0x20 1x10"},
    "PersistdRowsRejected": {"persistd_rows_rejected_total": "0x20 1x10"},
    "PersistdRejectedRowsOpen": {"persistd_rejected_open_rows": "0x5 3x25"},
    "PersistdRowsLost": {"persistd_rows_lost_total": "0x20 1x10"},
    "PersistdFlushesFail": {"persistd_flush_failures_total": "0+1x30"},
    "PersistdSlowDisk": {FAST: "0+90x30"},
    "PersistdServerErrors": {"persistd_http_requests_total": "0x20 1x10"},
    "PersistdClockOff": {"persistd_clock_skew_seconds": "0x5 -1.5x25"},
    "PersistdRetentionFails": {RUNS("failed"): "0x5 1x10 3x15"},
    "PersistdRetentionWaits": {RUNS("done"): "9x30", RUNS("waited"): "0x20 1x10"},
}

#: Trouble that ends by itself, or is too little: an alert that fires here cries wolf.
HARMLESS: dict[str, Series] = {
    "PersistdAbsent": {"up": "1x27 0 1x2"},
    "PersistdNotAccepting": {"persistd_accepting": "1x28 0x1"},
    "PersistdSinkDown": {"persistd_sink_up": "1x27 0x1 1x1"},
    "PersistdBacklogOld": {"persistd_journal_oldest_age_seconds": "0+10x30"},
    "PersistdJournalNearlyFull": {"persistd_journal_bytes": "79x30"},
    "PersistdJournalFullSoon": {"persistd_journal_full_seconds": "1e6x25 7000-60x5"},
    "PersistdBatchesRefused": {"persistd_batches_refused_total": "5x20 0x10"},
    "PersistdRowsRejected": {"persistd_rows_rejected_total": "5x20 0x10"},
    "PersistdRejectedRowsOpen": {"persistd_rejected_open_rows": "0x5 3x10 0x15"},
    "PersistdRowsLost": {"persistd_rows_lost_total": "5x20 0x10"},
    "PersistdFlushesFail": {"persistd_flush_failures_total": "0x20 1x5 2x5"},
    "PersistdSlowDisk": {FAST: "0+99.5x30"},
    "PersistdServerErrors": {"persistd_http_requests_total": "5x20 0x10"},
    "PersistdClockOff": {"persistd_clock_skew_seconds": "-0.9x10 _x10 5x3 0x7"},
    "PersistdRetentionFails": {RUNS("failed"): "4x20 5x10"},
    # The first day of a service that knows nothing of the clock.
    "PersistdRetentionWaits": {RUNS("done"): "0x30", RUNS("waited"): "0+1x30"},
}


def changed(changes: Series, instance: str = "a:8001") -> Series:
    """A quiet half hour in which one instance has other values."""
    found = dict(QUIET)
    for beginning, values in changes.items():
        names = [name for name in QUIET if name.startswith(beginning) and f'"{instance}"' in name]
        assert names, beginning
        found |= dict.fromkeys(names, values)
    return found


def input_series(series: Series) -> list[Series]:
    """As a file of promtool has them."""
    return [{"series": name, "values": values} for name, values in series.items()]


def case(series: Series, alert: str, *firing: str) -> dict[str, Any]:
    """A test of promtool: after 29 minutes the alert fires for these instances; the empty name is no instance."""
    samples = [{"labels": f'{{instance="{instance}"}}' if instance else "{}", "value": 1} for instance in firing]
    expression = f'sum by (instance) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "interval": "1m",
        "input_series": input_series(series),
        "promql_expr_test": [{"expr": expression, "eval_time": "29m", "exp_samples": samples}],
    }


def check(directory: Path, *cases: dict[str, Any]) -> None:
    file = directory / "alerts.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": list(cases)}))
    done = subprocess.run([require("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_every_query_of_the_board_and_the_names_are_joined_on(tmp_path: Path) -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    queries = [target for panel in panels for target in panel["targets"]]
    asked, named = [], 0
    series = {}
    for instance in ("a:8001", "b:8001"):
        place = f'instance="{instance}",job="some"'
        series[f'persistd_instance_info{{{place},name="{instance[0]}"}}'] = "1x30"
        series[f'persistd_build_info{{{place},version="1"}}'] = "1x30"
        for name in ("rows_accepted_total", "rows_pending"):
            series[f'persistd_{name}{{{place},kind="task"}}'] = "0+60x30"
        series[f"persistd_clock_skew_seconds{{{place}}}"] = "0x30"
    for query in queries:
        expression = query["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
        joined = "{{name}}" in query["legendFormat"]
        named += joined
        samples = [{"labels": f'{{name="{name}"}}', "value": 1} for name in "ab"]
        # Without its names an expression only has to be one.
        test = f"count by (name) ({expression})" if joined else f"count({expression}) * 0 == 1"
        asked.append({"expr": test, "eval_time": "29m", "exp_samples": samples if joined else []})
    assert named == 4
    check(tmp_path, {"interval": "1m", "input_series": input_series(series), "promql_expr_test": asked})


def test_every_alert_is_tested_here_and_says_what_to_do() -> None:
    assert [rule["alert"] for rule in RULES] == list(TROUBLE) == list(HARMLESS)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_a_fresh_service_has_every_metric_that_the_alerts_name_and_counters_at_0(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        text = service.http.get("/metrics").text
    shown = set(re.findall(r"^(persistd_\w+)", text, re.MULTILINE))
    for rule in RULES:
        named = set(re.findall(r"persistd_\w+", rule["expr"]))
        assert named
        assert named <= shown, rule["alert"]
    # The first of anything has to be an increase: a series that appears with it is none.
    for counter in ("rows_rejected_total", "rows_lost_total", "flush_failures_total"):
        values = re.findall(rf"^persistd_{counter}\{{.*\}} (.*)$", text, re.MULTILINE)
        assert values
        assert set(values) == {"0.0"}, counter
    series = r'^persistd_http_requests_total\{handler="(\w+)",method="(\w+)",status="500"\} 0\.0$'
    failures = set(re.findall(series, text, re.MULTILINE))
    assert {("TasksBatch", "POST"), ("SessionsBatch", "POST"), ("Flush", "POST"), ("Health", "HEAD")} < failures
    assert {handler for handler, _ in failures} == {handler.__name__ for _, handler in ROUTES}


def test_promtool_takes_the_alerts() -> None:
    done = subprocess.run([require("promtool"), "check", "rules", ALERTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", TROUBLE)
def test_an_alert_fires_for_the_instance_in_trouble(tmp_path: Path, alert: str) -> None:
    check(tmp_path, case(changed(TROUBLE[alert]), alert, "a:8001"))


@pytest.mark.parametrize("alert", TROUBLE)
def test_an_alert_does_not_fire_without_trouble(tmp_path: Path, alert: str) -> None:
    check(tmp_path, case(QUIET, alert), case(changed(HARMLESS[alert]), alert))


def test_both_instances_gone_fire_each_and_none_at_all_fires_once(tmp_path: Path) -> None:
    gone = {"up": "1x20 0x10", "persistd_": "1x20 _x10"}
    both = changed(gone) | {name: values for name, values in changed(gone, "b:8001").items() if '"b:8001"' in name}
    others = {'up{instance="c:9100",job="node"}': "0x30"}
    alert = "PersistdAbsent"
    check(tmp_path, case(both, alert, "a:8001", "b:8001"), case(QUIET | others, alert), case(others, alert, ""))


def test_a_summary_names_what_is_gone(tmp_path: Path) -> None:
    (rule,) = (rule for rule in RULES if rule["alert"] == "PersistdAbsent")
    for series, labels, summary in (
        (
            changed(TROUBLE["PersistdAbsent"]),
            {"instance": "a:8001", "job": "some"},
            "a:8001 is out of Prometheus' reach",
        ),
        ({}, {}, "Every persistd is out of Prometheus' reach"),
    ):
        told = {
            "exp_labels": {"severity": "critical", **labels},
            "exp_annotations": {**rule["annotations"], "summary": summary},
        }
        expected = {"eval_time": "29m", "alertname": "PersistdAbsent", "exp_alerts": [told]}
        check(tmp_path, {**case(series, ""), "promql_expr_test": [], "alert_rule_test": [expected]})
