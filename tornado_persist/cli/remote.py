"""How a command finds the running service."""

from __future__ import annotations

import argparse

from tornado_persist.cli.client import TIMEOUT, Client
from tornado_persist.config import Settings
from tornado_persist.errors import ConfigError

#: Addresses to listen on, and where such a service is reached from its own machine.
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def add_url(parser: argparse.ArgumentParser) -> None:
    """The option ``--url``."""
    parser.add_argument("--url", help="the service, as http://HOST:PORT (default: server.host and server.port)")


def connect(settings: Settings, options: argparse.Namespace, timeout: float = TIMEOUT) -> Client:
    """A client of the service that is meant; nothing is sent yet. ``timeout``: seconds for one answer.

    Raises:
        ConfigError: it is not known where the service is.
    """
    try:
        return Client(options.url or _url(settings), timeout)
    except ValueError as exc:
        raise ConfigError("--url", str(exc)) from None


def _url(settings: Settings) -> str:
    host, port = settings.server.host, settings.server.port
    if port == 0:
        raise ConfigError("server.port", "0 does not say where the service is; give --url (its log has it)")
    host = _EVERYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
