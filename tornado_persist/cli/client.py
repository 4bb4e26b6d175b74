"""HTTP client of the running service: finds it, queries it, and sends it rows in batches."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode, urlsplit

from tornado_persist import listening
from tornado_persist.errors import ConfigError, FieldError, NoAnswer, PersistError, RequestRefused
from tornado_persist.files import DataDir

if TYPE_CHECKING:
    from tornado_persist.cli.command import Configuration
    from tornado_persist.config.loading import Settings
    from tornado_persist.records.models import Fields, Kind

#: Seconds that one answer may take.
TIMEOUT = 30.0
#: Seconds that a service may be away or full before sending gives up, and the longest wait between two tries.
PATIENCE = 60.0
LONGEST_PAUSE = 5.0
#: Answers that blame the data of a batch, or its size.
_BLAME = (400, 413, 422)
#: Addresses to listen on, and where such a service is reached from its own machine.
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_PREFIX = "/api/v1/persistence"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is, and how it is known to be that one."""

    #: ``http`` or ``https``, host, port, and the path before ``/api`` if a proxy adds one; or ``unix:`` and a path.
    url: str
    #: The service's certificate in PEM form. Empty: any that the system's CAs vouch for.
    certificate: str = ""
    #: The files of a certificate and its key, to be shown to the service; or empty.
    identity: Sequence[str] = ()

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """Not connected yet. Raises ValueError: the URL is none, or a file cannot be used."""
        if self.url.startswith("unix:"):
            return _UnixConnection(self.url.removeprefix("unix:"), timeout)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url} is no URL such as http://localhost:8001")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a URL with a user name or a password in it is not supported")
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=self._context())

    @property
    def path(self) -> str:
        """What goes before each path of a request."""
        return "" if self.url.startswith("unix:") else urlsplit(self.url).path.rstrip("/")

    def _context(self) -> ssl.SSLContext:
        if not self.certificate:
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # This one certificate is trusted, whoever signed it and whatever names are in it.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self.certificate)
        if self.identity:
            cert, key = self.identity
            try:
                context.load_cert_chain(cert, key, password="")
            except OSError as exc:
                reason = exc.strerror or str(exc)
                raise ValueError(f"the service wants a certificate, and {key} cannot be used: {reason}") from exc
        return context


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._socket = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._socket)
        except OSError:
            self.close()
            raise


