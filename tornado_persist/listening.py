"""The sockets that the service listens on: every address of ``server.host``, all with the same port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

#: A socket's address: host and port, and two more numbers with IPv6.
_Address: TypeAlias = tuple[Any, ...]

#: Names for two addresses, one of which may be missing (usually IPv6, in containers).
_BOTH = {"localhost": ("127.0.0.1", "::1"), "": ("0.0.0.0", "::"), "::": ("0.0.0.0", "::")}
_LACKING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

#: Connections that wait to be accepted at most; the system may allow fewer.
BACKLOG = 1024
#: Ports that are tried until one is free on all addresses, if any port will do.
_TRIES = 20


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, the IPv4 ones first, on the same port; 0 chooses a free one.

    ``localhost`` is 127.0.0.1 and ::1, the empty name and ``::`` every address; another name is all of its addresses.

    Raises:
        OSError: one of them cannot be listened on; ``filename`` is the address. A name that is not known has none.
    """
    for _ in range(_TRIES - 1 if port == 0 else 0):
        try:
            return _listen(host, port)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
    return _listen(host, port)


def url(sockets: Sequence[socket.socket]) -> str:
    """Where a client on this machine reaches them."""
    address, port = sockets[0].getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://{shown(address, port)}"


def shown(address: str, port: int) -> str:
    """Address and port as in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _listen(host: str, port: int) -> list[socket.socket]:
    addresses = _addresses(host, port)
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            where = (address[0], port or (sockets[0].getsockname()[1] if sockets else 0), *address[2:])
            try:
                sockets.append(_bound(family, where))
            except OSError as exc:
                is_last = len(sockets) == 0 and address is addresses[-1][1]
                if host not in _BOTH or exc.errno not in _LACKING or is_last:
                    raise OSError(exc.errno, exc.strerror, shown(where[0], where[1])) from None
        for made in sockets:
            try:
                made.listen(BACKLOG)
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, shown(*made.getsockname()[:2])) from None
    except OSError:
        for made in sockets:
            made.close()
        raise
    return sockets


def _addresses(host: str, port: int) -> list[tuple[int, _Address]]:
    names = _BOTH.get(host, (host,))
    found: list[tuple[int, _Address]] = [
        (family, address)
        for name in names
        for family, _, _, _, address in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    ]
    return sorted(dict.fromkeys(found), key=lambda entry: entry[0] != socket.AF_INET)


def _bound(family: int, address: _Address) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
