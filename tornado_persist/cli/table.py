"""Words, figures and tables for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """Lines with aligned columns, two blanks apart. ``right`` has an ``r`` for each column that ends at its right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    columns = max(map(len, cells), default=0)
    widths = [max((_width(row[i]) for row in cells if i < len(row)), default=0) for i in range(columns)]
    lines = []
    for row in cells:
        padded = []
        for i, cell in enumerate(row):
            blanks = " " * (widths[i] - _width(cell))
            padded.append(blanks + cell if right[i : i + 1] == "r" else cell + blanks)
        lines.append("  ".join(padded).rstrip())
    return lines


def printable(text: str, most: int | None = None) -> str:
    """Without what would break a line or speak to the terminal; cut to ``most`` characters."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if most is None or len(clean) <= most else clean[: most - 1] + "…"


def size(count: int) -> str:
    """Bytes with a unit."""
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def duration(seconds: float) -> str:
    """Seconds as people say them: the two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(at: datetime, now: datetime | None = None) -> str:
    """A time as this machine's clock shows it, and how far away it is."""
    away = ((now or datetime.now(UTC)) - at).total_seconds()
    words = f"{duration(away)} ago" if away >= 0 else f"in {duration(-away)}"
    return f"{clock(at)} ({words})"


def clock(at: datetime) -> str:
    """A time in this machine's time zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _width(text: str) -> int:
    """Columns on a terminal: Chinese takes two for a character."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
