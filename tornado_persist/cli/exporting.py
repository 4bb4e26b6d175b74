"""``persistd export``: writes the rows that the running service has stored as JSON Lines, for ``persistd import``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tornado_persist.cli import output
from tornado_persist.cli.client import Client, Unreadable, add_url, connect
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain, completes_files
from tornado_persist.cli.lines import encode
from tornado_persist.errors import PersistError, RequestRefused
from tornado_persist.records.models import KINDS, PLURALS, Fields, Kind
from tornado_persist.records.queries import SHOWN
from tornado_persist.records.times import in_utc

#: Rows that are asked for at a time, the most that the service gives; an answer has at most some 8 MiB of them.
PAGE = 1000
_MORE = """What waits for the database is written first. Sessions come before tasks, each in the order of their keys. A
FILE is there once it is whole; the same command begins anew after it was killed. A row that cannot be read is named and
passed over, and the exit code is then 1."""


def add(commands: Commands) -> None:
    parser = commands.add("export", _export, "write the stored rows as JSON Lines, which import reads", more=_MORE)
    parser.add_argument("--kind", choices=KINDS, help="only rows of this kind")
    parser.add_argument("--session", metavar="ID", help="only this session and its tasks")
    parser.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="only what was updated then or later (ISO 8601; UTC without an offset)",
    )
    file = parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="a new file (default: standard output)"
    )
    completes_files(file)
    add_url(parser)


def _time(text: str) -> str:
    try:
        return in_utc(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no ISO 8601 date and time") from None


def _export(configuration: Configuration, options: argparse.Namespace) -> int:
    kinds: tuple[Kind, ...] = (options.kind,) if options.kind else KINDS
    counts = dict.fromkeys(kinds, 0)
    unread = 0
    bar = _progress(options.output)
    with connect(configuration, options) as client, output.new_file(options.output) as out, bar:
        for kind in kinds:
            task = bar.add_task(PLURALS[kind], total=None)
            for page in _pages(client, kind, options, count=not bar.disable):
                out.writelines(encode({"kind": kind, "row": row}) + "\n" for row in page["items"])
                counts[kind] += len(page["items"])
                unread += len(page["unread"])
                for problem in page["unread"]:
                    complain(f"{problem}; passed over")
                bar.update(task, total=page.get("total"), completed=counts[kind])
        out.flush()
        if options.session is not None and options.since is None and not any(counts.values()) and not unread:
            raise PersistError(f"nothing exported: there is no session {options.session}, and no task of it")
    sums = " and ".join(output.count(counts[kind], kind) for kind in kinds)
    passed = f"; {output.count(unread, 'row')} passed over, which could not be read" if unread else ""
    print(f"{sums} exported{passed}", file=sys.stderr)
    return FAILED if unread else OK


def _pages(client: Client, kind: Kind, options: argparse.Namespace, *, count: bool) -> Iterator[dict[str, Any]]:
    query = {"limit": str(PAGE), "fresh": "true", "updated_since": options.since, "count": "true" if count else ""}
    if options.session is None:
        return client.pages(PLURALS[kind], query=query)
    if kind == "task":
        return client.pages("sessions", options.session, "tasks", query=query)
    try:
        return iter([{"items": list(_session(client, options.session, options.since)), "unread": []}])
    except Unreadable as exc:
        return iter([{"items": [], "unread": [str(exc)]}])


def _session(client: Client, id: str, since: str | None) -> Iterator[Fields]:
    """The one session, if it exists: tasks may have none."""
    try:
        found = client.row("sessions", id)
    except RequestRefused as exc:
        if exc.status != 404:
            raise
        return
    if since is None or str(found["updated_at"] or "") >= since:  # both are as rows hold times
        yield {name: found[name] for name in SHOWN["session"] if name in found}


def _progress(file: Path | None) -> Progress:
    """A progress bar on standard error, if that is a terminal, and the rows do not go there too."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        disable=not sys.stderr.isatty() or (file is None and sys.stdout.isatty()),
        transient=True,
        redirect_stdout=False,
    )
