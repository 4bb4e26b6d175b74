"""The tables of the configuration: keys, defaults and what they mean."""

from __future__ import annotations

import re
from datetime import UTC, tzinfo
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from tornado_persist.records.models import KEY_PATTERN, MAX_STATUS, STATUSES
from tornado_persist.sinks.base import Bytes, Seconds


def find_zone(name: str) -> tzinfo:
    """A time zone by its IANA name. UTC needs no database, which small systems lack.

    Raises:
        KeyError, ValueError, OSError: there is none.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


_HOST_NAME = re.compile(r"[^\s/:@\[\]]+")
_FOUR_NUMBERS = re.compile(r"\d+(\.\d+){3}")
_ORIGIN = re.compile(r"https?://[^\s/?#@,]+")


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Table):
    """The HTTP server."""

    host: str = Field(
        "localhost",
        description="name or address to listen on; ``localhost`` is 127.0.0.1 and ::1, another name all of its"
        " addresses, empty or ``::`` every address. Without ``[auth]`` everybody who reaches it can write and read",
    )
    port: int = Field(8001, ge=0, le=65535, description="TCP port; 0: any free one, named in the log")
    unix_socket: str = Field(
        "", description="path of a Unix socket to listen on, too; below ``data_dir`` unless absolute; empty: none"
    )
    unix_socket_mode: str = Field(
        "0660", pattern=r"^0?[0-7]{3}$", description="its permissions in octal: who can write to it can connect"
    )
    tcp: bool = Field(True, description="``false``: listen on ``unix_socket`` alone, not on ``host`` and ``port``")
    max_batch: int = Field(1000, ge=1, description="rows in a request at most")
    max_body_bytes: Bytes = Field(
        10_485_760, ge=1024, description="bytes of a request body at most, also once decompressed"
    )
    max_inflight_bytes: Bytes = Field(
        134_217_728,
        ge=1024,
        description="bytes of all request bodies at one time, and of all long answers not taken; past it 503",
    )
    max_connections: int = Field(
        1000,
        ge=1,
        description="open connections; for further ones idle ones are closed. Bound by the limit of open files too",
    )
    header_timeout: Seconds = Field(10.0, gt=0, le=3600, description="seconds that a request's head may take to arrive")
    body_timeout: Seconds = Field(
        60.0,
        gt=0,
        le=3600,
        description="seconds that a request's body may take to arrive, and that a client may take none of its answer",
    )
    idle_timeout: Seconds = Field(
        120.0, gt=0, le=86_400, description="seconds after which a connection without a request is closed"
    )
    shutdown_timeout: Seconds = Field(10.0, gt=0, le=3600, description="seconds that a stop may take to flush")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="host names that a request may be for, besides localhost and addresses, which always may; ``*``"
        " is any. Empty: on a loopback address no other, so that DNS rebinding fails; on other addresses any",
    )
    trusted_origins: tuple[str, ...] = Field(
        (), description="origins of web pages that may send batches, such as ``https://app.example.com``"
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="addresses or networks of proxies, ``unix`` for the Unix socket: in log and figures the client of"
        " their requests is the one that ``X-Forwarded-For`` names",
    )

    @field_validator("host")
    @classmethod
    def _host(cls, host: str) -> str:
        # Whether a name is known shows at the start: a resolver may be away.
        try:
            ip_address(host or "::")
        except ValueError:
            if not _HOST_NAME.fullmatch(host) or _FOUR_NUMBERS.fullmatch(host):
                raise ValueError(f"{host!r} is no address and no host name (the port is server.port)") from None
        return host

    @model_validator(mode="after")
    def _listens(self) -> Self:
        if not self.tcp and not self.unix_socket:
            raise ValueError("tcp = false needs a unix_socket to listen on")
        return self

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if host != "*" and not _HOST_NAME.fullmatch(host):
                raise ValueError(f"{host!r} is no host name (without a port), and not *")
        return tuple(host.lower() for host in hosts)

    @field_validator("trusted_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin such as https://app.example.com, with its port if need be")
        return tuple(origin.lower() for origin in origins)

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                if proxy != "unix":
                    ip_network(proxy)
            except ValueError:
                raise ValueError(f"{proxy!r} is no address, no network such as 10.1.0.0/16, and not unix") from None
        return proxies


class Auth(Table):
    """Who may do what. Without tokens everybody may do everything."""

    tokens: tuple[str, ...] = Field(
        (),
        description="who may come in, ``NAME:SCOPE,SCOPE:SHA256-IN-HEX`` each, as ``persistd token new`` prints it;"
        " scopes: write, flush, read, admin",
    )
    tokens_file: str = Field(
        "", description="a file with one such line for each token, ``#`` begins a comment; below ``data_dir``"
    )
    anonymous: Literal["auto", "never"] = Field(
        "auto", description="``auto``: without a token everything is open; ``never``: without one it does not start"
    )


class TLS(Table):
    """Encryption of the TCP port. The Unix socket has none: its permissions say who can connect."""

    cert: str = Field(
        "", description="PEM file with the certificate and its chain; empty: no TLS. Below ``data_dir`` unless absolute"
    )
    key: str = Field("", description="PEM file with its private key, not encrypted; empty: it is in ``cert``")
    client_ca: str = Field(
        "", description="PEM file with CAs; only clients with a certificate of one of them can connect (mTLS)"
    )
    min_version: Literal["1.2", "1.3"] = Field("1.2", description="the lowest version of TLS that clients may use")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.cert and (self.key or self.client_ca):
            raise ValueError(f"{'key' if self.key else 'client_ca'} needs cert")
        return self


class Buffer(Table):
    """When rows are flushed."""

    capacity: int = Field(1000, ge=1, description="rows; reaching it starts a flush")
    flush_interval: Seconds = Field(30.0, ge=0.05, le=86_400, description="seconds from one flush to the next")
    max_rows: int = Field(
        100_000, ge=1, description="rows held in memory at most; past it batches wait in the journal alone"
    )
    max_bytes: Bytes = Field(
        268_435_456,
        ge=1,
        description="bytes of the journal records whose rows are in memory at most; past it as with ``max_rows``",
    )
    flush_timeout: Seconds = Field(8.0, gt=0, le=3600, description="seconds that POST /flush waits at most")


class Journal(Table):
    """Where accepted batches are kept until the sink has them."""

    sync: Literal["always", "interval", "off"] = Field(
        "always",
        description="``always`` syncs before the answer, ``interval`` every 500 ms, ``off`` when the system likes",
    )
    segment_bytes: Bytes = Field(67_108_864, ge=4096, description="bytes after which a new segment file begins")
    max_bytes: Bytes = Field(8_589_934_592, ge=4096, description="bytes of the whole journal; past it batches get 503")


class Records(Table):
    """What a batch may contain."""

    unknown_fields: Literal["ignore", "reject", "keep"] = Field(
        "ignore",
        description="fields that are not in the specification: drop them, refuse the batch, or keep them in ``extra``",
    )
    statuses: tuple[Annotated[str, StringConstraints(max_length=MAX_STATUS, pattern=KEY_PATTERN)], ...] = Field(
        STATUSES,
        min_length=1,
        description="what ``status`` may be: texts of 1 to 20 characters; these four are the specification's",
    )
    invalid_rows: Literal["refuse", "set_aside"] = Field(
        "refuse",
        description="what an invalid row does: refuse its batch, or be set aside in ``rejected.jsonl`` alone",
    )
    timezone: str = Field(
        "UTC", min_length=1, description="the time zone of times without an offset, by its IANA name: ``Asia/Shanghai``"
    )
    require_session: bool = Field(
        False, description="refuse tasks whose session was neither accepted before nor is in the sink"
    )

    @field_validator("statuses")
    @classmethod
    def _each_once(cls, statuses: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({status for status in statuses if statuses.count(status) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there twice")
        return statuses

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            find_zone(name)
        except (OSError, ValueError, KeyError):  # a directory, a path out of the database, no such file
            near = get_close_matches(name, available_timezones(), 1)
            hint = f"did you mean {near[0]}?" if near else "names are as in Europe/Berlin"
            raise ValueError(f"no time zone is called {name!r} here ({hint})") from None
        return name

    @property
    def zone(self) -> tzinfo:
        """The time zone of times without an offset."""
        return find_zone(self.timezone)


def _check_age(seconds: float) -> float:
    if seconds and not 3600 <= seconds <= 36_500 * 86_400:
        raise ValueError('should be 0 (never), or between "1h" and "36500d"')
    return seconds


#: Seconds after which rows are deleted; 0: never.
Age: TypeAlias = Annotated[Seconds, AfterValidator(_check_age)]


class Retention(Table):
    """What is deleted by its age."""

    completed: Age = Field(
        0.0,
        description="seconds without an update after which completed sessions are deleted with their tasks, such as"
        ' ``"90d"``; 0: never',
    )
    failed: Age = Field(0.0, description="the same for failed sessions")
    orphans: Age = Field(0.0, description="the same for tasks whose session does not exist")
    every: Seconds = Field(3600.0, ge=60, le=86_400, description="seconds from one run to the next")

    @property
    def on(self) -> bool:
        """Whether anything is deleted by its age."""
        return bool(self.completed or self.failed or self.orphans)


class Log(Table):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest level that is logged; ``debug`` has a line for each request"
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="``console`` is for people, ``json`` for machines; ``auto``: console on a terminal, else JSON",
    )
    file: str = Field("", description="a path below ``data_dir``; empty: standard error; ``-``: standard output")
    max_bytes: Bytes = Field(
        104_857_600, ge=0, description="bytes of the file at which it is rotated; 0: never, for logrotate"
    )
    backups: int = Field(5, ge=1, le=1000, description="rotated files that are kept, ``.1`` the newest")
