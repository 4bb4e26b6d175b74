"""The hosts of a URL that names several, and how long one of them may be silent."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import zip_longest

from sqlalchemy import URL

#: Seconds after which a connection attempt fails if the URL has another host to try.
HOST_TIMEOUT = 2
#: Seconds until a machine that does not answer, not even to TCP, is given up: it is switched off, or cut off. While the
#: connection is idle so many probes go before that, three seconds apart.
SILENCE = 10
PROBES = 3


def check_hosts(url: URL) -> URL:
    """The URL with the hosts of its query, and their ports, each as one list.

    Raises:
        ValueError: they do not fit; the message quotes nothing.
    """
    hosts, ports = listed(url, "host"), listed(url, "port")
    pairs = [host.split(":") for host in hosts if host[:1] != "/" and host.count(":") == 1]
    if pairs:  # SQLAlchemy's own way
        if ports or len(pairs) < len(hosts):
            raise ValueError("not each host in the URL's query has one port")
        hosts, ports = zip(*pairs, strict=True)
    if len(ports) == 1 and hosts:
        ports = [*ports] * len(hosts)
    if len(ports) > 1 and len(hosts) != len(ports):
        raise ValueError(f"the URL names {len(hosts)} hosts and {len(ports)} ports")
    if any(not port.isdecimal() or not 0 < int(port) < 65536 for port in ports if port):
        raise ValueError("a port in the URL's query is not between 1 and 65535")
    lists = {}
    if hosts:
        lists["host"] = ",".join(hosts)
    if ports and any(ports):
        lists["port"] = ",".join(ports)
    return url.difference_update_query(("host", "port")).update_query_dict(lists)


def listed(url: URL, name: str) -> Sequence[str]:
    """The values of a list parameter of the URL: separated by commas, or given several times."""
    value = url.query.get(name, ())
    return value.split(",") if isinstance(value, str) else [*value]


def hosts_of(url: URL, default_port: int, last: tuple[str, int] | None) -> list[tuple[str, int]]:
    """The hosts of the URL's query with their ports, in the order in which to try them: ``last`` comes last."""
    hosts, ports = listed(url, "host"), listed(url, "port")
    places = [(host, int(port or default_port)) for host, port in zip_longest(hosts, ports, fillvalue="")]
    return sorted(places, key=lambda place: place == last)


def notice_silence(connection: socket.socket) -> None:
    """Let the system end a TCP connection after ``SILENCE``; libpq has options for it."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, value in {
        "TCP_KEEPIDLE": SILENCE,
        "TCP_KEEPINTVL": 3,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": SILENCE * 1000,
    }.items():
        if hasattr(socket, name):  # each system has some of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
