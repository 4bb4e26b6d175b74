"""``persistd stats | flush``: a running service's figures, for people."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tornado_persist.cli import table
from tornado_persist.cli.client import Client
from tornado_persist.cli.command import FAILED, OK, Commands, complain
from tornado_persist.cli.remote import add_url, connect
from tornado_persist.config import Settings
from tornado_persist.errors import NoAnswer, PersistError, RequestRefused

#: Seconds between looks.
INTERVAL = 2.0
#: Seconds that an answer to /flush may take beyond ``buffer.flush_timeout``.
FLUSH_GRACE = 10.0
#: Seconds that an answer to /stats may take.
PATIENCE = 5.0

# Home, and clear from there on: unlike clearing first, it does not flicker.
_REDRAW = "\x1b[H\x1b[J"


def add(commands: Commands) -> None:
    stats = commands.add("stats", _stats, "show what waits in the running service, and what it did")
    add_url(stats)
    stats.add_argument("--json", action="store_true", help="the service's own JSON, on one line")
    stats.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=INTERVAL,
        metavar="SECONDS",
        help=f"look again every so many seconds ({INTERVAL:g}), until Ctrl-C",
    )
    flush = commands.add("flush", _flush, "have the service write all that waits, and return once it has")
    add_url(flush)
    flush.add_argument("--json", action="store_true", help="the service's own JSON, on one line")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("between 0.1 and 86400 seconds")
    return seconds


def _stats(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    with connect(settings, options, PATIENCE) as client:
        if options.watch is None:
            print(_shown(client.stats(), client.url, {}, as_json=options.json))
            return OK
        try:
            _watch(client, options.watch, as_json=options.json)
        except KeyboardInterrupt:
            if sys.stdout.isatty():
                print()
        return OK


def _watch(client: Client, interval: float, *, as_json: bool) -> None:
    """Once it has answered, a service that does not is no reason to end: it may be just the restart that is awaited."""
    redraw = _REDRAW if sys.stdout.isatty() and not as_json else ""
    before: dict[str, Any] = {}
    seen = 0.0
    while True:
        began = time.monotonic()
        try:
            stats = client.stats()
            rates = _rates(before, stats, began - seen)
            before, seen = stats, began
            print(redraw + _shown(stats, client.url, rates, as_json=as_json), flush=True)
        except (NoAnswer, RequestRefused) as exc:
            if not before:
                raise
            if redraw:
                print(f"{redraw}{client.url}, {table.clock(datetime.now(UTC))}\n\n{exc}", flush=True)
            else:
                complain(exc)
        if not redraw and not as_json:
            print(flush=True)
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def _rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, str]:
    """How the rows of the accounting went since the last look."""
    old, new = before.get("accounting", {}), now.get("accounting", {})
    return {name: f"{(new[name] - old[name]) / seconds:+,.0f}/s" for name in new if name in old}


def _shown(stats: dict[str, Any], url: str, rates: dict[str, str], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(stats, ensure_ascii=False)
    now = datetime.now(UTC)
    rows = []
    for section, figures in stats.items():
        found = figures if isinstance(figures, dict) else {"": figures}
        for index, (name, value) in enumerate(found.items()):
            title = section.replace("_", " ") if index == 0 else ""
            rate = rates.get(name, "") if section == "accounting" else ""
            label, words = _figure(name, value, now)
            rows.append([title, label, words, rate])
    # Times and rates differ in length; figures stand under one another.
    return "\n".join([f"{url}, {table.clock(now)}", "", *table.table(rows, "--rr")])


def _figure(name: str, value: Any, now: datetime) -> tuple[str, str]:
    """A figure's label, and its value with the unit that its name ends in."""
    label = name.replace("_", " ")
    if value is None:
        return label.removesuffix(" time"), "never"
    if isinstance(value, bool | list | dict):
        return label, json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        try:
            return label.removesuffix(" time"), table.moment(datetime.fromisoformat(value), now)
        except (ValueError, TypeError):
            return label, value
    match name.rpartition("_")[2]:
        case "seconds":
            return label.removesuffix(" seconds"), table.duration(value)
        case "bytes":
            return label, table.size(int(value))
        case "ms":
            return label.removesuffix(" ms"), f"{value:,} ms"
        case "percent":
            return label.removesuffix(" percent"), f"{value:,} %"
    return label, f"{value:,}"


def _flush(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    with connect(settings, options, settings.buffer.flush_timeout + FLUSH_GRACE) as client:
        try:
            flushed = client.flush()
        except RequestRefused as exc:
            raise PersistError(f"not flushed: {exc}") from exc
    good = flushed["status"] == "flushed"
    if options.json:
        print(json.dumps(flushed, ensure_ascii=False))
        return OK if good else FAILED
    sessions = table.count(flushed["sessions_written"], "session")
    tasks = table.count(flushed["tasks_written"], "task")
    words = f"{sessions} and {tasks} written in {flushed['duration_ms']:,} ms"
    if rejected := flushed.get("rows_rejected", 0):
        words += f"; {table.count(rejected, 'row')} rejected, see persistd rejected ls"
    if good:
        print(f"flushed: {words}")
        return OK
    complain(f"not flushed: {flushed.get('detail', 'no reason given')} ({words})")
    return FAILED
