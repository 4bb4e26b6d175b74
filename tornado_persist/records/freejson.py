"""JSON of any form, checked as text: free fields (``game_info``, ``metadata``) and fields that are dropped.

As Python objects 10 MiB of ``[]`` would cost 250 MiB and seconds. So all of this works on bytes, in calls that run at
the speed of C, and on JSON that msgspec has found well-formed.

What JSON cannot hold, but programs send, is *marked* first, so that the rest can be read and the error named by row and
field: NaN and the infinities become numbers beyond any double, and half of a surrogate pair becomes a NUL with the four
hexadecimal digits after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

from tornado_persist.records.models import MAX_DEPTH

NOT_FINITE = "Input should be a finite number"
NUL = "Input should be a string without NUL characters"
SURROGATE = "Input should be whole characters: half of a surrogate pair is in it (was a text cut within an emoji?)"
TOO_LONG = "A number may have at most 4,300 characters, and an exponent of four digits"
TOO_MANY = "It holds too many numbers with exponents of three digits"

MAX_NUMBER = 4300  # characters; Python reads no longer integers
_MAX_SUSPECTS = 100_000
#: Bytes up to which an error is searched for by reading the JSON, to name the place within it.
_SMALL = 65_536
#: Levels up to which it is read for that.
_READABLE = 2 * MAX_DEPTH
#: Of NaN, or of halves of pairs, in one body; past it the body counts as no JSON.
_MAX_MARKS = 20_000

_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b'{}[]"')))
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
#: Numbers that may be out of range or too long: each is one match, since none begins within a number.
_SUSPECT = re.compile(
    rb"(?<![0-9.eE+-])-?(?:[0-9.]{300,}+(?:[eE][+-]?[0-9]++)?|[0-9][0-9.]*+[eE](?:\+?[0-9]{3,}+|-[0-9]{4,}+))"
)
_MARKED = re.compile(rb"\\u0000[dD][89a-fA-F][0-9a-fA-F]{2}")

# Text without a mark, then text with one, or else any byte: a match never fails, which would begin a new search at
# each byte. Possessive, so that a body of 10 MiB needs no stack.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_NO_NUMBER = re.compile(rb'((?:[^"NI-]++|-(?!I)|' + _STRING + rb")*+)(NaN|-?Infinity|.|\Z)", re.DOTALL)
_PAIR = rb"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(
    rb"((?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F])|" + _PAIR + rb"))*+)(\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\|\Z)", re.DOTALL
)
_MARKS = {b"NaN": b"7e99991", b"Infinity": b"7e99992", b"-Infinity": b"-7e99992"}
_MARKED_NUMBER = re.compile(rb"-?7e9999[12]")
_WORDS = {mark: word for word, mark in _MARKS.items()}


def mark(body: bytes) -> bytes:
    """The body with what JSON cannot hold marked."""
    if b"NaN" in body or b"Infinity" in body:
        body = _NO_NUMBER.sub(lambda match: match[1] + _MARKS.get(match[2], match[2]), body, count=_MAX_MARKS)
    if b"\\ud" in body or b"\\uD" in body:
        body = _HALF.sub(lambda match: match[1] + match[2].replace(b"\\u", b"\\u0000"), body, count=_MAX_MARKS)
    return body


def unmark(text: bytes) -> bytes:
    """Part of a marked body as it was sent."""
    if b"7e9999" in text:
        text = _MARKED_NUMBER.sub(lambda match: _WORDS[match[0]], text)
    if b"\\u0000" in text:
        text = re.sub(rb"\\u0000([dD][89a-fA-F][0-9a-fA-F]{2})", rb"\\u\1", text)
    return text


def find_problem(text: bytes, depth: int | None = MAX_DEPTH) -> str | None:
    """What is wrong with JSON that came: NUL, half a surrogate pair, nesting, numbers that no database takes.

    ``depth``: levels of objects and arrays at most; None: as many as can be read.
    """
    if problem := text_problem(text):
        return problem
    if depth is not None and too_deep(text, depth):
        return f"JSON may be nested at most {depth} levels deep"
    return _number_problem(text)


def locate(text: bytes, depth: int | None = MAX_DEPTH) -> tuple[list[str | int], str] | None:
    """:func:`find_problem`, and the place within the JSON if that is small."""
    problem = find_problem(text, depth)
    if problem is None:
        return None
    if len(text) <= _SMALL and not too_deep(text, _READABLE):
        value = json.loads(text, parse_int=_Digits, parse_float=_Digits)
        for loc, found in _walk(value, [], 1, depth):
            return loc, found
    return [], problem


def text_problem(text: bytes) -> str | None:
    """What is wrong with a JSON string."""
    if b"\\u0000" in text:
        text = text.replace(b"\\\\", b"")  # then each backslash begins an escape
        if b"\\u0000" in text:
            return SURROGATE if _MARKED.search(text) else NUL
    return None


def name_problem(name: str) -> str:
    """What is wrong with a field's name that has a NUL."""
    problem = text_problem(json.dumps(name).encode())
    return SURROGATE if problem == SURROGATE else "A field's name has no NUL character"


