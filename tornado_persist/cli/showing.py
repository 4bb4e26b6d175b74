"""``persistd get`` and ``persistd ls``: stored rows for people, or as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tornado_persist.cli import output
from tornado_persist.cli.client import add_url, connect
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain
from tornado_persist.cli.lines import encode
from tornado_persist.records.models import PLURALS, Kind

#: Rows that are asked for at a time, at most, and those that ls shows if it is not told.
_PAGE, _USUAL = 1000, 100
#: Characters of a text in a table.
_CUT = 60
_COLUMNS: Mapping[Kind, Mapping[str, str]] = {
    "session": {
        "session_id": "session",
        "status": "status",
        "progress": "progress",
        "tasks": "tasks",
        "llm_provider": "provider",
        "updated_at": "updated",
        "filename": "file",
    },
    "task": {
        "session_id": "session",
        "task_id": "task",
        "status": "status",
        "sheet_name": "sheet",
        "row_index": "row",
        "updated_at": "updated",
        "error_message": "error",
    },
}
_RIGHT: Mapping[Kind, str] = {"session": "--rr", "task": "----r"}
_FRESH = "What waits for the database is written first."


def add(commands: Commands) -> None:
    group = commands.group("get", "show one stored row")
    one = group.add("session", _get, "a session: its fields, its tasks by status, its progress", more=_FRESH)
    one.add_argument("session", metavar="ID", help="its session_id")
    one.set_defaults(task=None)
    _common(one)
    one = group.add("task", _get, "a task: its fields", more=_FRESH)
    one.add_argument("session", metavar="SESSION", help="its session_id")
    one.add_argument("task", metavar="ID", help="its task_id")
    _common(one)
    group = commands.group("ls", "list stored rows")
    _list(group, "session")
    tasks = _list(group, "task")
    tasks.add_argument("--session", metavar="ID", help="only tasks of this session")


def _list(group: Commands, kind: Kind) -> argparse.ArgumentParser:
    parser = group.add(PLURALS[kind], _ls, f"stored {PLURALS[kind]} in the order of their keys", more=_FRESH)
    parser.set_defaults(kind=kind, session=None)
    parser.add_argument("--status", metavar="STATUS", help="only these; several with commas between them")
    parser.add_argument("--limit", type=_number, default=_USUAL, metavar="N", help=f"at most so many ({_USUAL})")
    _common(parser)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON, a line for each row")
    add_url(parser)


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _get(configuration: Configuration, options: argparse.Namespace) -> int:
    path = [options.session] if options.task is None else [options.session, "tasks", options.task]
    with connect(configuration, options) as client:
        row = client.row("sessions", *path)
    del row["pending"]
    if options.json:
        print(encode(row))
    else:
        output.print_table([[name, _text(name, value)] for name, value in row.items() if value is not None])
    return OK


def _ls(configuration: Configuration, options: argparse.Namespace) -> int:
    kind: Kind = options.kind
    path = [PLURALS[kind]] if options.session is None else ["sessions", options.session, "tasks"]
    query = {"limit": str(min(options.limit, _PAGE)), "status": options.status or "", "fresh": "true"}
    if kind == "session":
        query["counts"] = "true"
    elif not options.json:
        query["fields"] = ",".join(_COLUMNS[kind])
    rows: list[dict[str, Any]] = []
    shown, more, code = 0, False, OK
    with connect(configuration, options) as client:
        for page in client.pages(*path, query=query):
            some = page["items"][: options.limit - shown]
            for problem in page["unread"]:
                complain(problem)
                code = FAILED
            shown += len(some)
            more = page["next"] is not None or len(some) < len(page["items"])
            if options.json:
                sys.stdout.writelines(encode(row) + "\n" for row in some)
            else:
                rows += some
            if shown == options.limit:
                break
    if not options.json:
        cells = [[_cell(row, name) for name in _COLUMNS[kind]] for row in rows]
        output.print_table([list(_COLUMNS[kind].values()), *cells], _RIGHT[kind])
    if shown == options.limit and more:
        sys.stdout.flush()
        complain(f"there are more than {output.count(options.limit, kind)}; --limit shows them")
    return code


def _cell(row: Mapping[str, Any], name: str) -> str:
    return output.printable(_text(name, row.get(name)), _CUT)


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    match name:
        case "updated_at" | "created_at":
            with contextlib.suppress(ValueError):  # somebody else may have stored what is no time
                return output.clock(datetime.fromisoformat(str(value)))
        case "progress":
            return f"{value} %"
        case "tasks" if isinstance(value, dict):
            return ", ".join(f"{count:,} {status}" for status, count in value.items() if count)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | bool) else str(value)
