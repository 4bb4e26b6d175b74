"""The sockets that the service listens on: each address of ``server.host``, a Unix socket; and the files of TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tornado_persist.errors import ConfigError

#: A socket's address: host and port, and two more numbers with IPv6.
_Address: TypeAlias = tuple[Any, ...]

#: Names for two addresses, one of which may be missing (usually IPv6, in containers).
_BOTH = {"localhost": ("127.0.0.1", "::1"), "": ("0.0.0.0", "::"), "::": ("0.0.0.0", "::")}
_LACKING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

#: Connections that wait to be accepted at most; the system may allow fewer.
BACKLOG = 1024
#: Ports that are tried until one is free on all addresses, if any port will do.
_TRIES = 20
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_END = "-----END CERTIFICATE-----"


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


def url(sockets: Sequence[socket.socket], *, tls: bool = False) -> str:
    """Where a client on this machine reaches them; a Unix socket only if there is nothing else."""
    if sockets[0].family == socket.AF_UNIX:
        return f"unix:{sockets[0].getsockname()}"
    address, port = sockets[0].getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"{'https' if tls else 'http'}://{shown(address, port)}"


def shown(address: str, port: int) -> str:
    """Address and port as in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def exposed(host: str, port: int) -> list[str]:
    """Those of the addresses that other machines may reach, with the port."""
    try:
        addresses = [address[0] for _, address in _addresses(host, port)]
    except OSError:  # no known name; nothing listens there
        return []
    return [shown(one, port) for one in addresses if not ip_address(one.partition("%")[0]).is_loopback]


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


# Unix sockets


def listen_unix(path: Path, mode: int) -> socket.socket:
    """A listening Unix socket with these permissions. A file that a dead process has left there is replaced.

    Raises:
        OSError: it cannot be listened on, or another process does; ``filename`` is the path.
    """
    look_at_unix(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        path.unlink(missing_ok=True)
        # Not chmod: in a directory of others the path may be something else by then.
        umask = os.umask(0o777 & ~mode)
        try:
            made.bind(os.fspath(path))
        finally:
            os.umask(umask)
        made.listen(BACKLOG)
    except OSError as exc:
        made.close()
        raise OSError(exc.errno or errno.EINVAL, exc.strerror or str(exc), str(path)) from None
    return made


def look_at_unix(path: Path) -> None:
    """Whether :func:`listen_unix` can listen there; changes nothing.

    Raises:
        OSError: it cannot; ``filename`` is the path.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket", str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        directory = path.parent
        if not directory.is_dir():
            raise OSError(errno.ENOENT, "its directory does not exist", str(path)) from None
        if not os.access(directory, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
        return
    except BlockingIOError:  # its queue is full, so somebody listens
        pass
    except OSError as exc:
        raise OSError(exc.errno or errno.EINVAL, exc.strerror or str(exc), str(path)) from None
    raise OSError(errno.EADDRINUSE, "another process listens there", str(path))


def remove_unix(path: Path) -> None:
    """Remove the file of a Unix socket on which nobody listens any more."""
    with suppress(OSError):
        look_at_unix(path)
        path.unlink()


# TLS


class TLS(NamedTuple):
    """The server's side of TLS."""

    context: ssl.SSLContext
    certificate: str  #: the server's own, in PEM form
    #: The files of certificate and key, as the commands need them where clients need a certificate; else empty.
    identity: list[str]

    @classmethod
    def load(cls, cert: Path, key: Path | None, client_ca: Path | None, min_version: str) -> TLS:
        """Blocking. ``key``: None if it is in ``cert``; ``client_ca``: of clients that may connect, None: all may.

        Raises:
            ConfigError: a file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[min_version]
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        certificate = read_certificate(cert)
        try:
            # Without any password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(cert, key, password="")
        except OSError as exc:
            name, file = ("tls.key", key) if key else ("tls.cert", cert)
            raise ConfigError(name, f"{file} cannot be used: {_explain(exc)}") from None
        if client_ca is None:
            return cls(context, certificate, [])
        context.verify_mode = ssl.CERT_REQUIRED
        # A certificate alone, without its CA, can be trusted: the service's own, with which the commands come.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(client_ca)
        except OSError as exc:
            raise ConfigError("tls.client_ca", f"{client_ca} cannot be used: {_explain(exc)}") from None
        context.load_verify_locations(cadata=certificate)
        return cls(context, certificate, [str(cert), str(key or cert)])


def read_certificate(cert: Path) -> str:
    """The first certificate of a PEM file, without its chain; blocking.

    Raises:
        ConfigError: there is none.
    """
    try:
        text = cert.read_text(encoding="ascii", errors="replace")
    except OSError as exc:
        raise ConfigError("tls.cert", f"{cert} cannot be read: {exc.strerror}") from None
    start, end = text.find("-----BEGIN CERTIFICATE-----"), text.find(_END)
    if not 0 <= start < end:
        raise ConfigError("tls.cert", f"{cert} has no certificate in PEM form")
    return text[start : end + len(_END)] + "\n"


def _explain(exc: OSError) -> str:
    if not isinstance(exc, ssl.SSLError):
        return exc.strerror or str(exc)
    if exc.reason == "KEY_VALUES_MISMATCH":
        return "it is not the key of the certificate"
    return "it is not what its name says, in PEM form, or it is encrypted"
