"""What the configuration's tables ask for, made: the sink, the sockets, TLS, and a word where anybody can connect."""

from __future__ import annotations

import socket
from typing import Any

from tornado_persist import listening
from tornado_persist.config.loading import Settings
from tornado_persist.errors import ConfigError, StartError
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Sink, SinkSettings


def writers(settings: SinkSettings) -> str:
    """``one``, or ``several`` if other instances write the same rows, too."""
    return str(getattr(settings, "writers", "one"))  # a plugin may have no such setting


def make_sink(settings: Settings) -> Sink[Any]:
    """The configured sink, not opened yet.

    Raises:
        ConfigError: it cannot look sessions up, or not delete, and a setting asks for that.
    """
    sink_class = registry.find(settings.sink)
    if settings.retention.on and sink_class.delete_sessions is Sink.delete_sessions:
        raise ConfigError("retention", f"sink {settings.sink} cannot delete rows")
    if settings.records.require_session and sink_class.find_sessions is Sink.find_sessions:
        raise ConfigError("records.require_session", f"sink {settings.sink} cannot look sessions up")
    return sink_class(settings.sink_settings(), settings.data_dir)


def probe(settings: Settings) -> None:
    """Raises StartError: an address is taken."""
    try:
        if settings.unix_socket:
            listening.look_at_unix(settings.unix_socket)
        if settings.server.tcp:
            for made in listening.listen(settings.server.host, settings.server.port):
                made.close()
    except OSError as exc:
        raise _not_listening(settings, exc) from None


def bind(settings: Settings) -> list[socket.socket]:
    server = settings.server
    sockets: list[socket.socket] = []
    try:
        if server.tcp:
            sockets += listening.listen(server.host, server.port)
        if settings.unix_socket:
            sockets.append(listening.listen_unix(settings.unix_socket, int(server.unix_socket_mode, 8)))
    except OSError as exc:
        for made in sockets:
            made.close()
        raise _not_listening(settings, exc) from None
    return sockets


def _not_listening(settings: Settings, exc: OSError) -> StartError:
    place = exc.filename or listening.shown(settings.server.host, settings.server.port)
    return StartError(f"cannot listen on {place}: {exc.strerror}")


def warn_of_anybody(settings: Settings, port: int) -> str:
    """A sentence, if other machines can connect and need neither a token nor a certificate; else empty."""
    server = settings.server
    exposed = listening.exposed(server.host, port) if server.tcp and _takes_anybody(settings) else []
    return f"anybody who reaches {' or '.join(exposed)} can write and read" if exposed else ""


def _takes_anybody(settings: Settings) -> bool:
    return not (settings.tls.client_ca or settings.auth.tokens or settings.auth.tokens_file)


def make_tls(settings: Settings) -> listening.TLS | None:
    """What ``[tls]`` asks for; blocking. Raises ConfigError."""
    tls = settings.tls
    if not tls.cert:
        return None
    key, client_ca = (settings.path(name) if name else None for name in (tls.key, tls.client_ca))
    return listening.TLS.load(settings.path(tls.cert), key, client_ca, tls.min_version)
