"""``persistd check``: looks at the configuration, the disk, the port and the sink, and suggests fixes."""

from __future__ import annotations

import argparse
import errno
import fnmatch
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from tornado_persist import listening
from tornado_persist.cli.client import Client, noted
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration
from tornado_persist.cli.output import printable, size
from tornado_persist.cli.status import PATIENCE
from tornado_persist.config.loading import Settings
from tornado_persist.errors import ConfigError, PersistError, SinkError, SinkUnavailable
from tornado_persist.files import DataDir, reason
from tornado_persist.journal import HEADER_SIZE
from tornado_persist.service import make_sink, make_tls, warn_of_anybody
from tornado_persist.sinks.base import Sink
from tornado_persist.telemetry.redaction import mask

#: What to do about a sink's failure, by its name, and by the driver's code and message; the first that fits.
_HINTS: tuple[tuple[str, str, str], ...] = (
    # Before the network's time limits.
    (
        "",
        r"lock timeout|Lock wait timeout|^(55P03|1205)$",
        "end the program that holds a lock on the tables; pg_stat_activity or SHOW PROCESSLIST shows it",
    ),
    ("", r"statement timeout|^57014$", "see what makes the database slow, or raise answer_timeout of the sink"),
    # The network, in the words of the system, of libpq and of PyMySQL.
    ("", r"not known|not translate|resolve|getaddrinfo", "correct the host name in the URL, or see to its DNS entry"),
    ("", r"refused", "start the server, or correct host and port in the URL; it may listen on another address"),
    ("", r"timed? ?out|unreachable|no route", "see to the route and the firewall between here and there"),
    ("postgres", r"pg_hba", "let this host and user in: a line in the server's pg_hba.conf, then a reload of it"),
    ("postgres", r"password|^28", "correct user and password in the URL (special characters are percent-encoded)"),
    ("postgres", r"database .* does not exist|^3D000", "make it: CREATE DATABASE name"),
    ("postgres", r"role .* does not exist", "make it: CREATE ROLE user LOGIN PASSWORD '...'"),
    ("postgres", r"encoding", "make a database WITH ENCODING 'UTF8' TEMPLATE template0"),
    (
        "postgres",
        r"^42501|permission",
        "grant the user CREATE on the schema, or make the tables and grant SELECT, INSERT, UPDATE: docs/sinks.rst",
    ),
    ("postgres", r"read-only|^25006", "name the primary in the URL, not a replica"),
    ("mysql", r"^1045\b|Access denied for user .*password", "correct user and password in the URL"),
    ("mysql", r"^1049\b|Unknown database", "make it: CREATE DATABASE name"),
    (
        "mysql",
        r"^(1044|1142|1227)\b|denied",
        "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON database.* TO user; docs/sinks.rst says what each is for",
    ),
    ("mysql", r"read.only|^1290\b", "name the primary in the URL, not a replica"),
    ("sqlite", r"NOTADB|not a database", "move the file away, or name another one in sinks.sqlite.path"),
    ("sqlite", r"locked", "end the other program that has the database open for writing"),
    # Tables and files.
    ("", r"more columns or tables, and create_tables is off", "run these statements as the tables' owner"),
    ("", r"create_tables is off", "make the tables (conf/postgres.sql, conf/mysql.sql), or set create_tables = true"),
    ("mysql", r"has the collation", "convert the column; docs/sinks.rst has the statements, foreign keys included"),
    ("", r"no such column|column .* does not exist|^(42703|1054)\b", "the table is another program's or version's"),
    (
        "",
        r"EACCES|EPERM|EROFS|READONLY|CANTOPEN|[Pp]ermission|unable to open",
        "see to the rights on the file's directory",
    ),
    ("", r"ENOSPC|FULL|No space|disk is full", "make room on the disk"),
)
#: The names of the service's own files in ``data_dir``; others, such as ``lost+found``, do not matter.
_OURS = (
    *("damaged", "instance", "journal", "jsonl", "lock", "persist.db*", "persistd.*", "rejected.*", "retention.json*"),
    "service.json*",
)
#: The part of ``journal.max_bytes`` from which on it is nearly full, as the alert has it.
_NEARLY = 0.8
#: A certificate that is valid for less than this should have been renewed by now.
_RENEW = timedelta(days=7)
_NO_RIGHT = SinkUnavailable(code="EACCES")
_NO_HINT = "rows wait in the journal until this is over; the message is the sink's own"

