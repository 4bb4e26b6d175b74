"""The applications of docs/examples, with a real server, broker and worker."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.process import PATIENCE, Persistd, environment, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"


def start(directory: Path, log: Path, *command: str, **variables: str) -> subprocess.Popen[bytes]:
    paths = f"{ROOT / 'clients' / 'python' / 'src'}:{directory}"
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
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def test_fastapi(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "app.log"
    with Persistd(tmp_path) as service:
        app = start(EXAMPLES / "fastapi_app", log, "uvicorn", "app:app", "--port", str(port), PERSIST_URL=service.url)
        try:
            url = f"http://127.0.0.1:{port}"

            def serves() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"{url}/openapi.json").status_code == 200
                return False

            wait_until(serves, log.read_text())
            for number in range(20):
                answer = httpx.post(f"{url}/translate/s1/{number}", params={"text": "hello"})
                assert answer.json() == {"text": "HELLO"}
        finally:
            end(app)
        assert "Traceback" not in log.read_text()
        assert service.stats()["accounting"]["accepted"] == 20


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
