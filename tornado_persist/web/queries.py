"""The parameters of a query: unknown ones and bad values are named, with the right one that is nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias

from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError

#: The value of a parameter's text. Raises ValueError with the rest of a sentence that begins with the parameter's name.
Reader: TypeAlias = Callable[[str], Any]

#: Characters of a client's own text that an answer quotes.
QUOTED = 64
#: A hundred years.
MOST_DAYS = 36_500


class BadQuery(HTTPError):
    """A parameter of the query is unknown or wrong."""

    def __init__(self, detail: str) -> None:
        super().__init__(422)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def read(request: HTTPServerRequest, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of the parameters that the request has.

    Raises:
        BadQuery: one is unknown, is there twice, or has a bad value.
    """
    found: dict[str, Any] = {}
    for name, values in request.query_arguments.items():
        if name not in readers:
            known = ", ".join(readers) or "none"
            raise BadQuery(f"The parameter {name[:QUOTED]!r} is unknown{did_you_mean(name, readers) or f' ({known})'}")
        if len(values) > 1:
            raise BadQuery(f"The parameter {name} is there {len(values)} times")
        try:
            found[name] = readers[name](values[0].decode())
        except UnicodeDecodeError:
            raise BadQuery(f"{name} is no UTF-8") from None
        except ValueError as exc:
            raise BadQuery(f"{name} {exc}") from None
    return found


def did_you_mean(text: str, known: Mapping[str, Any]) -> str:
    """`` (did you mean ...?)``; empty if nothing is near."""
    near = get_close_matches(text[:QUOTED].lower(), known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def flag(text: str) -> bool:
    """``true`` or ``false``."""
    flags = {"true": True, "false": False}
    if text not in flags:
        raise ValueError(f"should be true or false, not {text[:QUOTED]!r}{did_you_mean(text, flags)}")
    return flags[text]


def days(text: str) -> int:
    """A whole number of days, at least one."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= len(text) <= 9:
        raise ValueError(f"should be a whole number of days, such as 90, not {text[:QUOTED]!r}")
    count = int(text)
    if not 1 <= count <= MOST_DAYS:
        nearest = min(max(count, 1), MOST_DAYS)
        raise ValueError(f"should be between 1 and {MOST_DAYS} days, not {count} (did you mean {nearest}?)")
    return count