class Client:
    """One persistent connection to the service; a broken one is replaced."""

    def __init__(self, place: Place | str, timeout: float = TIMEOUT, *, token: str = "") -> None:
        """``place``: or its URL. ``token``: shown with each request, if there is one.

        Raises:
            ValueError: that is no URL, or a file of it cannot be used.
        """
        place = Place(place) if isinstance(place, str) else place
        self.url = place.url.rstrip("/")
        self._path = place.path
        self._connection = place.connection(timeout)
        self._timeout = timeout
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._connection.close()

    def health(self) -> dict[str, Any]:
        """``GET /health``, healthy or not; without a figure if the token may not read. Raises as :meth:`_ask` does."""
        return self._ask("GET", "/health", good=("unhealthy",))

    def stats(self) -> dict[str, Any]:
        """``GET /stats``. Raises as :meth:`_ask` does."""
        return self._ask("GET", f"{_PREFIX}/stats")

    def flush(self) -> dict[str, Any]:
        """``POST /flush``; also where the flush failed the answer's fields, ``status`` being ``error``.

        Raises:
            NoAnswer, RequestRefused: see :meth:`_ask`.
        """
        return self._ask("POST", f"{_PREFIX}/flush", b"", good=("flushed", "error"))

    def clean(self, query: str) -> dict[str, Any]:
        """``POST /sessions/cleanup`` with this query. Raises as :meth:`_ask` does."""
        return self._ask("POST", f"{_PREFIX}/sessions/cleanup?{query}", b"")

    def send(self, kind: Kind, body: bytes, at: str = "") -> dict[str, Any]:
        """POST a batch; its body as the API wants it. ``at``: when its rows were accepted before.

        Raises as :meth:`_ask` does.
        """
        from tornado_persist.records.models import PLURALS

        headers = {"X-Persist-At": at} if at else {}
        return self._ask("POST", f"{_PREFIX}/{PLURALS[kind]}/batch", body, good=("accepted",), headers=headers)

    def row(self, *path: str) -> dict[str, Any]:
        """``GET`` one row, and what waits is written first. Raises as :meth:`_ask` does."""
        from tornado_persist.cli import lines

        return self._ask("GET", f"{_PREFIX}/{_join(path)}", read=lines.load)

    def pages(self, *path: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """``GET`` a list, answer by answer; ``fresh`` and ``count`` are of the first.

        Of rows that cannot be read a sentence is in ``unread``. Raises as :meth:`_ask` does.
        """
        query = {name: value for name, value in query.items() if value}
        while True:
            page = self._ask("GET", f"{_PREFIX}/{_join(path)}?{urlencode(query, errors='surrogateescape')}", read=_page)
            yield page
            if page["next"] is None:
                return
            kept = {name: value for name, value in query.items() if name not in ("fresh", "count")}
            query = {**kept, "after": page["next"]}

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        good: tuple[str, ...] = (),
        read: Callable[[bytes], Any] = json.loads,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The JSON of an answer, by ``read``.

        Raises:
            NoAnswer: there was none, or none of persistd; whether the request was taken is not known.
            RequestRefused: it was not 200, and its ``status`` is not in ``good`` either.
            Unreadable: a row has what ``read`` refuses.
        """
        headers = {**headers, **self._authorization, **({"Content-Type": "application/json"} if body else {})}
        fresh = self._connection.sock is None
        while True:
            try:
                self._connection.request(method, self._path + path, body, headers)
                response = self._connection.getresponse()
                content = response.read()
                break
            except (OSError, http.client.HTTPException) as exc:
                self._connection.close()
                if not fresh and isinstance(exc, ConnectionError):
                    fresh = True  # the kept connection had been closed by the other side
                    continue
                raise NoAnswer(f"no answer from {self.url}: {self._reason(exc)}") from exc
        try:
            found = read(content)
        except ValueError as exc:
            if response.status == 200 and read is not json.loads:
                raise Unreadable(f"what {self.url} sends cannot be read: {exc}") from None
            found = None
        if not isinstance(found, dict):
            raise NoAnswer(f"{self.url} answers {response.status} {response.reason}, but not as persistd does")
        if response.status == 200 or found.get("status") in good:
            return found
        errors: list[FieldError] = found.get("errors", [])
        after = response.headers.get("Retry-After", "")
        detail = str(found.get("detail", response.reason))
        if response.status == 401:
            detail = f"{self.url} wants a token that it knows; set PERSISTD_TOKEN or PERSISTD_TOKEN_FILE"
        raise RequestRefused(
            detail,
            status=response.status,
            errors=errors,
            retry_after=float(after) if after.isdecimal() else None,
        )

    def _reason(self, exc: Exception) -> str:
        match exc:
            case TimeoutError():
                return f"it took more than {self._timeout:g} second{'' if self._timeout == 1 else 's'}"
            case http.client.HTTPException() | ConnectionResetError() | BrokenPipeError():
                return "the connection broke"
            case ssl.SSLError():
                return str(exc)
            case OSError():
                return exc.strerror or str(exc)
        return str(exc)


def _page(content: bytes) -> dict[str, Any]:
    """An answer whose ``items`` are read one by one. Raises ValueError: it is no JSON object."""
    from tornado_persist.cli import lines

    found = lines.members(content)
    rows = list(lines.rows_of(found.pop("items", b"[]")))
    good = [row for row in rows if not isinstance(row, str)]
    bad = [row for row in rows if isinstance(row, str)]
    return {**{name: lines.load(text) for name, text in found.items()}, "items": good, "unread": bad}


def _join(path: Sequence[str]) -> str:
    return "/".join(quote(part, safe="", errors="surrogateescape") for part in path)


def add_url(parser: argparse.ArgumentParser) -> None:
    """The option ``--url``."""
    parser.add_argument("--url", help="the service, as http://HOST:PORT or unix:PATH (default: that of data_dir)")


def add_patience(parser: argparse.ArgumentParser) -> None:
    """The option ``--patience``."""
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help=f"how long the service may answer 503, or not at all, until this gives up ({PATIENCE:g})",
    )


def connect(configuration: Configuration, options: argparse.Namespace, timeout: float = TIMEOUT) -> Client:
    """A client of the selected service; sends nothing yet. ``timeout``: seconds for one answer.

    Raises:
        ConfigError: it is not known where the service is.
    """
    try:
        return Client(options.url or where(configuration), timeout, token=configuration.token)
    except ValueError as exc:
        raise ConfigError("--url", str(exc)) from None


def where(configuration: Configuration) -> Place:
    """The place that the running service has noted in ``data_dir``, else the configured one, which may be newer.

    Raises:
        ConfigError: neither is known.
    """
    with contextlib.suppress(ConfigError):  # the service may be another user's
        data_dir = DataDir(configuration.data_dir)
        if data_dir.locked() and (place := noted(data_dir)):
            return place
    return _configured(configuration.addresses())


def noted(data_dir: DataDir) -> Place | None:
    """The place that a service has noted in its ``data_dir``."""
    match data_dir.noted():
        case {"unix_socket": str(path)} if os.access(path, os.W_OK):
            return Place(f"unix:{path}")
        case {"url": str(url), "certificate": str(certificate), "identity": [*identity]}:
            return Place(url, certificate, tuple(map(str, identity)))
        case {"url": str(url)}:
            return Place(url)
    return None


def _configured(settings: Settings) -> Place:
    server, path = settings.server, settings.unix_socket
    if path and (not server.tcp or os.access(path, os.W_OK)):
        return Place(f"unix:{path}")
    if server.port == 0:
        raise ConfigError("server.port", "0 does not say where the service is; give --url (its log has it)")
    address = listening.shown(_EVERYWHERE.get(server.host, server.host), server.port)
    tls = settings.tls
    if not tls.cert:
        return Place(f"http://{address}")
    cert = settings.path(tls.cert)
    identity = (str(cert), str(settings.path(tls.key or tls.cert))) if tls.client_ca else ()
    return Place(f"https://{address}", listening.read_certificate(cert), identity)


class Unreadable(PersistError):
    """A stored row has what programs cannot read, such as an integer of 5,000 digits."""


class RowRefused(PersistError):
    """The service does not take a row: ``index`` among those that were to be sent."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(problem)
        self.index = index


class Sender:
    """Sends to one service.

    Unlike ``tornado_persist.client`` it stops at the first row that is refused, and what it has sent is known.
    """

    def __init__(
        self,
        client: Client,
        *,
        max_batch: int,
        max_bytes: int,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        """``max_batch`` rows and ``max_bytes`` in a request; a service that takes less gets less.

        ``patience``: seconds that a service may refuse, or not answer, until this gives up; ``say`` is told of waiting.
        """
        self._client = client
        self._max_batch = max_batch
        self._max_bytes = max_bytes
        self._patience = patience
        self._say = say
        self._reached = False
        #: When the service took the last batch, as its answer says.
        self.accepted_at: datetime | None = None
        #: Rows that it set aside, see ``records.invalid_rows``.
        self.set_aside = 0

    def send(self, rows: Sequence[tuple[Kind, Fields]], times: Sequence[str] = ()) -> None:
        """Send them; for each key in this order, and sessions before tasks. All are durable when this returns.

        ``times``: for each row when it was accepted before; neighbours of the same time share a request.

        Raises:
            RowRefused: one is wrong; all before it are durable, and maybe sessions after it.
            NoAnswer: there was no answer, or there has been none for too long; what is durable is not known.
            RequestRefused: the service refused for too long, or does not take batches at all.
        """
        from tornado_persist.records.models import KINDS

        fault: RowRefused | None = None
        for kind in KINDS:
            # The order of different kinds does not matter, except that a task's session must come first.
            some = [(i, row) for i, (its, row) in enumerate(rows) if its == kind and (fault is None or i < fault.index)]
            try:
                self._send_kind(kind, some, times)
            except RowRefused as exc:
                fault = exc
        if fault is not None:
            raise fault

    def _send_kind(self, kind: Kind, rows: list[tuple[int, Fields]], times: Sequence[str]) -> None:
        chunk: list[tuple[int, bytes]] = []
        at = ""
        size = room = self._max_bytes - 100  # for the JSON around the rows
        for index, row in rows:
            try:
                text = json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                self._post(kind, chunk, at)
                raise RowRefused(index, "it has a character that is none (an unpaired surrogate)") from None
            its_time = times[index] if times else ""
            if chunk and (len(text) + 2 > room or len(chunk) == self._max_batch or its_time != at):
                self._post(kind, chunk, at)
                chunk, room = [], size
            at = its_time
            chunk.append((index, text))
            room -= len(text) + 2
        self._post(kind, chunk, at)

    def _post(self, kind: Kind, chunk: list[tuple[int, bytes]], at: str) -> None:
        if not chunk:
            return
        from tornado_persist.records.models import PLURALS

        name = PLURALS[kind]
        body = b'{"%b": [%b]}' % (name.encode(), b", ".join(text for _, text in chunk))
        try:
            answer = self._patiently(kind, body, at)
        except RequestRefused as exc:
            if exc.status not in _BLAME:
                raise
            wrong = [error for error in exc.errors if len(error["loc"]) > 1 and error["loc"][0] == name]
            if wrong:
                first = min(wrong, key=lambda error: int(error["loc"][1]))
                row, *where = first["loc"][1:]
                self._post(kind, chunk[: int(row)], at)
                field = ".".join(map(str, where))
                problem = f"{field}: {first['msg']}" if field else first["msg"]
                raise RowRefused(chunk[int(row)][0], f"the service refuses it: {problem}") from None
            if len(chunk) == 1:
                raise RowRefused(chunk[0][0], f"the service refuses it: {exc}") from None
            # The batch is too large for it, or it does not say which row it is.
            if exc.status == 413:
                self._max_bytes = min(self._max_bytes, len(body) // 2)
            elif exc.status == 422:
                self._max_batch = min(self._max_batch, len(chunk) // 2)
            middle = len(chunk) // 2
            self._post(kind, chunk[:middle], at)
            self._post(kind, chunk[middle:], at)
        else:
            self.accepted_at = datetime.fromisoformat(answer["timestamp"])
            self.set_aside += answer.get("rejected", 0)

    def _patiently(self, kind: Kind, body: bytes, at: str) -> dict[str, Any]:
        """The answer, after as many tries as it takes. Sending a batch again does no harm."""
        from tornado_persist.pipeline.backoff import Backoff

        began = time.monotonic()
        pauses = Backoff(most=LONGEST_PAUSE)
        while True:
            problem: NoAnswer | RequestRefused
            try:
                answer = self._client.send(kind, body, at)
            except NoAnswer as exc:
                if not self._reached:
                    raise
                problem, pause = exc, pauses.failed()
            except RequestRefused as exc:
                self._reached = True
                if exc.status != 503:
                    raise
                problem = exc
                pause = pauses.failed() if exc.retry_after is None else exc.retry_after
            else:
                self._reached = True
                return answer
            left = self._patience - (time.monotonic() - began)
            if left <= 0:
                raise problem
            self._say(f"waiting: {problem}")
            time.sleep(min(pause, left))
