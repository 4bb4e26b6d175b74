"""``persistd stats | flush``: a running service's figures, for people."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from tornado_persist.cli import output
from tornado_persist.cli.client import Client, add_url, connect
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain
from tornado_persist.errors import NoAnswer, PersistError, RequestRefused

if TYPE_CHECKING:
    from rich.console import Group

#: Seconds between looks.
INTERVAL = 2.0
#: Seconds that an answer to /flush may take beyond ``buffer.flush_timeout``.
FLUSH_GRACE = 10.0
#: Seconds that an answer to /stats may take.
PATIENCE = 5.0
#: Once the first column of a screen has so many lines, the next section goes into the second.
_HALF = 14
#: Characters of a text on such a screen.
_TEXT = 14
#: Labels on such a screen.
_SHORT = {
    "average_flush_duration_ms": "flush_duration_ms",
    "total_sessions_written": "sessions_written",
    "total_tasks_written": "tasks_written",
    "rejected_open_rows": "rejected, open",
}
#: Figures that are shown with their limit, which has no line of its own.
_LIMITS = {"in_memory": "max_rows", "memory_bytes": "memory_max_bytes", "bytes": "max_bytes"}


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


def _stats(configuration: Configuration, options: argparse.Namespace) -> int:
    with connect(configuration, options, PATIENCE) as client:
        if options.watch is None:
            _print(client.stats(), client.url, {}, as_json=options.json)
            return OK
        with contextlib.suppress(KeyboardInterrupt):
            if sys.stdout.isatty() and not options.json:
                _draw(client, options.watch)
            else:
                for stats, rates in _looks(client, options.watch):
                    if isinstance(stats, PersistError):
                        complain(stats)
                        continue
                    _print(stats, client.url, rates, as_json=options.json)
                    print("", end="" if options.json else "\n", flush=True)
        return OK


def _draw(client: Client, interval: float) -> None:
    """The figures on one screen, drawn again at every look."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as screen:
        for stats, rates in _looks(client, interval):
            head = f"{client.url}, {output.clock(datetime.now(UTC))}"
            screen.update(_screen(head, stats, rates), refresh=True)


def _screen(head: str, stats: dict[str, Any] | PersistError, rates: dict[str, str]) -> Group:
    """Two columns of sections: they fit 80 columns and 24 lines."""
    from rich.console import Group
    from rich.text import Text

    if isinstance(stats, PersistError):
        return Group(Text(head), "", Text(output.printable(str(stats))))
    halves: tuple[list[list[str]], list[list[str]]] = ([], [])
    for title, *figures in _rows(stats, rates, brief=True):
        if title:
            half = halves[len(halves[0]) >= _HALF]
            half.append([title.upper()])
        half.append(figures)
    none: list[str] = []
    rows = [[*left, *[""] * (4 - len(left)), *right] for left, right in zip_longest(*halves, fillvalue=none)]
    reason = Text(output.printable(_reason(stats)), no_wrap=True, overflow="ellipsis")
    return Group(Text(head), reason, output.table(rows, "-rr--rr"))


def _looks(client: Client, interval: float) -> Iterator[tuple[dict[str, Any] | PersistError, dict[str, str]]]:
    """The figures and their rates, every ``interval`` seconds.

    After the first answer a missing one does not end it: the service may be restarting.
    """
    before: dict[str, Any] = {}
    seen = 0.0
    while True:
        began = time.monotonic()
        try:
            stats = client.stats()
        except (NoAnswer, RequestRefused) as exc:
            if not before:
                raise
            yield exc, {}
        else:
            rates = _rates(before, stats, began - seen)
            before, seen = stats, began
            yield stats, rates
        time.sleep(max(0.0, interval - (time.monotonic() - began)))


def _rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, str]:
    """The change of the accounting since the last look, in rows a second."""
    old, new = before.get("accounting", {}), now.get("accounting", {})
    return {name: f"{(new[name] - old[name]) / seconds:+,.0f}/s" for name in new if name in old}