def too_deep(text: bytes, depth: int) -> bool:
    """Whether arrays and objects are nested in more than ``depth`` levels, which is 2 at least."""
    if text.count(b"[") + text.count(b"{") <= depth:
        return False
    brackets = _without_strings(_without_escapes(text).translate(_SQUARE, _NO_BRACKETS))
    return _nest(depth - 1).fullmatch(brackets.replace(b"[]", b"")) is None  # the innermost level is gone


@cache
def _nest(depth: int) -> re.Pattern[bytes]:
    """Brackets that are nested in at most ``depth`` levels. 10 MiB of them take 0.05 s."""
    pattern = rb"(?:\[\])*+"
    for _ in range(depth - 1):
        pattern = rb"(?:\[" + pattern + rb"\])*+"
    return re.compile(pattern)


def _number_problem(text: bytes) -> str | None:
    digits = text.translate(_DIGITS)
    if not (b"e000" in digits or b"e+000" in digits or b"e-0000" in digits or b"0" * 200 in digits):
        return None
    suspects = _SUSPECT.finditer(_without_strings(_without_escapes(text)))
    for count, match in enumerate(islice(suspects, _MAX_SUSPECTS + 1)):
        if count == _MAX_SUSPECTS:
            return TOO_MANY
        if problem := number_problem(match[0]):
            return problem
    return None


def number_problem(text: bytes) -> str | None:
    """What is wrong with a number, if anything."""
    mantissa, _, exponent = text.lower().partition(b"e")
    if float(text) in (float("inf"), float("-inf")):
        return NOT_FINITE
    return TOO_LONG if len(mantissa) > MAX_NUMBER or len(exponent.lstrip(b"+-0")) > 4 else None


def _without_escapes(text: bytes) -> bytes:
    r"""Without ``\\`` and ``\"``, so that every quote begins or ends a string."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text


def _without_strings(text: bytes) -> bytes:
    # Two quotes side by side are no string, or join two: both leave the rest where it is, in or out of strings.
    return b"".join(text.replace(b'""', b"").split(b'"')[::2])


class _Digits(str):
    """A number as it was written."""

    __slots__ = ()


def _walk(value: Any, loc: list[str | int], level: int, depth: int | None) -> Iterator[tuple[list[str | int], str]]:
    if isinstance(value, _Digits):
        if problem := number_problem(value.encode()):
            yield loc, problem
    elif isinstance(value, str):
        if "\0" in value:
            yield loc, text_problem(json.dumps(value).encode()) or NUL
    elif isinstance(value, dict | list):
        if depth is not None and level > depth:
            yield loc, f"JSON may be nested at most {depth} levels deep"
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and "\0" in key:
                yield loc, name_problem(key)
                return
            yield from _walk(item, [*loc, key], level + 1, depth)
