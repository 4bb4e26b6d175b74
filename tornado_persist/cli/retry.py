"""``persistd rejected retry``: sends rejected rows through the API again, unchanged or edited."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tornado_persist.cli import output
from tornado_persist.cli.client import Client, RowRefused, Sender, add_patience, add_url, connect
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain, completes_files
from tornado_persist.cli.lines import decode, encode, parse
from tornado_persist.cli.rejections import Entry, Rejections, add_selection, chosen, complain_of_broken
from tornado_persist.cli.stats import FLUSH_GRACE
from tornado_persist.config import loading
from tornado_persist.config.loading import Settings
from tornado_persist.errors import InputError, InvalidBatch, PersistError, RequestRefused, SinkError
from tornado_persist.files import reason
from tornado_persist.records.models import KEYS, KINDS, MAX_KEY, PLURALS, Fields, Kind
from tornado_persist.records.parser import Parser
from tornado_persist.service import make_sink

_MORE = """A retried row is a new update: its fields replace the stored ones. So a row that was updated since it was
rejected is not sent, unless --overwrite is given. With --keep-times a row counts as of the time when it was accepted
first: newer fields stay, on whichever instance they were updated. Afterwards the service is flushed, and rows that are
rejected again are named. rejected.jsonl stays as it is; rejected.settled.jsonl records what was sent, so it is not sent
again."""


def add(group: Commands) -> None:
    parser = group.add("retry", _retry, "send rejected rows to the running service again", more=_MORE)
    add_selection(parser)
    edit = parser.add_mutually_exclusive_group()
    edit.add_argument("--edit", action="store_true", help="first open the rows in $VISUAL or $EDITOR, one a line")
    completes_files(
        edit.add_argument(
            "--from", dest="file", type=Path, metavar="FILE", help="the rows as edited in lines of rejected ls --json"
        )
    )
    parser.add_argument(
        "--keep-times",
        action="store_true",
        help='send each row with its accept time, so that newer updates stay; needs writers = "several"',
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="also send rows that were updated since their rejection"
    )
    add_url(parser)
    add_patience(parser)


#: Characters that are in no key.
_NO_KEY = re.compile(r"[\0-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class _Again:
    """An entry, and the row to send for it; ``place`` names it in messages."""

    entry: Entry
    row: Fields
    place: str

    @property
    def kind(self) -> Kind:
        return self.entry.kind

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(str(self.row.get(name, "")) for name in KEYS[self.kind])

    @property
    def has_key(self) -> bool:
        """Whether a sink may hold a row of that key; one that was set aside may have any."""
        return all(0 < len(part) <= MAX_KEY and not _NO_KEY.search(part) for part in self.key)

    @property
    def edited(self) -> bool:
        return self.row != self.entry.row


def _retry(configuration: Configuration, options: argparse.Namespace) -> int:
    settings = configuration.settings
    rejections = Rejections(settings.path("rejected.jsonl"))
    with connect(configuration, options, settings.buffer.flush_timeout + FLUSH_GRACE) as client, rejections.working():
        entries = rejections.entries()
        broken: list[Entry] = []
        if options.file is not None:
            rows = _from_file(settings, options.file, entries)
        else:
            some = [entry for entry in chosen(entries, options) if entry.state in ("open", "sending")]
            broken = [entry for entry in some if entry.problem]
            whole = [entry for entry in some if not entry.problem]
            if options.edit and whole:
                rows = _edited(settings, whole, entries)
            else:
                rows = [_Again(entry, entry.row, f"{rejections.path}, line {entry.line}") for entry in whole]
        code = complain_of_broken(rejections, broken)
        if not rows:
            complain("no such row is left to retry")
            return FAILED
        return max(code, _send(settings, options, rejections, client, rows))


def _send(
    settings: Settings, options: argparse.Namespace, rejections: Rejections, client: Client, rows: list[_Again]
) -> int:
    left_out = 0
    if not options.overwrite and not options.keep_times:
        fresh = _not_updated_since(settings, client, rows)
        left_out = len(rows) - len(fresh)
        rows = fresh
    twice = sum(again.entry.state == "sending" for again in rows)
    if twice:
        was = "row was" if twice == 1 else "rows were"
        complain(f"{twice:,} {was} being sent when an earlier retry ended, and may now be sent twice")
    before = rejections.length()
    sender = Sender(
        client,
        max_batch=settings.server.max_batch,
        max_bytes=settings.server.max_body_bytes,
        patience=options.patience,
        say=complain,
    )
    sent = [
        again
        for kind in KINDS
        for again in _send_kind(
            kind, rows, sender, rejections, settings.server.max_batch, keep_times=options.keep_times
        )
    ]
    print(f"{output.count(len(sent), 'row')} sent")
    code = OK if len(sent) == len(rows) and not left_out else FAILED
    return max(code, _aftermath(client, rejections, before, sent)) if sent else code


def _send_kind(
    kind: Kind, rows: Sequence[_Again], sender: Sender, rejections: Rejections, step: int, *, keep_times: bool
) -> Iterator[_Again]:
    """Send the rows of a kind; returns those that were accepted. Each step is recorded before and after."""
    some = [again for again in rows if again.kind == kind]
    while some:
        part = some[:step]
        rejections.note([again.entry for again in part], "sending")
        taken = len(part)
        try:
            times = [again.entry.updated_at.isoformat() for again in part] if keep_times else []
            sender.send([(kind, again.row) for again in part], times)
        except RowRefused as exc:
            taken = exc.index
            complain(f"{part[taken].place}: {exc}")
            rejections.note([again.entry for again in part[taken:]], "open")
            some = some[taken + 1 :]
        else:
            some = some[taken:]
        done = part[:taken]
        if done:
            at = sender.accepted_at.isoformat() if sender.accepted_at else None
            edited = {again.entry.line: again.row for again in done if again.edited}
            rejections.note([again.entry for again in done], "retried", accepted_at=at, row=edited)
        yield from done


def _not_updated_since(settings: Settings, client: Client, rows: list[_Again]) -> list[_Again]:
    """The rows that were not updated in the sink since they were accepted. Names the others.

    Raises:
        PersistError: the service or the sink cannot be asked.
    """
    try:
        flushed = client.flush()  # a newer update may be waiting in the service
    except RequestRefused as exc:
        raise PersistError(f"it is not known whether newer updates wait: {exc}; see --overwrite") from exc
    if flushed["status"] != "flushed":
        problem = flushed.get("detail", "the flush failed")
        raise PersistError(f"it is not known whether the rows were updated since: {problem}; see --overwrite")
    sink = make_sink(settings)
    try:
        sink.open()
        asked = [again for again in rows if again.has_key]
        found = {kind: sink.find_updated(kind, {again.key for again in asked if again.kind == kind}) for kind in KINDS}
    except (SinkError, NotImplementedError) as exc:
        raise PersistError(f"it is not known whether the rows were updated since: {exc}; see --overwrite") from exc
    finally:
        sink.close()
    fresh = []
    for again in rows:
        updated = found[again.kind].get(again.key)
        if updated is not None and updated > again.entry.updated_at:
            was, now = output.clock(again.entry.updated_at), output.clock(updated)
            words = f"{again.kind} {output.printable('/'.join(again.key))} is of {was}, and was updated since, on {now}"
            complain(f"{again.place}: {words}: not sent (--overwrite sends it all the same)")
        else:
            fresh.append(again)
    return fresh


def _aftermath(client: Client, rejections: Rejections, before: int, sent: list[_Again]) -> int:
    """Flush what was sent, and name the rows that were rejected again."""
    try:
        flushed = client.flush()
    except PersistError as exc:
        complain(f"they were accepted, and wait; their outcome is not known now: {exc}")
        return FAILED
    keys = {(again.kind, again.key) for again in sent}
    again_refused = [
        entry for entry in rejections.entries(before) if not entry.problem and (entry.kind, entry.key) in keys
    ]
    for entry in again_refused:
        message = output.printable(" ".join(str(entry.found.get("message", "")).split()))
        key = output.printable(entry.shown_key)
        complain(f"{rejections.path}, line {entry.line}: {entry.kind} {key} was rejected again: {message}")
    if flushed["status"] != "flushed":
        complain(f"they were accepted, and wait: {flushed.get('detail', 'the flush failed')}")
        return FAILED
    if again_refused:
        return FAILED
    print("flushed: the sink has them")
    return OK


def _edited(settings: Settings, entries: list[Entry], everything: list[Entry]) -> list[_Again]:
    """The entries as the user has edited them.

    Raises:
        InputError: a line cannot be sent; the edited file is kept.
        PersistError: the editor failed, or nothing was changed.
    """
    fd, name = tempfile.mkstemp(prefix="persistd-retry-", suffix=".jsonl")
    path = Path(name)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.writelines(encode(entry.exported()) + "\n" for entry in entries)
    before = path.read_bytes()
    command = loading.editor()
    try:
        code = subprocess.call([*shlex.split(command), name])
        problem = f"ended with exit code {code}"
    except (OSError, ValueError) as exc:
        code, problem = 1, f"cannot be run: {reason(exc) if isinstance(exc, OSError) else exc}"
    if code or path.read_bytes() == before:
        path.unlink()
        raise PersistError(f"the editor {command} {problem}: nothing is sent" if code else "no edit: nothing is sent")
    try:
        rows = _from_file(settings, path, everything)
    except InputError:
        complain(f"nothing is sent; what you edited is kept, for persistd rejected retry --from {path}")
        raise
    path.unlink()
    return rows


def _from_file(settings: Settings, path: Path, everything: list[Entry]) -> list[_Again]:
    """The rows of edited lines. Skips rows that were retried or dropped before, and says how many.

    Raises:
        InputError: the file cannot be read, or a row in it is wrong.
    """
    entries = {entry.sha256: entry for entry in everything}
    parser = Parser(unknown_fields=settings.records.unknown_fields, statuses=settings.records.statuses)
    rows: list[_Again] = []
    closed = 0
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as exc:
        raise InputError(path, f"cannot be read: {reason(exc)}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = decode(line)
            entry = entries.get(str(found.get("sha256")))
            if entry is None or entry.problem:
                raise ValueError(
                    "its sha256 is not of a rejected row; it takes the lines of persistd rejected ls --json"
                )
            kind, row = parse(line)
            if kind != entry.kind:
                raise ValueError(f"a {entry.kind} cannot become a {kind}")
            parser.parse(kind, json.dumps({PLURALS[kind]: [row]}).encode())
        except InvalidBatch as exc:
            where = ".".join(map(str, exc.errors[0]["loc"][2:]))
            raise InputError(path, f"{where}: {exc.errors[0]['msg']}", line=number) from None
        except (ValueError, PersistError) as exc:
            raise InputError(path, str(exc), line=number) from None
        if entry.state in ("open", "sending"):
            rows.append(_Again(entry, row, f"{path}, line {number}"))
        else:
            closed += 1
    if closed:
        complain(f"{path}: {output.count(closed, 'row')} passed over, retried or dropped before")
    return rows
