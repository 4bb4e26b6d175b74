"""What stands between a client and its servers: PgBouncer, and HAProxy with the examples of ``conf/``."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tests.process import wait_until
from tests.servers import PASSWORD, USER, Postgres, connectable, free_port
from tests.tools import require

CONF = Path(__file__).parent.parent / "conf"


class PgBouncer:
    """A pooler before a PostgreSQL. In transaction mode it has one connection to it, which all clients share."""

    def __init__(self, server: Postgres, *, mode: str = "transaction", behind: int = 0) -> None:
        """``behind``: the port of what stands between it and the server."""
        self.server = server
        self.port = free_port()
        self._mode = mode
        self._behind = behind or server.port

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="tp-bo-"))
        options = self.server.options()
        if "user" in options:
            os.chown(self._directory, options["user"], options["group"])
        (self._directory / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
        configuration = self._directory / "pgbouncer.ini"
        configuration.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={self._behind}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = plain\n"
            f"auth_file = {self._directory}/users\n"
            f"pool_mode = {self._mode}\n"
            f"default_pool_size = {1 if self._mode == 'transaction' else 10}\n"
            # The default is 15: so long it would not look for the new primary.
            "server_login_retry = 1\n"
        )
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen([require("pgbouncer"), configuration], stdout=log, stderr=log, **options)
        wait_until(lambda: connectable(self.port), "PgBouncer")
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, database: str) -> str:
        """The URL of a database of the server, through the pooler."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def haproxy(directory: Path, example: str, changes: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """HAProxy with an ``example`` of ``conf/``, in which each key of ``changes`` is replaced; its process.

    The changed file is in ``directory``, with the name of the example.
    """
    text = (CONF / example).read_text()
    for before, after in changes.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    file = directory / example
    file.write_text(text)
    process = subprocess.Popen([require("haproxy"), "-db", "-q", "-f", str(file)])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)
