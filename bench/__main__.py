"""``bench/run``: see README.rst beside this."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.field import Field
from bench.services import ROOT
from bench.workloads import WORKLOADS, Figures, Scale
from tests.servers import Server

#: A Galera cluster of three nodes is for one workload only.
GALERA = "galera"
SINKS = ("sqlite", "postgres", "mysql", "jsonl")


def main() -> int:
    """Measure, and print the figures of each workload as soon as it is done."""
    options = _options()
    # So that what was started is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for root in (ROOT, options.against):
        if root is not None:  # its environment is made now, not during a workload
            subprocess.run([root / "bin" / "persistd", "--help"], stdout=subprocess.DEVNULL, check=True)
    rounds, batches = options.rounds or (3 if options.quick else 5), tuple(options.batch)
    if options.quick:
        scale = Scale(rounds, batches, rows=20_000, requests=4000, seconds=2.0, backlog=40_000, reads=20)
    else:
        scale = Scale(rounds, batches, rows=100_000, requests=20_000, seconds=10.0, backlog=200_000, reads=100)
    other = f", beside {options.against}" if options.against else ""
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, {rounds} rounds{other}")
    failures = 0
    servers: dict[str, Server] = {}
    began = time.monotonic()
    try:
        for sink in dict.fromkeys(options.sink):
            for name in ["instances"] if sink == GALERA else dict.fromkeys(options.workload):
                print(f"{time.monotonic() - began:5.0f} s  {sink}: {name}", file=sys.stderr)
                try:
                    with Field(sink, servers, options.against) as field:
                        for figures in WORKLOADS[name](field, scale):
                            print("\n".join(report(sink, figures)), flush=True)
                except Exception as exc:
                    failures += 1
                    print(f"FAILED {sink}: {name}: {type(exc).__name__}: {exc}", flush=True)
    finally:
        for server in servers.values():
            server.close()
    return 1 if failures else 0


def report(sink: str, figures: list[Figures]) -> Iterator[str]:
    """For each contender median, least and most of all rounds, and the ratio of this service to it."""
    yield f"\n{sink}: {figures[0].workload}"
    yield f"  {'':31}{'median':>10}{'min':>10}{'max':>10}   this/other: median, min, max"
    for figure in figures:
        for name, values in figure.values.items():
            line = f"  {figure.measure + ', ' + name:31}{_columns(values)}"
            if name != "this":
                # Within each round, so that a slow minute of the machine counts for both.
                ratios = [mine / theirs for mine, theirs in zip(figure.values["this"], values, strict=True)]
                line += f"   {statistics.median(ratios):.2f}, {min(ratios):.2f}, {max(ratios):.2f}"
            yield line


def _columns(values: list[float]) -> str:
    return "".join(
        f"{value:10,.0f}" if value >= 1000 else f"{value:10.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure the service beside others.")
    parser.add_argument(
        "--sink",
        nargs="+",
        choices=(*SINKS, GALERA),
        default=list(SINKS),
        metavar="NAME",
        help=f"{', '.join(SINKS)}; {GALERA} for instances",
    )
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS)
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[500, 100], metavar="N", help="rows a request (rows)")
    parser.add_argument("--rounds", type=int, metavar="N", help="5, or 3 with --quick and at most 3 of outage, replay")
    parser.add_argument("--against", type=_checkout, metavar="CHECKOUT", help="another checkout, instead of the peers")
    parser.add_argument("--quick", action="store_true", help="small counts, rough figures")
    return parser.parse_args()


def _checkout(text: str) -> Path:
    root = Path(text).resolve()
    if not (root / "bin" / "persistd").is_file():
        raise argparse.ArgumentTypeError(f"{root} has no bin/persistd")
    return root


if __name__ == "__main__":
    sys.exit(main())
