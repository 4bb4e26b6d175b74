"""The settings of the SQL sinks: the URL with its host or hosts, how the tables are kept."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from tornado_persist.sinks.base import Seconds, SinkSettings
from tornado_persist.telemetry.redaction import hide

#: The parts of a URL with several hosts: before the list, the list, after it.
_SEVERAL_HOSTS = re.compile(r"(\w[\w+]*://(?:[^@/?#]*@)?)([^@/?#,]*(?:,[^@/?#,]*)+)([/?].*)?", re.DOTALL)


class SQLSettings(SinkSettings):
    """Settings of every SQL sink."""

    # A refused value must not be quoted: it may be a URL with a password in it.
    model_config = ConfigDict(hide_input_in_errors=True)

    #: Create missing tables.
    create_tables: bool = True
    #: Whether other instances write the same rows, see docs/scaling.rst.
    writers: Literal["one", "several"] = "one"


class URLSettings(SQLSettings):
    """Settings of a sink for a database server."""

    #: The schemes that a URL may have, and the driver for all of them.
    schemes: ClassVar[tuple[str, ...]]
    driver: ClassVar[str]
    needs_database: ClassVar[bool] = False

    url: SecretStr
    #: A file with the URL, instead of ``url``: the one line in it. Read at the start, and again at a reload.
    url_file: str = ""
    #: Seconds for the server's answer to one statement. Then the write fails, and is tried again with fewer rows.
    answer_timeout: Seconds = Field(default=60.0, gt=0, le=86_400)

    @model_validator(mode="before")
    @classmethod
    def _read_url(cls, given: Any) -> Any:
        file = given.get("url_file") if isinstance(given, dict) else None
        if not file or not isinstance(file, str):
            return given
        default = cls.model_fields["url"].default
        url = given.get("url")
        if url and (not isinstance(default, SecretStr) or url != default.get_secret_value()):
            raise ValueError("url and url_file are both given; remove one of them")
        try:
            text = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
            hide([text])
            cls._check_url(SecretStr(text))
        except OSError as exc:
            raise ValueError(f"url_file: {file} cannot be read: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"url_file: {file} is no text") from None
        except ValueError as exc:
            raise ValueError(f"url_file: {file}: {exc}") from None
        return {**given, "url": text}

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        url = cls._check_parts(parse_url(value.get_secret_value(), cls.schemes).set(drivername=cls.driver))
        if cls.needs_database and not url.database:
            raise ValueError("the URL names no database")
        try:
            cls._check_options(url.get_dialect()().create_connect_args(url)[1])
        except Exception:  # each driver has its own, whose text may quote the password
            raise ValueError("the URL's query has a parameter that the driver does not know") from None
        return value

    @classmethod
    def _check_parts(cls, url: URL) -> URL:
        """The URL in the driver's form. Raises ValueError for a mistake; the message quotes nothing."""
        return url

    @classmethod
    @abstractmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise any exception if the driver would not take ``options``."""

    @property
    def parsed(self) -> URL:
        """The URL's parts."""
        return self._check_parts(parse_url(self.url.get_secret_value(), self.schemes).set(drivername=self.driver))

    @property
    def address(self) -> str:
        """Host or socket, port and database of the URL."""
        url = self.parsed
        hosts = str(url.host or url.query.get("host") or url.query.get("unix_socket") or "localhost").split(",")
        ports = str(url.port or url.query.get("port") or "").split(",")
        shown = [
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
            for host, port in zip_longest(hosts, ports, fillvalue="")
        ]
        return f"{','.join(shown)}/{url.database or ''}"


SQLSettingsT = TypeVar("SQLSettingsT", bound=SQLSettings)


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
