"""``persistd journal ls | show | verify | export``: reads the journal of a running or a stopped service."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tornado_persist.cli import lines, output
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain, completes_files
from tornado_persist.files import DataDir
from tornado_persist.journal import Begin, Damage, DamagedDirectory, Entry, Gap, Inspection, Item, Tail
from tornado_persist.records.models import KINDS, PLURALS, Kind
from tornado_persist.records.parser import undate

_READS_ONLY = "It only reads, takes no lock, and may be called while the service runs."


def add(commands: Commands) -> None:
    group = commands.group("journal", "look into the journal: what was accepted and is not in the sink yet")
    ls = group.add(
        "ls", _ls, "list the segments: records, rows, age, what is released, what is damaged", more=_READS_ONLY
    )
    ls.add_argument("--json", action="store_true", help="one JSON object")
    show = group.add("show", _show, "print records: when they were accepted, and their rows", more=_READS_ONLY)
    show.add_argument("seq", nargs="?", type=int, metavar="SEQ", help="only the record with this sequence number")
    show.add_argument("--from", dest="first", type=int, default=0, metavar="SEQ", help="from this number on")
    show.add_argument("--to", dest="last", type=int, default=2**64, metavar="SEQ", help="up to this number")
    show.add_argument("--json", action="store_true", help="a line of JSON for each record")
    group.add(
        "verify",
        _verify,
        "check every checksum, and name what is damaged: exit code 1 if anything is",
        more=_READS_ONLY,
    )
    export = group.add(
        "export",
        _export,
        "write the rows that wait as JSON Lines, which persistd import takes",
        more="A line is a row: its record's number and accept time, its kind, and the fields that were sent. "
        + _READS_ONLY,
    )
    export.add_argument("--from", dest="first", type=int, default=0, metavar="SEQ", help="from this number on")
    export.add_argument("--all", action="store_true", help="released records too, as far as they are still there")
    file = export.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="a new file (default: standard output)"
    )
    completes_files(file)


@dataclass(slots=True)
class _Segment:
    """What ``ls`` shows of one."""

    name: str
    bytes: int
    first: int | None = None
    last: int | None = None
    oldest: datetime | None = None
    records: int = 0
    released: int = 0
    rows: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    damaged: int = 0
    unfinished: int = 0

    def add(self, entry: Entry, released: int) -> None:
        self.first = entry.seq if self.first is None else self.first
        self.last = entry.seq
        self.oldest = self.oldest or entry.record().at
        self.records += 1
        self.released += entry.seq <= released
        self.rows[entry.kind] += entry.rows


def _ls(configuration: Configuration, options: argparse.Namespace) -> int:
    journal = Inspection(configuration.data_dir / "journal")
    segments: list[_Segment] = []
    problems = _Problems(configuration.data_dir, journal)
    for item in journal.items():
        if isinstance(item, Begin):
            segments.append(_Segment(item.path.name, item.size))
        elif isinstance(item, Entry):
            segments[-1].add(item, journal.released)
        elif isinstance(item, Damage):
            segments[-1].damaged += item.size
        elif isinstance(item, Tail):
            segments[-1].unfinished += item.size
        problems.look(item)
    total = _Segment("total", sum(it.bytes for it in segments))
    total.oldest = min((it.oldest for it in segments if it.oldest), default=None)
    for it in segments:
        total.records += it.records
        total.released += it.released
        total.damaged += it.damaged
        total.unfinished += it.unfinished
        for kind in KINDS:
            total.rows[kind] += it.rows[kind]
    if options.json:
        facts: dict[str, Any] = {"directory": str(journal.path), "pid": problems.pid, "released": journal.released}
        facts["segments"] = [_facts(it) for it in segments]
        facts["total"] = {name: value for name, value in _facts(total).items() if name not in ("name", "first", "last")}
        facts["problems"] = problems.found
        print(json.dumps(facts, default=datetime.isoformat))
    else:
        service = f"the service runs, pid {problems.pid}" if problems.pid else "the service does not run"
        print(f"{journal.path}: {service}; released up to {journal.released}\n")
        head = ["segment", "first", "last", "records", "released", "sessions", "tasks", "size", "oldest", ""]
        output.print_table([head, *map(_row, [*segments, total])], "lrrrrrrrrl")
    return problems.end()


def _facts(it: _Segment) -> dict[str, Any]:
    facts = {name: getattr(it, name) for name in ("name", "first", "last", "records", "released", "bytes", "oldest")}
    facts["rows"] = {PLURALS[kind]: it.rows[kind] for kind in KINDS}
    return {**facts, "damaged_bytes": it.damaged, "unfinished_bytes": it.unfinished}


def _row(it: _Segment) -> list[str]:
    numbers = ["" if n is None else str(n) for n in (it.first, it.last)]
    age = output.duration((datetime.now(it.oldest.tzinfo) - it.oldest).total_seconds()) if it.oldest else ""
    notes = [f"{output.size(it.damaged)} damaged"] if it.damaged else []
    notes += [f"{output.size(it.unfinished)} unfinished"] if it.unfinished else []
    figures = [f"{n:,}" for n in (it.records, it.released, it.rows["session"], it.rows["task"])]
    return [it.name, *numbers, *figures, output.size(it.bytes), age, ", ".join(notes)]


def _show(configuration: Configuration, options: argparse.Namespace) -> int:
    first, last = (options.first, options.last) if options.seq is None else (options.seq, options.seq)
    journal = Inspection(configuration.data_dir / "journal")
    problems = _Problems(configuration.data_dir, journal)
    shown = 0
    for item in journal.items():
        if not isinstance(item, Entry):
            problems.look(item)
        elif first <= item.seq <= last:
            shown += 1
            released = item.seq <= journal.released
            if problem := _print_record(problems.segment, item, released=released, as_json=options.json):
                problems.unreadable(item, problem)
    if options.seq is not None and not shown:
        complain(f"{journal.path}: there is no record {options.seq}")
        return FAILED
    return problems.end()


def _print_record(segment: str, entry: Entry, *, released: bool, as_json: bool) -> str:
    """Why its body cannot be shown; empty if it was."""
    record = entry.record()
    problem, body = "", None
    try:
        body = lines.load(record.body)
    except ValueError as exc:
        problem = f"record {record.seq} cannot be shown: {exc}"
    if as_json:
        facts = {"seq": record.seq, "kind": record.kind, "at": record.at.isoformat(), "rows": record.rows}
        where = {"segment": segment, "offset": entry.offset, "bytes": entry.size, "released": released}
        print(json.dumps({**facts, **where, "body": body}, ensure_ascii=False))
        return problem
    rows = output.count(record.rows, record.kind)
    state = "released" if released else "waits"
    print(f"record {record.seq}: {rows}, accepted {output.moment(record.at)}, {state}")
    print(f"  {segment}, offset {entry.offset}, {entry.size:,} bytes")
    for line in json.dumps(body, ensure_ascii=False, indent=2).splitlines() if not problem else ():
        print(f"  {output.printable(line)}")
    print()
    return problem


def _verify(configuration: Configuration, options: argparse.Namespace) -> int:
    journal = Inspection(configuration.data_dir / "journal")
    problems = _Problems(configuration.data_dir, journal)
    segments = records = size = 0
    for item in journal.items():
        if isinstance(item, Begin):
            segments += 1
            size += item.size
        elif isinstance(item, Entry):
            records += 1
        problems.look(item)
    what = f"{output.count(segments, 'segment')}, {output.count(records, 'good record')}, {output.size(size)}"
    print(f"{journal.path}: {what}, {output.count(len(problems.found), 'problem')}")
    return problems.end()


def _export(configuration: Configuration, options: argparse.Namespace) -> int:
    journal = Inspection(configuration.data_dir / "journal")
    problems = _Problems(configuration.data_dir, journal)
    records = rows = unread = 0
    with output.new_file(options.output) as out:
        for item in journal.items():
            if not isinstance(item, Entry):
                problems.look(item)
                continue
            if item.seq < options.first or (item.seq <= journal.released and not options.all):
                continue
            record = item.record()
            at = undate(record.body)[0] or record.at.isoformat()
            head = {"seq": record.seq, "at": at, "kind": record.kind}
            records += 1
            try:
                found = list(lines.rows_of(lines.members(record.body)[PLURALS[record.kind]]))
            except (ValueError, KeyError) as exc:
                problems.unreadable(item, f"record {record.seq} cannot be read: {exc}")
                unread += record.rows
                continue
            for row in found:
                if isinstance(row, str):
                    problems.unreadable(item, f"record {record.seq}: {row}")
                    unread += 1
                else:
                    out.write(lines.encode({**head, "row": row}) + "\n")
                    rows += 1
        out.flush()
    passed = f"; {output.count(unread, 'row')} passed over, which could not be read" if unread else ""
    print(f"{output.count(rows, 'row')} of {output.count(records, 'record')} exported{passed}", file=sys.stderr)
    return problems.end()


class _Problems:
    """Names what is wrong as it is found, and remembers it for the exit code."""

    def __init__(self, data_dir: Path, journal: Inspection) -> None:
        self.pid = DataDir(data_dir).holder()
        self.found: list[dict[str, Any]] = []
        self._copies = DamagedDirectory(data_dir / "damaged")
        self._directory = journal.path
        #: The segment that is being read.
        self.segment = ""
        if journal.problem:
            self._say("cursor", None, f"{journal.problem}; a start takes all records for not released")
        elif journal.torn and not self.pid:  # a running service may be writing it now
            words = "a half is not whole, as a crash leaves it, and the other one holds; a start mends it"
            complain(f"{journal.path / 'cursor'}: {words}")

    def look(self, item: Item) -> None:
        match item:
            case Begin():
                self.segment = item.path.name
            case Damage():
                self._say(
                    item.segment, item.offset, f"{output.size(item.size)} damaged: {item.reason}{self._more(item)}"
                )
            case Gap(damaged=False):
                numbers = (
                    f"record {item.first} is" if item.first == item.last else f"records {item.first} to {item.last} are"
                )
                self._say(self.segment, None, f"{numbers} missing before this place")
            case Tail(torn=True) if not self.pid:
                words = "not whole, as a crash leaves them, and never acknowledged; a start cuts them off"
                self._note(item, f"the last {output.size(item.size)} are {words}")
            case Tail(torn=False) if not self.pid:
                self._note(item, f"the last {output.size(item.size)} were refused; a start cuts them off")

    def unreadable(self, entry: Entry, problem: str) -> None:
        """The record is whole, but not all of it can be read."""
        self._say(self.segment, entry.offset, problem)

    def end(self) -> int:
        """The command's exit code."""
        return FAILED if self.found else OK

    def _more(self, damage: Damage) -> str:
        facts = [f"record {damage.seq}"] if damage.seq is not None else []
        facts += [output.count(damage.rows, damage.kind)] if damage.rows is not None and damage.kind else []
        with contextlib.suppress(OSError):
            copy = self._copies.find(self._directory / damage.segment, damage)
            facts += [f"known, a copy is in {copy}"] if copy else []
        return f" ({', '.join(facts)})" if facts else ""

    def _say(self, name: str, offset: int | None, problem: str) -> None:
        self.found.append({"file": str(self._directory / name), "offset": offset, "problem": problem})
        complain(f"{self._directory / name}{'' if offset is None else f', offset {offset}'}: {problem}")

    def _note(self, tail: Tail, words: str) -> None:
        """Report a tail, which is no damage; a start cuts it off."""
        complain(f"{self._directory / self.segment}, offset {tail.offset}: {words}")
