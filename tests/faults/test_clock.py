"""The wall clock is set while the service runs: nothing stops, nothing is negative, the order stays."""

from __future__ import annotations

import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.process import Persistd, persistd, wait_until
from tests.rows import task
from tests.sinks.readers import read_sqlite
from tests.tools import require

CONFIG = "[buffer]\ncapacity = 1000000\nflush_interval = 0.5\n"


def negatives(value: object, path: str = "") -> list[str]:
    """The places of negative numbers in an answer."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in negatives(item, f"{path}.{name}")]
    if isinstance(value, list):
        return [found for item in value for found in negatives(item, path)]
    return [path] if isinstance(value, int | float) and value < 0 else []


def accepted_at(service: Persistd, key: str, **fields: str) -> datetime:
    response = service.post("task", task(key, **fields))
    assert response.status_code == 200
    return datetime.fromisoformat(response.json()["timestamp"])


def faked(clock: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is off by the seconds in the file ``clock``."""
    clock.write_text("+0")
    variables = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    # faketime stays the process's parent, so only its library is taken.
    found = subprocess.run(
        [require("faketime"), "-m", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, check=True
    )
    return {**variables, "LD_PRELOAD": found.stdout.decode().strip()}


@pytest.mark.parametrize("hours", [-8, 8])
def test_the_wall_clock_is_set_while_it_runs(tmp_path: Path, hours: int) -> None:
    clock = tmp_path / "clock"
    variables = faked(clock)
    with Persistd(tmp_path, CONFIG, variables=variables) as service:
        before = accepted_at(service, "a", source_text="old")
        assert abs((before - datetime.now(UTC)).total_seconds()) < 60
        wait_until(lambda: service.stats()["accounting"]["written"] == 1, "the timer's flush")

        clock.write_text(f"{hours * 3600:+}")
        after = accepted_at(service, "a", source_text="new")
        assert after > before
        assert (abs((after - before).total_seconds()) > 3600) == (hours > 0), "it never goes back"
        began = time.monotonic()
        wait_until(lambda: service.stats()["accounting"]["written"] == 2, "the timer's next flush")
        assert time.monotonic() - began < 10
        assert service.http.get("/health").status_code == 200
        for path in ("/health", "/api/v1/persistence/stats", "/history"):
            assert negatives(service.http.get(path).json()) == [], path
        assert service.stats()["performance"]["uptime_seconds"] < 600
        shown = datetime.fromisoformat(service.stats()["flush_info"]["next_flush_time"])
        real = datetime.now(UTC).timestamp() + hours * 3600
        assert abs(shown.timestamp() - real) < 60

        # A start after a flush, and one with waiting rows, know the last accept time too.
        assert service.stop() == 0
        clock.write_text("-40000")
        service.start()
        third = accepted_at(service, "b")
        assert third > after
        service.kill()
        service.start()
        assert accepted_at(service, "c") > third
        service.flush()
        rows = read_sqlite(service.data_dir / "persist.db")
        assert {row["source_text"] for row in rows["task"].values() if row["task_id"] == "a"} == {"new"}


@pytest.mark.alone
@pytest.mark.parametrize("name", ["postgres", "mysql"])
def test_a_clock_that_is_off_the_databases_shows_everywhere(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    clock = tmp_path / "clock"
    variables = faked(clock)
    url = request.getfixturevalue(f"{name}_url")
    with Persistd(tmp_path, f"sink = '{name}'\n[sinks.{name}]\nurl = '{url}'\n", variables=variables) as service:

        def skew() -> float:
            # An idle sink is pinged for /health.
            sink = service.http.get("/health").json()["sink"]
            metrics = service.http.get("/metrics").text
            shown = float(re.findall(r"^persistd_clock_skew_seconds (.+)$", metrics, re.MULTILINE)[0])
            found: float = sink["clock_skew_seconds"]
            assert (sink["clock_problem"] != "") == (abs(found) > 1)
            return shown if abs(shown - found) < 0.5 else 0.0

        assert abs(skew()) < 0.5
        clock.write_text("+30")
        wait_until(lambda: 29 < skew() < 31, "the clock that is ahead to be measured")
        line = service.wait_for_log("clock off")
        ahead = r"clock is (29\.9|30\.0) s ahead of the database's"
        assert re.fullmatch(f"this machine's {ahead}", line["problem"]), line
        for words in ("status", "check"):
            told = persistd(words, "-c", str(service.file), cwd=tmp_path, **variables).stdout
            assert re.search(ahead, told), told
        clock.write_text("-5")
        wait_until(lambda: -6 < skew() < -4, "the clock that is behind")
        assert len(service.log("clock off")) == 1, "once an hour"
        clock.write_text("+0")
        wait_until(lambda: abs(skew()) < 0.5, "the right clock")
        service.wait_for_log("clock right again")
        told = persistd("check", "-c", str(service.file), cwd=tmp_path).stdout
        assert re.search(r"^clock +within 0\.\d+ s of the database's$", told, re.MULTILINE), told
