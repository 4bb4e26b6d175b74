"""``persistd rejected ls | drop``, and what ``retry`` shares with them: which entries are meant."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from tornado_persist.cli import retry, table
from tornado_persist.cli.command import FAILED, OK, Commands, complain
from tornado_persist.cli.rejections import Entry, Rejections
from tornado_persist.cli.selection import add_filters, add_selection, chosen, complain_of_broken
from tornado_persist.config import Settings

#: Characters of a message in the table.
_MESSAGE = 100


def add(commands: Commands) -> None:
    group = commands.group("rejected", "the rows that the sink refused: see them, send them again, or drop them")
    ls = group.add("ls", _ls, "list the refused rows that nothing was done about", more="It only reads.")
    add_filters(ls)
    ls.add_argument("--all", action="store_true", help="those that were retried or dropped as well")
    ls.add_argument("--json", action="store_true", help="a line of JSON for each, whole; retry --from takes them back")
    retry.add(group)
    drop = group.add(
        "drop",
        _drop,
        "note that nothing will be done about some refused rows",
        more="rejected.jsonl itself stays as it is; the note is in rejected.settled.jsonl.",
    )
    add_selection(drop)
    drop.add_argument("--reason", metavar="TEXT", help="goes into the note")


def _ls(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    rejections = Rejections(settings.path("rejected.jsonl"))
    everything = rejections.entries()
    entries = chosen(everything, options)
    shown = [entry for entry in entries if options.all or entry.state in ("open", "sending")]
    broken = [entry for entry in everything if entry.problem and entry.state == "open"]
    if options.json:
        for entry in shown:
            print(json.dumps(entry.exported(), ensure_ascii=False))
    else:
        _print(rejections, entries, shown, everyone=options.all)
    return complain_of_broken(rejections, broken)


def _print(rejections: Rejections, entries: list[Entry], shown: list[Entry], *, everyone: bool) -> None:
    if shown:
        head = ["line", "kind", "key", "code", "refused", *(["state"] if everyone else []), "message"]
        print(*table.table([head, *(_row(entry, everyone=everyone) for entry in shown)], "r"), sep="\n")
        print()
    print(f"{rejections.path}: {table.count(len(shown), 'row')}{_by_reason(shown)}")
    states = Counter(entry.state for entry in entries)
    if not everyone and (states["retried"] or states["dropped"]):
        print(f"{states['retried']:,} more were retried and {states['dropped']:,} dropped; --all shows them")


def _row(entry: Entry, *, everyone: bool) -> list[str]:
    state = [entry.state] if everyone else []
    if entry.problem:
        return [str(entry.line), "", "", "", "", *state, entry.problem]
    message = table.printable(" ".join(str(entry.found.get("message", "")).split()), _MESSAGE)
    refused = table.moment(datetime.fromisoformat(entry.found["at"]))
    return [str(entry.line), entry.kind, entry.key, entry.code, refused, *state, message]


def _by_reason(entries: Iterable[Entry]) -> str:
    """How many of each kind were refused with each code, the most frequent first."""
    counts = Counter((entry.kind, entry.code) for entry in entries if not entry.problem)
    words = [f"{table.count(n, kind)} with code {code or 'none'}" for (kind, code), n in counts.most_common()]
    return f" ({', '.join(words)})" if words else ""


def _drop(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    rejections = Rejections(settings.path("rejected.jsonl"))
    with rejections.working():
        entries = [entry for entry in chosen(rejections.entries(), options) if entry.state in ("open", "sending")]
        # A broken line is dropped by its number alone, which nobody gives by accident.
        entries = [entry for entry in entries if not entry.problem or entry.line in options.lines]
        if not entries:
            complain("no such row is left to drop")
            return FAILED
        rejections.note(entries, "dropped", reason=options.reason)
    print(f"{table.count(len(entries), 'row')} dropped, as {rejections.settled_path} says")
    return OK
