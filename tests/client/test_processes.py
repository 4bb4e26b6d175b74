"""Forks, children and the end of a process: no hang, no traceback, no row twice or lost without a count."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from tests.process import Persistd, environment
from tests.rows import session, task

ROOT = Path(__file__).resolve().parent.parent.parent
#: What runs the programs. Another Python that has httpx, such as 3.9, may be named.
PYTHON = os.environ.get("CLIENT_PYTHON", sys.executable)
HEAD = f"""
import multiprocessing, os, sys, threading
from tornado_persist.client import Client
url = sys.argv[1]
def session(session_id, **fields):
    return {{**{session()!r}, "session_id": session_id, **fields}}
def task(task_id, **fields):
    return {{**{task()!r}, "task_id": task_id, **fields}}
"""


def run(script: str, url: str, patience: float = 30) -> tuple[str, str, float]:
    """The output of a program, its errors, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [PYTHON, "-c", HEAD + textwrap.dedent(script), url],
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
            signals = []
            def handle(*_):
                signals.append(1)
                persist.task(**task(f"signal {len(signals)}"))
            signal.signal(signal.SIGALRM, handle)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            for number in range(30000):
                persist.task(**task(str(number % 50)))
            signal.setitimer(signal.ITIMER_REAL, 0)
            persist.close()
            assert persist.stats.calls == 30000 + len(signals), (persist.stats, len(signals))
            print(len(signals))
            """,
            service.url,
        )
    assert int(out) > 10
    assert err == ""


def test_a_signal_while_the_thread_starts_starts_no_second_one() -> None:
    out, err, _ = run(
        """
        import signal
        from tornado_persist.client.testing import Recorder
        persist = Client(transport=Recorder())
        signal.signal(signal.SIGUSR1, lambda *_: persist.task(**task("signal")))
        start = threading.Thread.start
        def interrupted(thread):
            signal.raise_signal(signal.SIGUSR1)
            start(thread)
        threading.Thread.start = interrupted
        persist.task(**task("first"))
        print([thread.name for thread in threading.enumerate()])
        persist.close()
        print(persist.stats.sent)
        """,
        "",
    )
    assert (out, err) == ("['MainThread', 'tornado-persist-client']\n2\n", "")


def test_a_program_that_uses_all_of_it(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        out, err, _ = run(
            """
            import asyncio, datetime, decimal, enum, pathlib, uuid
            from tornado_persist.client import NotFound
            class Status(enum.Enum):
                FAILED = "failed"
            session_id = uuid.uuid4()
            async def main():
                async with Client(url, retries=3, gzip_from=1) as persist:
                    persist.session(**session(session_id, file_path=pathlib.Path("/uploads/x"), metadata={"a": [1]}))
                    rows = [task(str(n), status=Status.FAILED, confidence=decimal.Decimal(1)) for n in range(600)]
                    rows[7]["status"] = "wrong"
                    persist.tasks(rows, wait=5, session_id=session_id, start_time=datetime.datetime.now())
                    assert not await persist.aflush(10, database=True)
                    assert (persist.stats.sent, persist.stats.dropped) == (600, {"invalid": 1}), persist.stats
                    assert (await persist.aget_session(str(session_id)))["tasks"]["failed"] == 599
                    print(len([row async for row in persist.aiter_tasks(str(session_id), limit=50, fields="status")]))
            asyncio.run(main())
            with Client(url) as persist:
                try:
                    persist.get_task("s1", "x")
                except NotFound:
                    print(persist.restore(str(session_id))["tasks"])
            """,
            service.url,
        )
    assert out == "599\n[]\n"
    assert err.startswith("1 rows were dropped, in all 1 invalid; last error: 422: ")


def test_a_child_of_a_client_that_is_closed_has_a_closed_one() -> None:
    out, err, _ = run(
        """
        from tornado_persist.client import ReadFailed
        from tornado_persist.client.testing import Recorder
        persist = Client(transport=Recorder())
        persist.close()
        child = os.fork()
        if not child:
            persist.task(**task("late"))
            print(persist.stats.dropped)
            try:
                persist.get_session("s1")
            except ReadFailed as exc:
                print(exc)
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        """,
        "",
    )
    assert out == "{'closed': 1}\nthe client is closed\n"
    assert "Traceback" not in err


def test_a_fork_finds_every_module_whole(tmp_path: Path) -> None:
    # What the thread would import, another thread that forks meanwhile would leave half imported in the child.
    with Persistd(tmp_path) as service:
        out, _, _ = run(
            """
            persist = Client(url.replace("127.0.0.1", "localhost"))
            before = set(sys.modules)
            persist.task(**task("a"))
            assert persist.flush(database=True)
            print(sorted(set(sys.modules) - before))
            """,
            service.url,
        )
    assert out == "[]\n"
