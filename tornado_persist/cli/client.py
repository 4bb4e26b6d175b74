"""What the commands ask of a running service, over HTTP."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any, Self
from urllib.parse import urlsplit

from tornado_persist.errors import FieldError, NoAnswer, RequestRefused
from tornado_persist.records.models import PLURALS, Kind

#: Seconds that one answer may take.
TIMEOUT = 30.0
_PREFIX = "/api/v1/persistence"


class Client:
    """One kept connection to the service; it is made anew when it broke."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        """``url``: ``http`` or ``https``, host, port, and the path before ``/api`` if a proxy adds one.

        Raises:
            ValueError: it is no such URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no URL such as http://localhost:8001")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a URL with a user name or a password in it is not supported")
        self.url = url.rstrip("/")
        self._prefix = parts.path.rstrip("/") + _PREFIX
        made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = made(parts.hostname, parts.port, timeout=timeout)
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._connection.close()

    def stats(self) -> dict[str, Any]:
        """``GET /stats``. Raises as :meth:`_ask` does."""
        return self._ask("GET", "/stats")

    def flush(self) -> dict[str, Any]:
        """``POST /flush``; also where the flush failed the answer's fields, ``status`` being ``error``.

        Raises:
            NoAnswer, RequestRefused: see :meth:`_ask`.
        """
        return self._ask("POST", "/flush", b"", good=("flushed", "error"))

    def send(self, kind: Kind, body: bytes) -> dict[str, Any]:
        """POST a batch; its body as the API wants it. Raises as :meth:`_ask` does."""
        return self._ask("POST", f"/{PLURALS[kind]}/batch", body, good=("accepted",))

    def _ask(self, method: str, path: str, body: bytes | None = None, good: tuple[str, ...] = ()) -> dict[str, Any]:
        """The JSON of an answer.

        Raises:
            NoAnswer: there was none, or none of persistd; whether the request was taken is not known.
            RequestRefused: it was not 200, and its ``status`` is not in ``good`` either.
        """
        headers = {"Content-Type": "application/json"} if body else {}
        fresh = self._connection.sock is None
        while True:
            try:
                self._connection.request(method, self._prefix + path, body, headers)
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
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise NoAnswer(f"{self.url} answers {response.status} {response.reason}, but not as persistd does")
        if response.status == 200 or found.get("status") in good:
            return found
        errors: list[FieldError] = found.get("errors", [])
        after = response.headers.get("Retry-After", "")
        raise RequestRefused(
            str(found.get("detail", response.reason)),
            status=response.status,
            errors=errors,
            retry_after=float(after) if after.isdecimal() else None,
        )

    def _reason(self, exc: Exception) -> str:
        match exc:
            case TimeoutError():
                return f"it took more than {self._timeout:g} seconds"
            case http.client.HTTPException() | ConnectionResetError() | BrokenPipeError():
                return "the connection broke"
            case ssl.SSLError():
                return str(exc)
            case OSError():
                return exc.strerror or str(exc)
        return str(exc)
