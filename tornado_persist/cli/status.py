"""``persistd status``: the health of the running service, by its own report."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

from tornado_persist.cli import output
from tornado_persist.cli.client import Client, where
from tornado_persist.cli.command import FAILED, NO_SERVICE, OK, Commands, Configuration
from tornado_persist.errors import ConfigError, PersistError
from tornado_persist.files import DataDir

#: Seconds that an answer may take: the service itself gives its health within half a second.
PATIENCE = 1.0


def add(commands: Commands) -> None:
    more = "0: it is well; 1: it runs and is not well, or does not answer within a second; 3: it does not run."
    status = commands.add("status", _status, "ask the running service how it is", more=more)
    status.add_argument("--json", action="store_true", help="the answer of GET /health, on one line")


def client(configuration: Configuration) -> Client:
    """A client of the service that has ``data_dir``.

    Raises:
        PersistError: it is not known where that is.
    """
    token = configuration.token
    try:
        return Client(where(configuration), PATIENCE, token=token)
    except (ConfigError, ValueError):
        raise PersistError("it has not said yet where it answers; it may be reading its journal") from None


def _status(configuration: Configuration, options: argparse.Namespace) -> int:
    data_dir = DataDir(configuration.data_dir)
    if not data_dir.locked():
        _print({"running": False}, f"persistd does not run: {not_running(data_dir)}", as_json=options.json)
        return NO_SERVICE
    try:
        with client(configuration) as service:
            health = service.health()
    except PersistError as exc:
        found = {"running": True, "pid": data_dir.holder(), "status": "unhealthy", "reason": str(exc)}
        words = f"persistd runs, {process(data_dir)}, data in {data_dir.path}, but is not well: {exc}"
        _print(found, words, as_json=options.json)
        return FAILED
    if "instance" not in health:
        words = f"persistd {_well(health)}; for its figures set PERSISTD_TOKEN to a token with the scope read"
        _print({"running": True, **health}, words, as_json=options.json)
        return OK if health["status"] == "healthy" else FAILED
    _print({"running": True, **health}, "\n".join(_lines(health)), as_json=options.json)
    return OK if health["status"] == "healthy" else FAILED


def _print(found: dict[str, Any], words: str, *, as_json: bool) -> None:
    print(json.dumps(found, ensure_ascii=False) if as_json else words)


def _lines(health: dict[str, Any]) -> list[str]:
    it, sink, waiting = health["instance"], health["sink"], health["waiting"]
    free: int | None = health["disk_free_bytes"]
    facts = {
        "reason": health["reason"],
        "service": f"{it['name']}, {it['url']} on {it['host']}, pid {it['pid']}, data in {it['data_dir']}",
        "batches": f"{'accepted' if health['accepting'] else 'refused now'}; {_refused(health['refused'])}",
        "sink": _sink(sink),
        "waiting": _waiting(waiting),
        "memory": _memory(waiting),
        "journal": _journal(waiting),
        "disk": "not known" if free is None else f"{output.size(free)} free",
        "rejected": _rejected(health["rejected_open_rows"]),
    }
    head = f"persistd {it['version']} {_well(health)}, up for {output.duration(it['uptime_seconds'])}"
    return [head, *(f"{name:<10}{output.printable(text)}" for name, text in facts.items() if text)]


def _well(health: dict[str, Any]) -> str:
    return "is well" if health["status"] == "healthy" else "runs, but is not well"


def _refused(refused: dict[str, Any]) -> str:
    last = refused["last"]
    if last is None:
        return "none was refused"
    ago = output.moment(datetime.fromisoformat(last["at"]), brief=True)
    return f"{refused['batches']:,} refused, the last {ago} to {last['client']}: {last['status']}, {last['detail']}"


def _sink(sink: dict[str, Any]) -> str:
    place = f" at {sink['address']}" if sink["address"] else ""
    since = f" since {output.moment(datetime.fromisoformat(sink['since']))}" if sink["since"] else ""
    again = f", next try in {output.duration(sink['retry_in'])}" if sink["retry_in"] else ""
    clock = f"; {sink['clock_problem']}" if sink["clock_problem"] else ""
    return f"{sink['name']}{place}, {'up' if sink['up'] else 'down'}{since}{again}{clock}"


def _waiting(waiting: dict[str, Any]) -> str:
    rows, oldest = output.count(waiting["rows"], "row"), output.duration(waiting["oldest_seconds"])
    return f"{rows}, the oldest for {oldest}" if waiting["rows"] else "no row"


def _memory(waiting: dict[str, Any]) -> str:
    used, most = output.size(waiting["memory_bytes"]), output.size(waiting["memory_max_bytes"])
    return f"{waiting['in_memory']:,} of {waiting['max_rows']:,} rows, {used} of {most}"


def _journal(waiting: dict[str, Any]) -> str:
    full_in = waiting["journal_full_in_seconds"]
    words = "" if full_in is None else f", full in {output.duration(full_in)}" if full_in else ", full"
    return f"{output.size(waiting['journal_bytes'])} of {output.size(waiting['journal_max_bytes'])}{words}"


def _rejected(rows: int | None) -> str:
    if rows is None:
        return "rejected.jsonl cannot be read"
    return f"{output.count(rows, 'row')} open, see persistd rejected ls" if rows else "no row is open"


def process(data_dir: DataDir) -> str:
    """The process that has locked the directory."""
    pid = data_dir.holder()
    return f"pid {pid}" if pid else "but its process cannot be seen from here (another container, host or user)"


def not_running(data_dir: DataDir) -> str:
    """Why there is no service: no process has locked the directory."""
    return f"no service has {data_dir.path}"
