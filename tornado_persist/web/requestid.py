"""The id that a request has in its answer and in the log."""

from __future__ import annotations

import itertools
import re
import secrets

# What stands in UUIDs, trace ids and the like, and needs no quotes anywhere.
_SANE = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}").fullmatch
# The process, then the number of the request in it: a hundredth of what a UUID costs.
_PROCESS = secrets.token_hex(6)
_numbers = itertools.count(1)


def choose(given: str | None) -> str:
    """The client's, if it is one word of at most 128 harmless characters, else one of our own."""
    return given if given and _SANE(given) else f"{_PROCESS}-{next(_numbers):x}"
