"""Masks passwords and access tokens wherever they would be shown, for instance in a driver's message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, urlsplit

#: How an access token begins, so that one is found wherever it stands.
TOKEN_PREFIX = "pst_"
#: Replaces a secret.
MASK = "***"
#: Shorter secrets are not masked everywhere: that would make other words unreadable.
_SHORTEST = 4

#: User and password in any URL, also of a configuration that was refused.
_USER_INFO = re.compile(r"(?<=://)([^\s:/@?#]*):[^\s@]+(?=@)")
#: Parameters of libpq and PyMySQL that hold a secret, in a URL's query or a connection string.
_PARAMETER = re.compile(r"(?i)\b((?:ssl|ssl_key_)?password|passwd|passfile)(\s*=\s*)(?:'[^']*'|[^\s&'\"]+)")

_TOKEN = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{16,}}")

#: A private key in PEM form, also one that was cut.
_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)", re.DOTALL)

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """Mask these from now on, also percent-encoded.

    Of a URL its password and secret parameters are masked. Secrets of earlier configurations stay masked.
    """
    global _pattern
    for secret in secrets:
        for word in _words(secret):
            _known.update(form for form in (word, unquote(word), quote(word, safe=""), quote_plus(word)))
    words = sorted((word for word in _known if len(word) >= _SHORTEST), key=len, reverse=True)
    _pattern = re.compile("|".join(map(re.escape, words))) if words else None


def mask(text: str) -> str:
    """``text`` with the secrets given to :func:`hide`, passwords of URLs, access tokens and private keys masked."""
    if _pattern is not None:
        text = _pattern.sub(MASK, text)
    if TOKEN_PREFIX in text:
        text = _TOKEN.sub(TOKEN_PREFIX + MASK, text)
    if "PRIVATE KEY-" in text:
        text = _KEY.sub(rf"\1{MASK}", text)
    if "://" in text:
        text = _USER_INFO.sub(rf"\1:{MASK}", text)
    return _PARAMETER.sub(rf"\1\2{MASK}", text) if "pass" in text.lower() else text


def _words(secret: str) -> Iterable[str]:
    if "://" not in secret:
        return [secret]
    # Not urlsplit's password: that ends at a slash that was not percent-encoded.
    match = re.match(r"[^:]+://[^:@/]*:(?P<password>[^@]*)@", secret)
    words = [match["password"]] if match else []
    try:
        query = urlsplit(secret).query
    except ValueError:
        return words
    return words + [value for name, _, value in (part.partition("=") for part in query.split("&")) if "pass" in name]


def forget() -> None:
    """Forget all secrets given to :func:`hide`."""
    global _pattern
    _known.clear()
    _pattern = None
