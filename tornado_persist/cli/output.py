"""Text, numbers and tables for people."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tornado_persist.errors import InputError
from tornado_persist.files import fsync_directory, reason

if TYPE_CHECKING:
    from rich.table import Table

#: Columns of a table that is not for a terminal: no line is ever broken there.
_ENDLESS = 1_000_000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_table(rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print aligned columns, two blanks apart; see :func:`table`. Lines are broken only to fit a terminal."""
    from rich.console import Console

    width = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else _ENDLESS
    console = Console(width=width or 80, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table(rows, right))
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def table(rows: Sequence[Sequence[str]], right: str = "") -> Table:
    """A table without lines or colours. ``right`` has an ``r`` for each column that is right-aligned."""
    from rich.table import Table
    from rich.text import Text

    it = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for i in range(max(map(len, rows), default=0)):
        ends = right[i : i + 1] == "r"
        it.add_column(justify="right" if ends else "left", no_wrap=ends, overflow="fold")
    for row in rows:
        it.add_row(*(Text(printable(cell)) for cell in row))
    return it


def printable(text: str, most: int | None = None) -> str:
    """Without line breaks and control characters; cut to ``most`` characters."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if most is None or len(clean) <= most else clean[: most - 1] + "…"


def size(count: int) -> str:
    """Bytes with a unit."""
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def duration(seconds: float) -> str:
    """Seconds in words: the two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(at: datetime, now: datetime | None = None, *, brief: bool = False) -> str:
    """A time as this machine's clock shows it, and how far away it is; ``brief``: only that."""
    away = ((now or datetime.now(UTC)) - at).total_seconds()
    words = f"{duration(away)} ago" if away >= 0 else f"in {duration(-away)}"
    return words if brief else f"{clock(at)} ({words})"


def clock(at: datetime) -> str:
    """A time in this machine's time zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


@contextlib.contextmanager
def new_file(path: Path | None) -> Iterator[IO[str]]:
    """A new file that is there once it is whole, or standard output; in UTF-8, since JSON is.

    Raises:
        InputError: it is there already, or cannot be written.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    aside = path.with_name(path.name + ".unfinished")
    try:
        if path.exists():
            raise InputError(path, "is there already; it is not written over")
        try:
            with aside.open("w", encoding="utf-8") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            aside.rename(path)
            fsync_directory(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise InputError(path, f"cannot be written: {reason(exc)}") from None
