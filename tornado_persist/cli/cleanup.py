"""``persistd cleanup``: has the running service delete old sessions, or say what would go."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from tornado_persist.cli import output
from tornado_persist.cli.client import add_url, connect
from tornado_persist.cli.command import OK, Commands, Configuration
from tornado_persist.errors import PersistError, RequestRefused

#: Seconds that the answer may take: a million rows take minutes.
PATIENCE = 3600.0

_MORE = """Without a number of days the ages of [retention] hold. A session goes with its tasks, if no row of theirs is
newer; unfinished sessions never go. What was deleted cannot be brought back: look with --dry-run first."""
_DAYS = {
    "completed": "completed sessions",
    "failed": "failed sessions",
    "orphans": "tasks whose session does not exist",
}


def add(commands: Commands) -> None:
    parser = commands.add("cleanup", _clean, "delete old sessions now, or say what would go", more=_MORE)
    for name, what in _DAYS.items():
        parser.add_argument(
            f"--{name}-days", type=int, metavar="DAYS", help=f"delete {what} that were not updated for so many days"
        )
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, and say what would go")
    parser.add_argument("--trust-clock", action="store_true", help="also if the clock has leapt ahead by over a day")
    parser.add_argument("--json", action="store_true", help="the service's own JSON, on one line")
    add_url(parser)


def _clean(configuration: Configuration, options: argparse.Namespace) -> int:
    query = {name: days for name in _DAYS if (days := getattr(options, f"{name}_days")) is not None}
    asked: dict[str, Any] = {f"{name}_days": days for name, days in query.items()}
    asked |= {name: "true" for name in ("dry_run", "trust_clock") if getattr(options, name)}
    with connect(configuration, options, PATIENCE) as client:
        try:
            cleaned = client.clean(urlencode(asked))
        except RequestRefused as exc:
            raise PersistError(f"not cleaned: {exc}") from exc
    if options.json:
        print(json.dumps(cleaned, ensure_ascii=False))
        return OK
    rows = [["", "not updated since", "sessions", "tasks", "left out"]]
    for name, rule in cleaned["rules"].items():
        before = output.clock(datetime.fromisoformat(rule["before"]))
        rows.append([name, before, *(f"{rule[key]:,}" for key in ("sessions", "tasks", "waiting"))])
    output.print_table(rows, "--rrr")
    words = "would be deleted" if cleaned["status"] == "dry_run" else "deleted"
    sessions, tasks = output.count(cleaned["sessions"], "session"), output.count(cleaned["tasks"], "task")
    print(f"{sessions} and {tasks} {words}")
    return OK
