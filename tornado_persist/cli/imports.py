"""``persistd import``"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import shtab
from tqdm import tqdm

from tornado_persist.cli import table
from tornado_persist.cli.command import OK, Commands, complain, completes_files
from tornado_persist.cli.importer import Importer
from tornado_persist.cli.remote import add_url, connect
from tornado_persist.cli.sender import Sender
from tornado_persist.config import Settings
from tornado_persist.errors import InputError

#: Seconds that a service may be away or full until an import gives up.
PATIENCE = 60.0

_MORE = """A line may be what the jsonl sink writes, a rejected row, or of a journal export. Rows are sent in the order
of the file, as new updates: created_at and updated_at of a line are left out, the service gives its own. How far a
file was sent is kept in FILE.import-state: after any interruption the same command goes on from there."""


def add(commands: Commands) -> None:
    parser = commands.add("import", _import, "send the rows of JSON Lines files to the running service", more=_MORE)
    files = parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="in this order: sessions before tasks"
    )
    completes_files(files)
    add_url(parser)
    parser.add_argument("--again", action="store_true", help="send all rows, whatever was sent before")
    state = parser.add_argument(
        "--state", type=Path, metavar="DIRECTORY", help="keep the state there, not beside the file"
    )
    completes_files(state, shtab.DIRECTORY)
    add_patience(parser)


def add_patience(parser: argparse.ArgumentParser) -> None:
    """The option ``--patience``."""
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help=f"how long the service may answer 503, or not at all, until this gives up ({PATIENCE:g})",
    )


def _import(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    if options.url is None:
        for path in options.files:
            _refuse_own(settings, path)
    with connect(settings, options) as client:
        sender = Sender(
            client,
            max_batch=settings.server.max_batch,
            max_bytes=settings.server.max_body_bytes,
            patience=options.patience,
            say=_say,
        )
        for path in options.files:
            state = _state_file(path, options.state)
            _one(Importer(path, state, client.url, sender, window=settings.server.max_batch), path, options)
    return OK


def _state_file(path: Path, directory: Path | None) -> Path:
    if directory is None:
        return path.with_name(f"{path.name}.import-state")
    # Files of one name may lie in several directories.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return directory / f"{path.name}.{digest}.import-state"


def _one(importer: Importer, path: Path, options: argparse.Namespace) -> None:
    # disable=None: nothing is drawn where standard error is no terminal.
    with tqdm(desc=path.name, unit="B", unit_scale=True, disable=None, leave=False, file=sys.stderr) as bar:

        def progress(it: Importer) -> None:
            if bar.total is None:
                bar.total = it.size
                bar.initial = bar.n = it.place.bytes
            bar.set_postfix_str(f"{it.place.rows:,} rows", refresh=False)
            bar.update(it.place.bytes - bar.n)

        try:
            importer.run(progress, again=options.again)
        except BaseException:
            bar.close()
            if importer.rows:
                complain(f"{path}: {_sums(importer)}; the same command goes on from there")
            raise
    print(f"{path}: {_sums(importer)}")


def _sums(importer: Importer) -> str:
    sums = f"{table.count(importer.rows, 'row')} sent"
    before = importer.place.rows - importer.rows
    return f"{sums}, and {before:,} before" if before else sums


def _say(words: str) -> None:
    tqdm.write(f"persistd: {words}", file=sys.stderr)


def _refuse_own(settings: Settings, path: Path) -> None:
    """What is read must not be what the service writes: it would grow as it is read."""
    if settings.sink != "jsonl":
        return
    directory = settings.path(str(getattr(settings.sink_settings(), "dir", "")))
    if path.resolve().parent == directory.resolve() and path.name in ("sessions.jsonl", "tasks.jsonl"):
        raise InputError(path, "is where the service writes to; set another sink, and reload it, first")