def _print(stats: dict[str, Any], url: str, rates: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(stats, ensure_ascii=False))
        return
    print(f"{url}, {output.clock(datetime.now(UTC))}")
    print(output.printable(_reason(stats)))
    # Times and rates differ in length; figures stand under one another.
    output.print_table(_rows(stats, rates), "--rr")


def _reason(stats: dict[str, Any]) -> str:
    """Why the service is not healthy; it is too long for a table."""
    return str(stats.get("health", {}).get("reason", ""))


def _rows(stats: dict[str, Any], rates: dict[str, str], *, brief: bool = False) -> list[list[str]]:
    """Section (in its first row), label, figure and rate; ``brief``: times without the date, and short texts."""
    now = datetime.now(UTC)
    rows = []
    for section, figures in stats.items():
        if brief and section in ("client_drops", "deleted"):
            continue  # there is no room for them
        found = figures if isinstance(figures, dict) else {"": figures}
        limits = {_LIMITS[name]: found.get(_LIMITS[name]) for name in found if name in _LIMITS}
        title = section.replace("_", " ")
        for name, value in found.items():
            if name in limits or value == "" or name == "reason" or (brief and name == "sink_address"):
                continue
            label, words = _figure(name, value, now, brief=brief)
            if (limit := limits.get(_LIMITS.get(name, ""))) is not None:
                words += f", {value / limit:.0%}" if brief else f" of {_figure(name, limit, now)[1]}"
            rate = rates.get(name, "") if section == "accounting" else ""
            rows.append([title, label, words, rate])
            title = ""
    return rows


def _figure(name: str, value: Any, now: datetime, *, brief: bool = False) -> tuple[str, str]:
    """A figure's label, and its value with the unit that its name ends in."""
    label = _SHORT.get(name, name) if brief else name
    label = label.replace("_", " ")
    if value is None:
        unit = name.rpartition("_")[2]
        return label.removesuffix(f" {unit}"), "never" if unit in ("time", "seconds", "last") else "not known"
    if name == "last":
        ago = "" if brief else f", {output.moment(datetime.fromisoformat(value['at']), now, brief=True)}"
        return label, output.printable(f"{value['status']} {value['reason']}{ago}", _TEXT if brief else None)
    if isinstance(value, bool | list | dict):
        return label, json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        try:
            return label.removesuffix(" time"), output.moment(datetime.fromisoformat(value), now, brief=brief)
        except (ValueError, TypeError):
            return label, output.printable(value, _TEXT if brief else None)
    match name.rpartition("_")[2]:
        case "seconds":
            return label.removesuffix(" seconds"), output.duration(value)
        case "bytes":
            return label.removesuffix(" bytes"), output.size(int(value))
        case "ms":
            return label.removesuffix(" ms"), f"{value:,} ms"
        case "percent":
            return label.removesuffix(" percent"), f"{value:,} %"
    return label, f"{value:,}"


def _flush(configuration: Configuration, options: argparse.Namespace) -> int:
    settings = configuration.settings
    with connect(configuration, options, settings.buffer.flush_timeout + FLUSH_GRACE) as client:
        try:
            flushed = client.flush()
        except RequestRefused as exc:
            raise PersistError(f"not flushed: {exc}") from exc
    good = flushed["status"] == "flushed"
    if options.json:
        print(json.dumps(flushed, ensure_ascii=False))
        return OK if good else FAILED
    sessions = output.count(flushed["sessions_written"], "session")
    tasks = output.count(flushed["tasks_written"], "task")
    words = f"{sessions} and {tasks} written in {flushed['duration_ms']:,} ms"
    if rejected := flushed.get("rows_rejected", 0):
        words += f"; {output.count(rejected, 'row')} rejected, see persistd rejected ls"
    if good:
        print(f"flushed: {words}")
        return OK
    complain(f"not flushed: {flushed.get('detail', 'no reason given')} ({words})")
    return FAILED
