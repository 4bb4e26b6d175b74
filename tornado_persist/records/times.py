"""Times as rows hold them: text in UTC, of one width, ``2025-09-30T16:35:00.000000+00:00``.

They are texts because a time only passes through here: every sink takes it as text in the end. Two ``datetime``
objects for a row would cost 0.9 µs, and each would have to be formatted again; two texts cost 0.5 µs. All have one
width, so that they sort as the times do.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo

#: ISO 8601 with a date and a time. ``datetime.fromisoformat`` alone would also take week dates and any separator, and
#: what it takes changes with Python's version. MySQL's DATETIME begins with the year 1000.
PATTERN = r"^[1-9]\d{3}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:[Zz]|[+-]\d\d(?::?\d\d)?)?$"

#: The formats that programs write by default, by length: the punctuation, and what is missing to 32 characters.
_DATE = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"}
_FORMS = {
    19: (_DATE, ".000000+00:00"),
    26: (_DATE | {19: "."}, "+00:00"),
    32: (_DATE | {19: "."} | dict(enumerate("+00:00", 26)), ""),
}
#: Number of times from which it pays to check them all together.
_MANY = 8

_matches = re.compile(PATTERN, re.ASCII).fullmatch
#: The midnight at which a day ends. Python reads it since 3.13.
_MIDNIGHT = re.compile(r".{11}24:00(?::00(?:\.0+)?)?(?:Z|[+-].*)?")
_parse = datetime.fromisoformat


def in_utc(text: str, zone: tzinfo = UTC) -> str:
    """An ISO 8601 date and time, as rows hold it. Without an offset it is of ``zone``: the first one, if there are two.

    Raises:
        ValueError: it is not a date and time, or it is before the year 1000 or after 9999 in UTC.
    """
    # The formats that programs write by default, recognized by their punctuation: 0.25 µs, a sixth of the general way.
    size = len(text)
    if text[10:13] == "T24" or (size < 32 and zone is not UTC):
        return _convert(text, zone)
    if size == 19 and text[4::3] == "--T::" and text[0] != "0":
        _parse(text)
        return text + ".000000+00:00"
    if size in (26, 32) and text[4:20:3] == "--T::." and text[20:26].isdecimal() and text[0] != "0":
        if size == 26:
            _parse(text)
            return text + "+00:00"
        if text[26:] == "+00:00":
            _parse(text)
            return text
    return _convert(text, zone)


def all_in_utc(texts: Sequence[str], zone: tzinfo = UTC) -> list[str]:
    """:func:`in_utc` of each, in half the time (0.24 µs instead of 0.41) where all have one format.

    Raises:
        ValueError: one of them is not a time.
    """
    count = len(texts)
    width = len(texts[0]) if count >= _MANY else 0
    if width in _FORMS and zone is UTC and set(map(len, texts)) == {width}:
        punctuation, rest = _FORMS[width]
        together = "".join(texts)
        columns = (together[at::width] == character * count for at, character in punctuation.items())
        if all(columns) and together.isascii() and "0" not in together[::width] and "T24" not in together:
            deque(map(_parse, texts), maxlen=0)  # the digits
            return [text + rest for text in texts]
    return [in_utc(text, zone) for text in texts]


def _convert(text: str, zone: tzinfo = UTC) -> str:
    if not _matches(text):
        raise ValueError("not an ISO 8601 date and time")
    # As Python 3.11 reads it. It takes an offset of hours alone, and one without a colon.
    text = text.upper().replace(",", ".")
    midnight = _MIDNIGHT.fullmatch(text)
    time = _parse(f"{text[:11]}00{text[13:]}" if midnight else text)
    try:
        if midnight:
            time += timedelta(days=1)
        time = (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond the year 9999") from None
    if time.year < 1000:
        raise ValueError("before the year 1000")
    return stamp(time)


def stamp(time: datetime) -> str:
    """An aware time in UTC, as rows hold it."""
    return time.isoformat(timespec="microseconds")
