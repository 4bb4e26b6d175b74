"""Forks, children and the end of a process: no hang, no traceback, no row twice or lost without a count."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from tests.process import Persistd, environment

ROOT = Path(__file__).resolve().parent.parent.parent
HEAD = """
import multiprocessing, os, sys, threading
from tests.rows import task
from tornado_persist.client import Client
url = sys.argv[1]
"""


def run(script: str, url: str, patience: float = 30) -> tuple[str, str, float]:
    """The output of a program, its errors, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script), url],
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'clients/python/src'}"),
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, time.monotonic() - began


def test_a_fork_has_an_empty_queue_and_a_thread_of_its_own(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        _, err, _ = run(
            """
            persist = Client(url, interval=60)
            persist.task(**task("sent before"))
            assert persist.flush()
            persist.task(**task("parent's"))
            # While other threads are in the client, too.
            threading.Thread(target=lambda: [persist.task(**task("parent's")) for _ in range(20000)]).start()
            for number in range(5):
                child = os.fork()
                if not child:
                    assert persist.stats.calls == 0
                    persist.task(**task(f"child {number}"))
                    sys.exit()  # sends at the exit
                os.waitpid(child, 0)
            """,
            service.url,
        )
        assert err == ""
        accounting = service.stats()["accounting"]
        # Before, five children, the parent's at its exit: none came twice.
        assert accounting["accepted"] == 7


def test_children_of_multiprocessing_send_at_their_end(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        for method in ("fork", "spawn"):
            _, err, _ = run(
                f"""
                def work(name, url=url):
                    global persist
                    persist.task(**task(name))
                persist = Client(url, interval=60)
                if __name__ == "__main__" and {method!r} == "fork":
                    context = multiprocessing.get_context("fork")
                    some = [context.Process(target=work, args=(f"fork {{n}}",)) for n in range(3)]
                    [one.start() for one in some]
                    [one.join() for one in some]
                    assert [one.exitcode for one in some] == [0] * 3
                else:
                    work("alone")
                """,
                service.url,
            )
            assert err == ""
        assert service.stats()["accounting"]["accepted"] == 4


def test_the_exit_sends_what_waits(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        _, err, _ = run(
            """
            persist = Client(url, interval=60)
            for number in range(3000):
                persist.task(**task(str(number)))
            """,
            service.url,
        )
        assert err == ""
        assert service.stats()["accounting"]["accepted"] == 3000


def test_the_exit_with_a_full_queue_and_a_silent_service_takes_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _, err, seconds = run(
            """
            some = [Client(url, interval=60, retries=9) for _ in range(3)]
            for persist in some:
                for number in range(12000):
                    persist.task(**task(str(number)))
            """,
            f"http://127.0.0.1:{silent.getsockname()[1]}",
        )
    assert 4 < seconds < 15
    assert "Traceback" not in err
    assert err.count("rows were dropped") >= 3


def test_calls_from_atexit_and_after_the_close(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        _, err, _ = run(
            """
            import atexit
            persist = Client(url, interval=60)
            def last():
                persist.task(**task("at exit"))
            atexit.register(last)
            persist.task(**task("before"))
            class Late:
                def __del__(self):
                    persist.task(**task("too late"))
            late = Late()
            """,
            service.url,
        )
        assert "Traceback" not in err
        assert service.stats()["accounting"]["accepted"] == 2


def test_a_signal_handler_may_call_while_its_thread_is_in_a_call(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        out, err, _ = run(
            """
            import signal
            persist = Client(url, interval=0.01)
            count = 0
            def handle(*_):
                global count
                count += 1
                persist.task(**task(f"signal {count}"))
            signal.signal(signal.SIGALRM, handle)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            for number in range(30000):
                persist.task(**task(str(number % 50)))
            signal.setitimer(signal.ITIMER_REAL, 0)
            persist.close()
            assert persist.stats.calls == 30000 + count, (persist.stats, count)
            print(count)
            """,
            service.url,
        )
    assert int(out) > 10
    assert err == ""
