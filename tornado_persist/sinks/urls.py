"""Database URLs, with one host or several."""

from __future__ import annotations

import re
from collections.abc import Collection

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

#: The parts of a URL with several hosts: before the list, the list, after it.
_SEVERAL_HOSTS = re.compile(r"(\w[\w+]*://(?:[^@/?#]*@)?)([^@/?#,]*(?:,[^@/?#,]*)+)([/?].*)?", re.DOTALL)


def parse_url(url: str, schemes: Collection[str]) -> URL:
    """The parts of a database URL.

    Raises:
        ValueError: it is malformed. The message quotes nothing of it, for any part may hold a piece of the password.
    """
    shape = f"{next(iter(schemes))}://user:password@host:port/database"
    several = _SEVERAL_HOSTS.fullmatch(url)
    try:
        parts = make_url(f"{several[1]}{several[3] or ''}" if several else url)
        if several:
            parts = parts.update_query_dict(_hosts(several[2], parts))
    except (ArgumentError, ValueError):
        raise ValueError(f"not a database URL of the form {shape}") from None
    if parts.drivername not in schemes:
        raise ValueError(f"not a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in f"{parts.host}{parts.database}":
        raise ValueError("an @ in the user name or password of a URL is written %40")
    if parts.port is not None and not 0 < parts.port < 65536:
        raise ValueError("the port of the URL is not between 1 and 65535")
    return parts


def _hosts(text: str, parts: URL) -> dict[str, str]:
    """libpq's way to name several hosts, ``host:port,host:port``, as parameters of a query."""
    if {"host", "port"} & parts.query.keys():
        raise ValueError
    found = [re.fullmatch(r"(\[.*\]|[^:]*)(?::(\d*))?", host) for host in text.split(",")]
    hosts = [match[1].strip("[]") for match in found if match]
    if len(hosts) < len(found) or not all(hosts):
        raise ValueError
    return {"host": ",".join(hosts), "port": ",".join(match[2] or "" for match in found if match)}
