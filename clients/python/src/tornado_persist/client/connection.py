"""Where the service is, the one connection to it that is kept, and what its answers mean."""

from __future__ import annotations

import contextlib

# httpx and socket import these when they connect, in a thread: a child forked at that moment would be left with half of
# them, and could never send.
import encodings.idna  # noqa: F401
import gzip
import json
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import httpcore  # noqa: F401
import httpx

from tornado_persist.client.values import Kind, Row

if TYPE_CHECKING:
    import os

PREFIX = "/api/v1/persistence"
PLURALS: dict[Kind, str] = {"session": "sessions", "task": "tasks"}
#: Names what this client has dropped; the service adds it up.
DROPPED_HEADER = "X-Persist-Dropped"
#: Answers after which the same batch may be sent again: the service, or a proxy before it, is away or busy.
_LATER = frozenset({408, 425, 429, 502, 503, 504})
#: Seconds that an idle connection is kept; the service closes it after 120.
_KEPT = 60.0
#: Seconds that ``Retry-After`` may ask for.
_LONGEST = 300.0
#: Characters that are kept of what an answer says.
_SENTENCE = 1000
#: Rows after which the thread lets others run.
_TURN = 20

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Unavailable(Exception):
    """There was no answer, or one that says to come again later."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        """``after``: seconds that the service asks to wait; 0: it did not."""
        super().__init__(message)
        self.after = after


class Broken(Unavailable):
    """The connection broke before the answer was there."""


@dataclass(frozen=True)
class Answer:
    """What the service said to a batch."""

    status: int
    #: A sentence; empty if the batch was accepted.
    problem: str = ""
    #: The places of the rows that it named.
    wrong: frozenset[int] = field(default_factory=frozenset)
    #: It takes fewer rows in a request.
    too_many: bool = False
    #: The rows are durable. 200 alone may be a proxy's or another program's.
    accepted: bool = False
    set_aside: int = 0


class Address:
    """Where the service is, and how it is spoken to."""

    def __init__(
        self,
        url: str,
        *,
        uds: str | os.PathLike[str] | None,
        ca: str | os.PathLike[str] | ssl.SSLContext | None,
        token: str | None,
        timeout: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.netloc.rpartition("@")[2]
        if scheme not in ("http", "https", "http+unix") or not parts.hostname or parts.query or parts.fragment:
            shown = f"{scheme}://...@{host}" if host != parts.netloc else url
            raise ValueError(f"{shown!r} is no URL such as http://localhost:8001 or http+unix://%2Frun%2Fpersistd.sock")
        if scheme == "http+unix":
            uds, scheme, host = unquote(parts.netloc), "http", "localhost"
        elif parts.port == 0:  # which raises ValueError if it is no port at all
            raise ValueError(f"{host!r}: Port 0 cannot be connected to")
        #: Without name and password: it is in messages.
        self.url = f"{scheme}://{host}{parts.path}".rstrip("/")
        self.timeout = timeout
        self._auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self._uds = None if uds is None else str(uds)
        self._transport = transport
        self._headers = {"User-Agent": "tornado-persist-client"}
        # A file's last line has an end. Anything else that a header cannot hold would fail later, in the thread.
        if token := (token or "").strip():
            if not (token.isascii() and token.isprintable()):
                raise ValueError("token: there is a character in it that no header can hold")
            self._headers["Authorization"] = f"Bearer {token}"
            self._auth = None
        try:
            httpx.URL(self.url)  # the thread would stumble over it
        except httpx.InvalidURL as exc:
            raise ValueError(f"{self.url!r}: {exc}") from None
        # A context with the certificates of the system takes 50 ms to make; without TLS nobody needs it.
        if isinstance(ca, ssl.SSLContext):
            self._tls = ca
        elif scheme == "https":
            self._tls = ssl.create_default_context(cafile=None if ca is None else str(ca))
        else:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def connect(self) -> httpx.Client:
        """A client that keeps one connection. It heeds neither proxies nor passwords of the environment."""
        transport = self._transport or httpx.HTTPTransport(
            verify=self._tls,
            uds=self._uds,
            limits=httpx.Limits(max_keepalive_connections=1, keepalive_expiry=_KEPT),
        )
        return httpx.Client(
            base_url=self.url,
            auth=self._auth,
            headers=self._headers,
            timeout=self.timeout,
            transport=transport,
            trust_env=False,
        )


def encode(rows: Sequence[Row]) -> Iterator[tuple[Row, bytes | str]]:
    """Each row with its JSON, or with what the problem is if it has none."""
    for number, row in enumerate(rows, 1):
        text: bytes | str
        try:
            text = _encode(row).encode()
        except UnicodeEncodeError:
            text = "a text has a character that is none (an unpaired surrogate)"
        except (ValueError, TypeError) as exc:  # an integer of more digits than Python writes
            text = f"{type(exc).__name__}: {exc}"
        yield row, text
        if number % _TURN == 0:
            # The interpreter would hand over only every 5 ms, and an event loop that wakes up meanwhile would wait.
            time.sleep(0)


class Connection:
    """Sends batches, one after the other."""

    def __init__(self, http: httpx.Client, *, gzip_from: int | None) -> None:
        self._http = http
        self._gzip_from = gzip_from
        #: Whether the kept connection was used: the other side may have closed it since.
        self._used = False

    def post(self, kind: Kind, texts: Sequence[bytes], dropped: str) -> Answer:
        """Send a batch of rows, each as JSON. ``dropped``: what the header says; empty: nothing.

        Raises:
            Unavailable: the batch may be sent again later.
        """
        name = PLURALS[kind]
        body = b'{"%b":[%b]}' % (name.encode(), b",".join(texts))
        headers = {"Content-Type": "application/json"}
        if self._gzip_from is not None and len(body) >= self._gzip_from:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        if dropped:
            headers[DROPPED_HEADER] = dropped
        response = self._ask(f"{PREFIX}/{name}/batch", body, headers)
        data = _object(response)
        if response.status_code == 200 and data.get("status") == "accepted":
            return Answer(200, accepted=True, set_aside=_number(data.get("rejected")))
        problem = _sentence(response, data)
        if response.status_code in _LATER:
            raise Unavailable(problem, _seconds(response.headers.get("Retry-After", "")))
        wrong, too_many = _faults(name, len(texts), data)
        return Answer(response.status_code, problem, wrong, too_many)

    def flush(self, timeout: float) -> str:
        """Have the service write all rows to the database; empty if it has, else what the problem is."""
        try:
            response = self._ask(f"{PREFIX}/flush", b"", {}, timeout)
        except Unavailable as exc:
            return str(exc)
        data = _object(response)
        return "" if response.status_code == 200 and data.get("status") == "flushed" else _sentence(response, data)

    def _ask(self, path: str, body: bytes, headers: dict[str, str], timeout: float | None = None) -> httpx.Response:
        while True:
            again, self._used = self._used, False
            try:
                options = {} if timeout is None else {"timeout": timeout}
                response = request(self._http, "POST", path, content=body, headers=headers, **options)
            except Broken:
                # A kept connection that the other side has closed, at a restart perhaps. Sending twice does no harm.
                if again:
                    continue
                raise
            self._used = True
            return response


def request(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """Ask, and wait for the answer.

    Raises:
        Unavailable: there is none.
    """
    try:
        return http.request(method, path, **options)
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as exc:
        raise Broken(f"{http.base_url}: the connection broke ({exc or type(exc).__name__})") from exc
    except httpx.TimeoutException as exc:
        raise Unavailable(f"{http.base_url}: no answer in time ({type(exc).__name__})") from exc
    except httpx.HTTPError as exc:
        raise Unavailable(f"{http.base_url}: {exc or type(exc).__name__}") from exc


def checked(response: httpx.Response) -> tuple[dict[str, Any], str, float]:
    """The object in an answer, what the problem is if it is one, and the seconds that it asks to wait."""
    data = _object(response)
    return data, _sentence(response, data), _seconds(response.headers.get("Retry-After", ""))


def _object(response: httpx.Response) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        data = response.json()
        if isinstance(data, dict):
            return data
    return {}


def _sentence(response: httpx.Response, data: dict[str, Any]) -> str:
    if response.status_code == 200:
        return "200: the answer is not the service's"
    return f"{response.status_code}: {str(data.get('detail') or response.reason_phrase)[:_SENTENCE]}"


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _seconds(text: str) -> float:
    return min(float(text), _LONGEST) if text.isdecimal() and len(text) < 10 else 0.0


def _faults(name: str, count: int, data: dict[str, Any]) -> tuple[frozenset[int], bool]:
    """The places of rows that an answer names: ``{"errors": [{"loc": ["tasks", 3, "status"], ...}]}``.

    And whether it says that the rows are too many: ``"loc": ["tasks"]``.
    """
    found = set()
    too_many = False
    errors = data.get("errors")
    for error in errors if isinstance(errors, list) else ():
        loc = error.get("loc") if isinstance(error, dict) else None
        if not isinstance(loc, list) or loc[:1] != [name]:
            continue
        if len(loc) == 1:
            too_many = True
        elif type(loc[1]) is int and 0 <= loc[1] < count:
            found.add(loc[1])
    return frozenset(found), too_many
