"""What a request asks for: its keys, and the parameters of its query.

Unknown parameters and bad values are named, with the right one that is nearest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias

from tornado.httputil import HTTPServerRequest

from tornado_persist.errors import InvalidQuery, NoSuchRow
from tornado_persist.records.models import MAX_KEY
from tornado_persist.records.times import in_utc

#: The value of a parameter's text. Raises ValueError with the rest of a sentence that begins with the parameter's name.
Reader: TypeAlias = Callable[[str], Any]

#: Characters of a client's own text that an answer quotes.
QUOTED = 64
#: A hundred years.
MOST_DAYS = 36_500


def read(request: HTTPServerRequest, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of the parameters that the request has.

    Raises:
        InvalidQuery: one is unknown, is there twice, or has a bad value.
    """
    found: dict[str, Any] = {}
    for name, values in request.query_arguments.items():
        if name not in readers:
            known = ", ".join(readers) or "none"
            hint = did_you_mean(name, readers) or f" ({known})"
            raise InvalidQuery(f"The parameter {name[:QUOTED]!r} is unknown{hint}")
        if len(values) > 1:
            raise InvalidQuery(f"The parameter {name} is there {len(values)} times")
        try:
            found[name] = readers[name](values[0].decode())
        except UnicodeDecodeError:
            raise InvalidQuery(f"{name} is no UTF-8") from None
        except ValueError as exc:
            raise InvalidQuery(f"{name} {exc}") from None
    return found


def require_key(*parts: str) -> None:
    """No sink is asked for what cannot be a key: some refuse a NUL character, say.

    Raises:
        NoSuchRow: a part is too long, or has control characters.
    """
    for part in parts:
        if len(part) > MAX_KEY or any(unicodedata.category(character) in ("Cc", "Cs") for character in part):
            raise NoSuchRow(f"There is no such key: it has control characters, or more than {MAX_KEY} characters")


def did_you_mean(text: str, known: Collection[str]) -> str:
    """`` (did you mean ...?)``; empty if nothing is near."""
    near = get_close_matches(text[:QUOTED].lower(), known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


# Readers


def any_text(text: str) -> str:
    """Any text that a row may hold."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def flag(text: str) -> bool:
    """``true`` or ``false``."""
    flags = {"true": True, "false": False}
    if text not in flags:
        raise ValueError(f"should be true or false, not {text[:QUOTED]!r}{did_you_mean(text, flags)}")
    return flags[text]


def some_of(known: Collection[str]) -> Reader:
    """One or several of these names, with commas between them, as a tuple."""

    def read_names(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"should be some of {', '.join(known)}, not {name[:QUOTED]!r}{hint}")
        return names

    return read_names


def time(text: str) -> str:
    """A time, as rows hold times."""
    try:
        # A + of an offset that was not encoded arrives as a blank.
        return in_utc(re.sub(r" (?=\d\d:?\d\d$)", "+", text))
    except ValueError:
        raise ValueError(f"should be an ISO 8601 date and time, not {text[:QUOTED]!r}") from None


def number(most: int, unit: str = "", example: int = 100) -> Reader:
    """A whole number from 1 to ``most``."""

    def read_number(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not 1 <= len(text) <= 9:
            of = f" of {unit}" if unit else ""
            raise ValueError(f"should be a whole number{of}, such as {example}, not {text[:QUOTED]!r}")
        count = int(text)
        if not 1 <= count <= most:
            nearest = min(max(count, 1), most)
            what = f" {unit}" if unit else ""
            raise ValueError(f"should be between 1 and {most}{what}, not {count} (did you mean {nearest}?)")
        return count

    return read_number


days = number(MOST_DAYS, "days", 90)
