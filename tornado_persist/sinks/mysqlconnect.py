"""How a connection to MySQL or MariaDB is made: to the first host that can be written to, with settings of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pymysql

from tornado_persist.sinks.bulk import BulkConnection
from tornado_persist.sinks.sql import LOCK_TIMEOUT

#: The numbers from here on are the client's own: connecting, and losing the connection.
CLIENT = 2000

#: Settings that may differ on the server. The SQL mode is given in full, so no mode that changes how texts are read is
#: on; "strict" makes the server refuse a value that it would otherwise cut or replace.
_SESSION = {
    "sql_mode": "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
    "time_zone": "'+00:00'",
    "innodb_lock_wait_timeout": str(LOCK_TIMEOUT),
    "lock_wait_timeout": str(LOCK_TIMEOUT),
    # Flushes may be hours apart; this is the largest value that every platform accepts.
    "wait_timeout": "2147483",
    # Otherwise the server refuses the ping, which updates without naming a key.
    "sql_safe_updates": "0",
    # Otherwise a commit may end the connection.
    "completion_type": "0",
}

#: Those without which rows would be stored wrongly. The others only help, and a proxy may refuse some of them.
_NEEDED = ("sql_mode", "time_zone")
#: Only MariaDB executes this comment. It turns off the user's time limit for statements; answer_timeout replaces it.
_MARIADB = " /*M! , SESSION max_statement_time = 0 */"

#: Whether a server can be written to: a replica cannot, nor can a node that has left its Galera cluster.
_READ_ONLY = "SHOW GLOBAL VARIABLES WHERE variable_name IN ('read_only', 'wsrep_on') AND value NOT IN ('OFF', '0')"
_REPLICATING = "SHOW SESSION VARIABLES WHERE variable_name IN ('wsrep_on', 'wsrep_provider')"
_GALERA = "SHOW GLOBAL STATUS WHERE variable_name IN ('wsrep_ready', 'wsrep_local_state')"
#: The wsrep_local_state of a node that has nothing else to do.
_SYNCED = "4"


def connect(
    places: Sequence[Mapping[str, Any]], dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]
) -> BulkConnection:
    """Connect to the first of ``places`` that can be written to; to the only one in any case.

    A Galera node that gives its data to a new one may hold up writes for as long: it is taken if no other can be.
    """
    problems: list[tuple[Exception, str]] = []
    donor: BulkConnection | None = None
    for place in places:
        try:
            connection = BulkConnection(*arguments, **{**options, **place})
            try:
                connection.refused_settings = _set_session(connection)
                _check_replicating(connection)
                good = len(places) == 1 or _check_writable(connection)
            except BaseException:
                connection.close()
                raise
        except pymysql.err.MySQLError as exc:
            if len(places) == 1:
                raise
            problems.append((exc, f"{place['host']}:{place['port']}: {exc.args[-1]}"))
        else:
            if good and donor:
                donor.close()
            if good:
                return connection
            if donor:
                connection.close()
            else:
                donor = connection
    if donor:
        return donor
    number = number_of(problems[-1][0])
    raise pymysql.err.OperationalError(number, "; ".join(text for _, text in problems)) from problems[-1][0]


def _set_session(connection: BulkConnection) -> list[str]:
    """Set what may differ on the server; the names of those settings that it refuses."""
    settings = [f"SESSION {name} = {value}" for name, value in _SESSION.items()]
    refused = []
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"SET {', '.join(settings)}{_MARIADB}")
        except pymysql.err.MySQLError as exc:
            if not 0 < number_of(exc) < CLIENT:
                raise
            for name, setting in zip(_SESSION, settings, strict=True):
                try:
                    cursor.execute(f"SET {setting}")
                except pymysql.err.MySQLError:
                    if name in _NEEDED or not connection.open:
                        raise
                    refused.append(name)
    return refused


def _check_replicating(connection: BulkConnection) -> None:
    """Raises OperationalError if a Galera node would commit what the other nodes never see."""
    with connection.cursor() as cursor:
        cursor.execute(_REPLICATING)
        found = {name.lower(): value for name, value in cursor.fetchall()}
        if found.get("wsrep_on") == "OFF" and found["wsrep_provider"] not in ("", "none"):
            raise pymysql.err.OperationalError(
                1047, "wsrep_on is OFF: what this Galera node commits is on no other; SET GLOBAL wsrep_on = ON"
            )


def _check_writable(connection: BulkConnection) -> bool:
    """Whether it is free for writes. Raises OperationalError if it takes none."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_ONLY)
        found = {name for name, _ in cursor.fetchall()}
        if "read_only" in found:
            raise pymysql.err.OperationalError(1290, "it is read-only")
        if "wsrep_on" not in found:
            return True
        cursor.execute(_GALERA)
        status = {name.lower(): value for name, value in cursor.fetchall()}
        if status["wsrep_ready"] != "ON":
            raise pymysql.err.OperationalError(1047, "it is not ready in its Galera cluster")
        return bool(status["wsrep_local_state"] == _SYNCED)


def number_of(error: Exception) -> int:
    """The error's number. What PyMySQL says of itself has none, or 0."""
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0
