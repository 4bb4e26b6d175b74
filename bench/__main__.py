"""``bench/run``: see README.rst beside this."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import endurance, plot, table, workloads
from bench.contenders import Field
from bench.databases import SETTINGS, Databases
from bench.machine import load_average, machine, versions
from bench.series import Series
from bench.workloads import FULL, QUICK, Scale

RESULTS = Path(__file__).resolve().parent / "results"
SINKS = ("sqlite", "postgres", "mysql", "jsonl")
WORKLOADS: dict[str, Callable[[Field, Scale], list[Series]]] = {
    "rows": workloads.rows,
    "lives": workloads.lives,
    "single": workloads.single,
    "rates": workloads.rates,
    "sizes": workloads.sizes,
    "buffered": workloads.buffered,
    "outage": endurance.outage,
    "replay": endurance.replay,
    "memory": endurance.memory,
}


def main() -> int:
    """Measure, and show what came of it."""
    options = _options()
    # So that what was started is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    scale = QUICK if options.quick else FULL
    began = time.monotonic()
    about = {"measured": datetime.now(UTC).isoformat(timespec="seconds"), **machine()}
    series: list[Series] = []
    failures: list[str] = []
    databases = Databases()
    try:
        for sink in dict.fromkeys(options.sink):
            for name in dict.fromkeys(options.workload):
                _say(f"{time.monotonic() - began:6.0f} s  {sink}: {name}")
                try:
                    with Field(sink, databases) as field:
                        series += WORKLOADS[name](field, scale)
                except Exception as exc:
                    failures.append(f"{sink}: {name}: {type(exc).__name__}: {exc}")
                    _say(failures[-1])
        used = {**versions(), **databases.versions()}
    finally:
        databases.close()
    about["load average at the end"] = load_average()
    about["minutes"] = f"{(time.monotonic() - began) / 60:.1f}"
    settings = {
        "scale": "quick" if options.quick else "full",
        "persistd": "defaults (capacity 1000, sync always), but where a workload says otherwise",
        **{sink: text for sink, text in SETTINGS.items() if sink in options.sink},
    }
    sys.stdout.write(_report(series, {**about, **settings, "versions": _listed(used)}, failures))
    _save(series, {"machine": about, "settings": settings, "versions": used, "failures": failures})
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure the service beside its peers and limits.")
    parser.add_argument("--sink", nargs="+", choices=SINKS, default=list(SINKS), metavar="NAME", help=", ".join(SINKS))
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS)
    )
    parser.add_argument("--quick", action="store_true", help="small counts: two minutes for a sink, rough figures")
    return parser.parse_args()


def _report(series: list[Series], about: dict[str, str], failures: list[str]) -> str:
    head = [f"{name}: {value}" for name, value in about.items()]
    return "\n".join([*head, "", table.show(series), *(f"FAILED {failure}" for failure in failures), ""])


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


def _save(series: list[Series], about: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    text = json.dumps({**about, "figures": table.export(series)}, ensure_ascii=False, indent=1)
    for name, content in ((f"{stamp}.json", text), (f"{stamp}.svg", plot.draw(series))):
        (RESULTS / name).write_text(content)
        (RESULTS / f"latest{Path(name).suffix}").write_text(content)
    _say(f"written to bench/results/{stamp}.json and .svg, and as latest.json and .svg")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
