"""The applications of docs/examples, and gunicorn's processes, with a real server, broker and worker."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.process import PATIENCE, Persistd, environment, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"


def start(directory: Path, log: Path, *command: str, **variables: str) -> subprocess.Popen[bytes]:
    paths = f"{ROOT}:{ROOT / 'clients' / 'python' / 'src'}:{directory}"
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=log.parent,
            # Warnings of their libraries are not ours.
            env={**environment(PYTHONPATH=paths, **variables), "PYTHONWARNINGS": "ignore"},
            stdout=file,
            stderr=file,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Tell it to end, which it has to do in time."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextlib.contextmanager
def served(directory: Path, log: Path, *command: str, **variables: str) -> Iterator[str]:
    """The URL of a web application while it runs; ``{port}`` in the command is where. It may not leave a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = start(directory, log, *(word.format(port=port) for word in command), **variables)

    def serves() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE).status_code < 500
        return False

    try:
        wait_until(serves, str(log))
        yield f"http://127.0.0.1:{port}"
    finally:
        end(app)
    assert "Traceback" not in log.read_text()


def test_fastapi(tmp_path: Path) -> None:
    app = (EXAMPLES / "fastapi_app", tmp_path / "app.log", "uvicorn", "app:app", "--port", "{port}")
    with Persistd(tmp_path) as service:
        with served(*app, PERSIST_URL=service.url) as url:
            for number in range(20):
                answer = httpx.post(f"{url}/translate/s1/{number}", params={"text": "hello"}, timeout=PATIENCE)
                assert answer.json() == {"text": "HELLO"}
        assert service.stats()["accounting"]["accepted"] == 20


def test_django_in_gunicorn_with_preload(tmp_path: Path) -> None:
    options = ("--preload", "--workers", "2", "--bind", "127.0.0.1:{port}")
    with Persistd(tmp_path) as service:
        app = (EXAMPLES / "django_app", tmp_path / "app.log", "gunicorn", *options, "wsgi")
        with served(*app, PERSIST_URL=service.url) as url:
            for number in range(20):
                answer = httpx.post(f"{url}/translate/s1/{number}", params={"text": "hello"}, timeout=PATIENCE)
                assert answer.json() == {"text": "HELLO"}
        assert service.stats()["accounting"]["accepted"] == 20


WSGI = """
import os
from tests.rows import task
from tornado_persist.client import Client

persist = Client(os.environ["PERSIST_URL"], interval=60)
persist.task(**task("of the first process"))

def application(environ, start_response):
    if environ["PATH_INFO"] != "/":
        persist.task(**task(environ["PATH_INFO"]))
    start_response("200 OK", [])
    return [b"%d" % os.getpid()]
"""


@pytest.mark.parametrize(
    "options", [(), ("--worker-class", "gthread", "--threads", "4"), ("--max-requests", "20")], ids=" ".join
)
def test_every_row_of_gunicorns_processes_arrives_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "wsgi.py").write_text(WSGI)
    common = ("--preload", "--workers", "2", "--bind", "127.0.0.1:{port}")
    with Persistd(tmp_path) as service:
        began = time.monotonic()
        with (
            served(
                tmp_path, tmp_path / "app.log", "gunicorn", *common, *options, "wsgi", PERSIST_URL=service.url
            ) as url,
            ThreadPoolExecutor(8) as threads,
            httpx.Client(headers={"Connection": "close"}, timeout=PATIENCE) as http,
        ):
            answers = list(threads.map(lambda number: http.get(f"{url}/{number}"), range(200)))
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.text for answer in answers}) > (2 if "--max-requests" in options else 1)
            # Nothing is sent before the processes end, unless they end one after the other.
            assert options[:1] == ("--max-requests",) or service.stats()["accounting"]["accepted"] == 0
        assert time.monotonic() - began < 30
        assert service.stats()["accounting"]["accepted"] == 201
        service.flush()
        with contextlib.closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
            stored = {name for (name,) in database.execute("SELECT task_id FROM translation_tasks")}
    assert stored == {"of the first process", *(f"/{number}" for number in range(200))}


def test_celery(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    log = tmp_path / "worker.log"
    directory = EXAMPLES / "celery_worker"
    with Persistd(tmp_path) as service:
        variables = {
            "PERSIST_URL": service.url,
            "BROKER_URL": "filesystem://",
            "BROKER_FOLDER": str(tmp_path / "broker"),
        }
        worker = start(
            directory, log, "celery", "-A", "worker", "worker", "-c", "2", "-l", "INFO", "-P", "prefork", **variables
        )
        try:
            for number in range(2):
                called = tmp_path / f"call-{number}.log"
                command = ("celery", "-A", "worker", "call", "worker.translate", "-a", f'["s1", "{number}", "hello"]')
                assert start(directory, called, *command, **variables).wait(PATIENCE) == 0, called.read_text()
            wait_until(lambda: log.read_text().count("succeeded") == 2, "two tasks")
        finally:
            end(worker)
        assert "Traceback" not in log.read_text()
        assert service.stats()["accounting"]["accepted"] == 2
