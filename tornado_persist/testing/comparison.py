"""How the contract compares what a sink stored with what it should have, and how it leaves a test out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NoReturn

from tornado_persist.records.models import Row
from tornado_persist.testing.samples import in_row


def skip(reason: str) -> NoReturn:
    """End the test, which does not concern this sink."""
    import pytest  # only where there is a test, so that the sinks beside this serve without it

    pytest.skip(reason)


def same(found: object, expected: object) -> None:
    """Compare as the contract does, types included, and raise an ``AssertionError`` that names the first differences.

    A float of JSON may come back as an integer of the same value, and a time as a ``datetime``; a long text is shown by
    its ends.
    """
    differences = list(itertools.islice(_differences(found, expected, ""), 5))
    if differences:
        raise AssertionError("\n".join(["found is not what was expected:", *differences]))


def _differences(found: object, expected: object, where: str) -> Iterator[str]:
    found, expected = (dict(value) if isinstance(value, Row) else value for value in (found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected.keys() | found.keys():
            place = f"{where}[{_short(key)}]"
            if key not in found:
                yield f"{place} is missing"
            elif key not in expected:
                yield f"{place} should not be there: {_short(found[key])}"
            else:
                yield from _differences(found[key], expected[key], place)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(a, b, f"{where}[{i}]")
    elif not _equal(found, expected):
        yield f"{where}: {_short(found)} where {_short(expected)} was expected"


def _equal(found: object, expected: object) -> bool:
    found = in_row(found)
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected  # to Python True is 1
    if isinstance(found, int | float) and isinstance(expected, float):
        # JSON has one kind of number: 1e22 may come back as an integer of 23 digits.
        return float(found) == expected
    if isinstance(found, float) and isinstance(expected, int) and not -(2**63) <= expected < 2**64:
        return found == float(expected)  # what is no 64-bit integer may be kept as a float, as MySQL's JSON does
    return found == expected and type(found) is type(expected)


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters) ...{text[-20:]}"
