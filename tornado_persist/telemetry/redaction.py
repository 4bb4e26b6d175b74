"""What must not be shown: the passwords of the configuration, wherever a driver's words may quote one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, urlsplit

#: Stands where a secret was.
MASK = "***"
#: Shorter ones are no secrets, and hiding them everywhere would make other words unreadable.
_SHORTEST = 4

#: The user's part of any URL, the one of a configuration that was refused too.
_USER_INFO = re.compile(r"(?<=://)([^\s:/@?#]*):[^\s@]+(?=@)")
#: Parameters of libpq and PyMySQL that hold a secret, in a URL's query or a connection string.
_PARAMETER = re.compile(r"(?i)\b((?:ssl|ssl_key_)?password|passwd|passfile)(\s*=\s*)(?:'[^']*'|[^\s&'\"]+)")

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """Never show these from now on, in none of the ways in which a URL writes them.

    A secret that is a URL counts as its password and the values of its query; those of old configurations stay hidden.
    """
    global _pattern
    for secret in secrets:
        for word in _words(secret):
            _known.update(form for form in (word, unquote(word), quote(word, safe=""), quote_plus(word)))
    words = sorted((word for word in _known if len(word) >= _SHORTEST), key=len, reverse=True)
    _pattern = re.compile("|".join(map(re.escape, words))) if words else None


def mask(text: str) -> str:
    """``text`` without what :func:`hide` was told, and without the password of any URL."""
    if _pattern is not None:
        text = _pattern.sub(MASK, text)
    if "://" in text:
        text = _USER_INFO.sub(rf"\1:{MASK}", text)
    return _PARAMETER.sub(rf"\1\2{MASK}", text) if "pass" in text.lower() else text


def _words(secret: str) -> Iterable[str]:
    if "://" not in secret:
        return [secret]
    # Not urlsplit's password: it stops at a slash that somebody has forgotten to encode.
    match = re.match(r"[^:]+://[^:@/]*:(?P<password>[^@]*)@", secret)
    words = [match["password"]] if match else []
    try:
        query = urlsplit(secret).query
    except ValueError:
        return words
    return words + [value for name, _, value in (part.partition("=") for part in query.split("&")) if "pass" in name]


def forget() -> None:
    """Hide nothing more of what :func:`hide` was told."""
    global _pattern
    _known.clear()
    _pattern = None