_ADDRESS = {
    errno.EADDRINUSE: "end what listens there (ss -ltnp shows it), or choose another server.port",
    errno.EACCES: "ports below 1024 need a right of their own: choose another server.port",
}


def add(commands: Commands) -> None:
    words = "look at the configuration, the disk, the port and the sink, and say what was found"
    check = commands.add("check", _check, words)
    check.add_argument("--json", action="store_true", help="the findings as JSON, on one line")


def _check(configuration: Configuration, options: argparse.Namespace) -> int:
    findings = []
    for finding in look(configuration.settings, configuration.file):
        findings.append({key: mask(value) for key, value in asdict(finding).items()})
        if not options.json:
            print(mask(str(finding)), flush=True)
    failed = any(finding["level"] == "error" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not failed, "findings": findings}, ensure_ascii=False))
    return FAILED if failed else OK


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. An ``error`` stops the service from working; a ``warning`` should be considered."""

    subject: str
    text: str
    level: Literal["ok", "warning", "error"] = "ok"
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.subject:<15}{self.text}"
        return f"{line}\n{self.level:>14} -> {self.advice}" if self.advice else line


def look(settings: Settings, file: Path | None) -> Iterator[Finding]:
    """Yield each finding when it is made; the sink, which may take some seconds, is last. Creates nothing.

    Raises:
        ConfigError: ``data_dir`` cannot be used at all, or the sink cannot do what is asked of it.
    """
    yield Finding("configuration", f"{file or 'none, defaults'}: valid")
    data_dir = DataDir(settings.data_dir)
    exists = data_dir.exists()
    running = data_dir.locked()
    if exists:
        yield from _data_dir(data_dir, running)
    else:
        yield Finding("data_dir", f"{data_dir.path}: not there, a start creates it")
    if running:
        yield _service(data_dir)
    yield from _journal(settings)
    yield from _disk(settings)
    yield from _address(settings, running)
    yield from _access(settings)
    yield from _log(settings)
    yield from _sink(settings)


def _data_dir(data_dir: DataDir, running: bool) -> Iterator[Finding]:
    path = data_dir.path
    pid = data_dir.holder() if running else None
    state = (
        f"in use, pid {pid}" if pid else "in use, by a process that is not seen from here" if running else "writable"
    )
    yield Finding("data_dir", f"{path}: {state}")
    status = path.stat()
    if status.st_mode & 0o002:
        yield Finding("data_dir", f"{path} can be written by everybody", "warning", f"chmod o-w {path}")
    elif status.st_mode & 0o005:
        yield Finding("data_dir", f"{path} can be read by everybody", "warning", f"chmod o-rx {path}")
    if status.st_uid != os.geteuid():
        yield Finding(
            "data_dir",
            f"{path} belongs to another user (uid {status.st_uid}) than the one that asks (uid {os.geteuid()})",
            "warning",
            "run the commands as the service's user (sudo -u), or files appear that it cannot write",
        )
    for inner in sorted(path.iterdir()):
        ours = any(fnmatch.fnmatchcase(inner.name, pattern) for pattern in _OURS)
        if ours and not os.access(inner, os.R_OK | os.W_OK):
            yield Finding("data_dir", f"{inner} cannot be written", "error", "give it to the service's user: chown -R")


def _service(data_dir: DataDir) -> Finding:
    """The report of the running service."""
    try:
        with Client(noted(data_dir) or "", PATIENCE) as client:
            health = client.health()
    except ValueError:
        return Finding(
            "service", "it has not said yet where it answers", "warning", "wait until it has read its journal"
        )
    except PersistError as exc:
        return Finding("service", str(exc), "error", "look at the end of its log, and start it again if it hangs")
    url = data_dir.noted().get("url")
    if health["status"] == "healthy":
        return Finding("service", f"{url}: it is well")
    return Finding(
        "service", f"{url}: it is not well", "warning", printable(health.get("reason", "its log has the reason"))
    )


def _journal(settings: Settings) -> Iterator[Finding]:
    journal, largest = settings.journal, settings.server.max_body_bytes + HEADER_SIZE
    match journal.sync:
        case "always":
            yield Finding("journal", "sync always: what is accepted survives a power cut")
        case "interval":
            yield Finding(
                "journal",
                "sync interval: a power cut loses up to 500 ms of what was accepted",
                "warning",
                'set journal.sync = "always", unless the senders can spare that',
            )
        case "off":
            yield Finding(
                "journal",
                "sync off: a power cut loses what the system has not written by itself, some 30 seconds",
                "warning",
                'set journal.sync = "always", unless the senders can spare that',
            )
    if journal.max_bytes < largest:
        yield Finding(
            "journal",
            f"journal.max_bytes = {journal.max_bytes} is less than one request may need ({largest} bytes)",
            "error",
            f"raise journal.max_bytes to at least {largest}, or lower server.max_body_bytes",
        )
    used = _used(settings)
    if used >= journal.max_bytes * _NEARLY:
        yield Finding(
            "journal",
            f"it has {size(used)} of journal.max_bytes = {size(journal.max_bytes)}; when it is full, batches get 503",
            "warning",
            "see whether the sink takes rows (persistd flush), or raise journal.max_bytes",
        )


def _used(settings: Settings) -> int:
    """Bytes of the journal's files."""
    journal = settings.path("journal")
    return sum(path.stat().st_size for path in journal.iterdir() if path.is_file()) if journal.is_dir() else 0


