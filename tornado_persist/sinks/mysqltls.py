"""The TLS options of a MySQL URL, as PyMySQL's documentation has them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

_FLAGS = ("ssl", "ssl_disabled", "ssl_verify_cert", "ssl_verify_identity")
_TEXTS = ("ssl_ca", "ssl_cert", "ssl_key", "ssl_key_password")
#: Every option.
OPTIONS = (*_FLAGS, *_TEXTS)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def arguments(query: Mapping[str, Any]) -> dict[str, Any]:
    """What the driver gets for the options in ``query``: no TLS, or one context; nothing if none is asked for.

    Raises:
        ValueError: an option is unknown or wrong, or a file cannot be used. The message quotes no value.
    """
    given = {name: query[name] for name in query if name.startswith("ssl")}
    if unknown := given.keys() - OPTIONS:
        raise ValueError(f"{min(unknown)} is not one of the TLS options {', '.join(OPTIONS)}")
    if twice := [name for name, value in given.items() if isinstance(value, tuple)]:
        raise ValueError(f"{twice[0]} is given more than once")
    flags = {name: _flag(name, given[name]) for name in _FLAGS if name in given}
    if flags.get("ssl_disabled"):
        return {"ssl_disabled": True}
    texts = {name: given[name] for name in _TEXTS if given.get(name)}
    return {"ssl": _context(flags, texts)} if texts or any(flags.values()) else {}


def _context(flags: Mapping[str, bool], texts: Mapping[str, str]) -> ssl.SSLContext:
    """A context that verifies the certificate if a CA is given, unless told otherwise."""
    ca, cert, key = texts.get("ssl_ca"), texts.get("ssl_cert"), texts.get("ssl_key")
    identity = flags.get("ssl_verify_identity", False)
    if key and not cert:
        raise ValueError("ssl_key needs ssl_cert")
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as exc:  # SSLError is one
        raise ValueError(f"ssl_ca cannot be read: {_reason(exc)}") from None
    # The certificates that MySQL makes for itself are not that strict.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = identity
    verify = identity or flags.get("ssl_verify_cert", bool(ca))
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if cert:
        try:
            # Without any password OpenSSL would ask for one.
            context.load_cert_chain(cert, key, texts.get("ssl_key_password", ""))
        except OSError as exc:
            raise ValueError(f"ssl_cert and ssl_key cannot be used: {_reason(exc)}") from None
    return context


def _flag(name: str, value: str) -> bool:
    if value.lower() not in _WORDS:
        raise ValueError(f"{name} must be true or false")
    return _WORDS[value.lower()]


def _reason(exc: OSError) -> str:
    return "it is not what its name says, in PEM form" if isinstance(exc, ssl.SSLError) else exc.strerror or "no file"
