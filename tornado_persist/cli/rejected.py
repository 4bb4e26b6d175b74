"""``persistd rejected ls | drop``: shows the rejected rows, or records that nothing will be done about some."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from tornado_persist.cli import output, retry
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain
from tornado_persist.cli.lines import encode
from tornado_persist.cli.rejections import (
    Entry,
    Rejections,
    add_filters,
    add_selection,
    chosen,
    complain_of_broken,
)

#: Characters of a message in the table.
_MESSAGE = 100
#: And of a key. That of a row that was set aside may have any length.
_KEY = 129


def add(commands: Commands) -> None:
    group = commands.group("rejected", "rejected rows: list them, send them again, or drop them")
    ls = group.add("ls", _ls, "list the rejected rows that were neither retried nor dropped", more="It only reads.")
    add_filters(ls)
    ls.add_argument("--all", action="store_true", help="include rows that were retried or dropped")
    ls.add_argument("--json", action="store_true", help="print each row as a line of JSON; retry --from reads them")
    retry.add(group)
    drop = group.add(
        "drop",
        _drop,
        "record that nothing will be done about some rejected rows",
        more="rejected.jsonl stays as it is; the record is in rejected.settled.jsonl.",
    )
    add_selection(drop)
    drop.add_argument("--reason", metavar="TEXT", help="goes into the note")


def _ls(configuration: Configuration, options: argparse.Namespace) -> int:
    rejections = Rejections(configuration.data_dir / "rejected.jsonl")
    everything = rejections.entries()
    entries = chosen(everything, options)
    shown = [entry for entry in entries if options.all or entry.state in ("open", "sending")]
    broken = [entry for entry in everything if entry.problem and entry.state == "open"]
    if options.json:
        for entry in shown:
            print(encode(entry.exported()))
    else:
        _print(rejections, entries, shown, everyone=options.all)
    return complain_of_broken(rejections, broken)


def _print(rejections: Rejections, entries: list[Entry], shown: list[Entry], *, everyone: bool) -> None:
    if shown:
        head = ["line", "kind", "key", "code", "rejected", *(["state"] if everyone else []), "message"]
        output.print_table([head, *(_row(entry, everyone=everyone) for entry in shown)], "r")
        print()
    print(f"{rejections.path}: {output.count(len(shown), 'row')}{_by_reason(shown)}")
    states = Counter(entry.state for entry in entries)
    if not everyone and (states["retried"] or states["dropped"]):
        print(f"{states['retried']:,} more were retried and {states['dropped']:,} dropped; --all shows them")


def _row(entry: Entry, *, everyone: bool) -> list[str]:
    state = [entry.state] if everyone else []
    if entry.problem:
        return [str(entry.line), "", "", "", "", *state, entry.problem]
    message = output.printable(" ".join(str(entry.found.get("message", "")).split()), _MESSAGE)
    refused = output.moment(datetime.fromisoformat(entry.found["at"]))
    key = output.printable(entry.shown_key, _KEY)
    return [str(entry.line), entry.kind, key, entry.code, refused, *state, message]


def _by_reason(entries: Iterable[Entry]) -> str:
    """Counts by kind and code, the most frequent first."""
    counts = Counter((entry.kind, entry.code) for entry in entries if not entry.problem)
    words = [f"{output.count(n, kind)} with code {code or 'none'}" for (kind, code), n in counts.most_common()]
    return f" ({', '.join(words)})" if words else ""


def _drop(configuration: Configuration, options: argparse.Namespace) -> int:
    settings = configuration.settings
    rejections = Rejections(settings.path("rejected.jsonl"))
    with rejections.working():
        entries = [entry for entry in chosen(rejections.entries(), options) if entry.state in ("open", "sending")]
        # A broken line is dropped only if its number is given, so never by accident.
        entries = [entry for entry in entries if not entry.problem or entry.line in options.lines]
        if not entries:
            complain("no such row is left to drop")
            return FAILED
        rejections.note(entries, "dropped", reason=options.reason)
    print(f"{output.count(len(entries), 'row')} dropped, as {rejections.settled_path} says")
    return OK
