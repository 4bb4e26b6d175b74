"""Who may do what: tokens and their scopes, host names, pages of other origins. Decided on a request's head alone."""

from __future__ import annotations

import base64
import functools
import hmac
import socket
from collections.abc import Collection, Iterable
from ipaddress import ip_address, ip_network

from tornado.httputil import HTTPHeaders, HTTPServerRequest

from tornado_persist.config.tokens import Scope, Token, Tokens, digest_of
from tornado_persist.telemetry.refusals import printable
from tornado_persist.web.bodies import Refused

#: A client on the Unix socket, in place of its address.
UNIX = "unix"

_REALM = 'realm="persistd"'
_BEARER, _BASIC = f"Bearer {_REALM}", f'Basic {_REALM}, charset="UTF-8"'
_HOW = "Authorization: Bearer, or Basic with the token as the password"


class Denied(Refused):
    """The request may not do this. ``challenges``: values of ``WWW-Authenticate``."""

    def __init__(self, why: str, detail: str, *challenges: str, token: str = "") -> None:
        """``token``: the name of the one that was shown."""
        super().__init__(why, detail)
        self.challenges = challenges
        self.token = token


class Access:
    """What every request is checked against. ``tokens`` may be replaced at any time; open connections are no matter."""

    def __init__(
        self,
        tokens: Tokens | None = None,
        *,
        hosts: Collection[str] | None = None,
        origins: Collection[str] = (),
        proxies: Collection[str] = (),
    ) -> None:
        """``hosts``: names that a request may be for, besides localhost and addresses; None: any.

        ``origins``: of web pages that may send requests. ``proxies``: addresses and networks, or ``unix``, from which
        requests may come for others.
        """
        #: Empty: everybody may do everything.
        self.tokens: Tokens = tokens or {}
        self._hosts = None if hosts is None else frozenset(hosts) | {"localhost"}
        self.origins = frozenset(origins)
        self._networks = [ip_network(proxy) for proxy in proxies if proxy != UNIX]
        self._unix_is_proxy = UNIX in proxies
        #: Whether some requests come for others.
        self.has_proxies = bool(proxies)

    def client_of(self, request: HTTPServerRequest) -> str:
        """The client's address: of a request from a proxy what that says, else where the connection comes from.

        Each proxy adds the address that it has seen at the end of ``X-Forwarded-For``. What stands before the last
        address that is no proxy's may be the client's invention.
        """
        client = request.remote_ip or ""
        named = request.headers.get("X-Forwarded-For", "").split(",")
        while named and self._is_proxy(client):
            try:
                client = str(ip_address(named.pop().strip().partition("%")[0]))  # a zone is any text
            except ValueError:
                break
        return client

    def _is_proxy(self, address: str) -> bool:
        if address == UNIX:
            return self._unix_is_proxy
        return any(ip_address(address) in network for network in self._networks)

    def admit(self, request: HTTPServerRequest, scope: Scope | None) -> str:
        """The name of the request's token; empty where none is needed. ``scope`` None: open to everybody.

        Raises:
            Denied: the host is none of ours, or the request needs a token with this scope.
        """
        host = request.host_name
        if self._hosts is not None and host not in self._hosts and not _is_address(host):
            raise Denied("host", f"The service is not {printable(host)}; server.allowed_hosts may name it")
        if scope is None or not self.tokens:
            return ""
        shown = request.headers.get("Authorization")
        if shown is None:
            raise Denied("no_token", f"This needs a token with the scope {scope} ({_HOW})", *_challenges(request))
        token = self._find(shown)
        if token is None:
            raise Denied("unknown_token", f"The token is not known ({_HOW})", *_challenges(request))
        if scope not in token.scopes:
            challenge = f'{_BEARER}, error="insufficient_scope", scope="{scope}"'
            raise Denied("scope", f"The token {token.name} lacks the scope {scope}", challenge, token=token.name)
        return token.name

    def may(self, headers: HTTPHeaders, scope: Scope) -> bool:
        """Whether a request with these headers may do what needs this scope."""
        if not self.tokens:
            return True
        token = self._find(headers.get("Authorization", ""))
        return token is not None and scope in token.scopes

    def trusts(self, origin: str) -> bool:
        """Whether pages of this origin may send requests, and read the answers."""
        return origin.lower() in self.origins

    def _find(self, authorization: str) -> Token | None:
        """The known token in such a header."""
        scheme, _, secret = authorization.partition(" ")
        match scheme.lower():
            case "bearer":
                secret = secret.strip()
            case "basic":
                try:
                    secret = base64.b64decode(secret.strip(), validate=True).decode().partition(":")[2]
                except ValueError:
                    return None
            case _:
                return None
        digest = digest_of(secret)
        token = self.tokens.get(digest)
        # The look-up may tell by its time how a digest begins, which says nothing about a token; this does not.
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None


def allowed_hosts(listed: Collection[str], sockets: Iterable[socket.socket]) -> Collection[str] | None:
    """Names that requests to these listening sockets may be for, besides localhost and addresses; None: any.

    Unless some are listed, none on loopback addresses, and any elsewhere: there a name may lead to it rightly.
    """
    if listed:
        return None if "*" in listed else listed
    names = [it.getsockname()[0] for it in sockets if it.family in (socket.AF_INET, socket.AF_INET6)]
    is_local = bool(names) and all(ip_address(name.partition("%")[0]).is_loopback for name in names)
    return () if is_local else None  # no browser reaches a Unix socket by a name


def _challenges(request: HTTPServerRequest) -> tuple[str, ...]:
    """How to authenticate. Only a page that a person opens lets the browser ask for a password."""
    headers = request.headers
    if headers.get("Sec-Fetch-Mode") == "navigate" or "text/html" in headers.get("Accept", ""):
        return _BASIC, _BEARER
    return (_BEARER,)


@functools.lru_cache(maxsize=1024)
def _is_address(host: str) -> bool:
    """Whether it is an IP address: no name leads to it, so nobody can have bent one."""
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