def _disk(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(_nearest(settings.data_dir)).free
    room = max(0, settings.journal.max_bytes - _used(settings))
    text = f"{size(free)} free, the journal may grow by {size(room)}"
    if free >= room:
        yield Finding("disk", text)
    else:
        yield Finding(
            "disk",
            f"{text}: in a long outage the disk is full before the journal is",
            "warning",
            "nothing accepted is lost by that, but other programs suffer: make room, or lower journal.max_bytes",
        )


def _address(settings: Settings, running: bool) -> Iterator[Finding]:
    sockets = []
    try:
        if settings.unix_socket:
            listening.look_at_unix(settings.unix_socket)
        if settings.server.tcp:
            sockets = listening.listen(settings.server.host, settings.server.port)
    except OSError as exc:
        yield _not_free(settings, exc, running)
        return
    addresses = [made.getsockname()[:2] for made in sockets]
    for made in sockets:
        made.close()
    shown = [listening.shown(address, settings.server.port) for address, _ in addresses]
    shown += [str(settings.unix_socket)] if settings.unix_socket else []
    yield Finding("address", f"{', '.join(shown)}: free")


def _not_free(settings: Settings, exc: OSError, running: bool) -> Finding:
    shown = exc.filename or listening.shown(settings.server.host, settings.server.port)
    if running and exc.errno == errno.EADDRINUSE:
        return Finding("address", f"{shown}: taken, by the service that has data_dir, it seems")
    advice = _ADDRESS.get(exc.errno or 0, "server.host must be an address of this machine")
    if isinstance(exc, socket.gaierror):
        advice = "correct server.host: it is no address and no known name"
    elif settings.unix_socket and shown == str(settings.unix_socket):
        advice = "correct server.unix_socket, or see to its directory and who can write there"
    return Finding("address", f"{shown} cannot be listened on: {reason(exc)}", "error", advice)


def _access(settings: Settings) -> Iterator[Finding]:
    """Who can connect, and how long the certificate is valid."""
    if warning := warn_of_anybody(settings, settings.server.port):
        advice = "set tokens or tls.client_ca, or keep it behind a firewall or a proxy; docs/security.rst"
        yield Finding("access", warning, "warning", advice)
    try:
        tls = make_tls(settings)
    except ConfigError as exc:
        yield Finding("tls", str(exc), "error", "correct the file; it must be readable by the service's user")
        return
    if tls is None:
        return
    from cryptography import x509

    found = x509.load_pem_x509_certificate(tls.certificate.encode())
    left = found.not_valid_after_utc - datetime.now(UTC)
    text = f"{settings.path(settings.tls.cert)}: valid until {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if left < timedelta(0):
        yield Finding("tls", text, "error", "it has expired, and clients refuse it: renew it, then persistd reload")
    elif left < _RENEW:
        yield Finding("tls", text, "warning", f"renew it within {left.days} days, then persistd reload")
    else:
        yield Finding("tls", text)


def _log(settings: Settings) -> Iterator[Finding]:
    if settings.log.file in ("", "-"):
        return
    path = settings.path(settings.log.file)
    target = path if path.exists() else path.parent
    if os.access(target, os.W_OK) or (target == settings.data_dir and not target.exists()):
        yield Finding("log", f"{path}: writable")
    else:
        yield Finding(
            "log", f"{path} cannot be written", "error", "make its directory, and give it to the service's user"
        )


def _sink(settings: Settings) -> Iterator[Finding]:
    sink = make_sink(settings)
    try:
        if missing := sink.missing():
            yield from _to_be_created(sink, missing)
            return
        sink.open()
        sink.ping()
        yield Finding("sink", f"{settings.sink}: {sink.describe()}")
        if hasattr(sink.settings, "create_tables"):  # a plugin may have none
            yield Finding("tables", "there, and writable")
        yield from _clock(sink)
        for caution in sink.cautions():
            yield Finding("sink", caution.problem, "warning", caution.advice)
        if settings.retention.on:
            yield from _deletes(sink)
    except SinkError as exc:
        yield Finding("sink", f"{settings.sink}: unavailable: {exc}", "error", hint(settings.sink, exc))
    finally:
        sink.close()


def _deletes(sink: Sink[Any]) -> Iterator[Finding]:
    """Whether it can delete, which no ping asks. The session does not exist."""
    try:
        sink.delete_sessions([f"persistd-check-{uuid4().hex}"], 1)
    except SinkError as exc:
        advice = "grant the user DELETE on both tables, or turn [retention] off"
        yield Finding("sink", f"[retention] is on, and rows cannot be deleted: {exc}", "warning", advice)


def _clock(sink: Sink[Any]) -> Iterator[Finding]:
    with suppress(SinkError):
        if skew := sink.clock_skew():
            if skew.problem:
                yield Finding("clock", skew.problem, "warning", "keep both machines' clocks right with NTP or chrony")
            else:
                yield Finding("clock", f"within {abs(skew.seconds) + skew.error:.3f} s of the database's")


def _to_be_created(sink: Sink[Any], missing: list[str]) -> Iterator[Finding]:
    if sink.describe() != sink.name:
        yield Finding("sink", f"{sink.name}: {sink.describe()}")
    for path in map(Path, missing):
        place = _nearest(path)
        if path.is_absolute() and not (place.is_dir() and os.access(place, os.W_OK)):
            yield Finding("sink", f"{sink.name}: {path} cannot be created in {place}", "error", hint("", _NO_RIGHT))
            return
    yield Finding("sink", f"{sink.name}: a start creates {', '.join(missing)}")


def _nearest(path: Path) -> Path:
    """The path, or the first of its parents that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def hint(sink: str, error: SinkError) -> str:
    """What to do about a sink's failure."""
    said = f"{error.code} {error}"
    return next((advice for name, words, advice in _HINTS if name in ("", sink) and re.search(words, said)), _NO_HINT)
