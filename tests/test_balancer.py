"""Three instances behind HAProxy, with the example of conf/: a session stays on one of them, and one may die."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests import balancers, tools
from tests.process import Persistd, wait_until
from tests.rows import task
from tests.servers import free_port
from tests.sinks.readers import read_postgres

CONF = Path(__file__).parent.parent / "conf"
#: Another address of this machine's; only Linux has all of 127.0.0.0/8.
CLIENT = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
TASKS = "/api/v1/persistence/tasks/batch"
MANUAL = "[buffer]\nflush_interval = 3600\n"


@contextlib.contextmanager
def haproxy(directory: Path, instances: list[Persistd]) -> Iterator[httpx.Client]:
    port = free_port()
    changes = {"127.0.0.1:8080": f"127.0.0.1:{port}"}
    changes |= {f"127.0.0.1:{8001 + n}": one.url.removeprefix("http://") for n, one in enumerate(instances)}
    transport = httpx.HTTPTransport(local_address=CLIENT)
    with (
        balancers.haproxy(directory, "haproxy.cfg", changes) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, transport=transport) as client,
    ):
        wait_until_ready(client, process)
        yield client


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Until an instance answers through the balancer ``process``."""

    def serves() -> bool:
        assert process.poll() is None, "the balancer has ended"
        with contextlib.suppress(httpx.TransportError):
            return client.get("/health/ready").status_code == 200
        return False

    wait_until(serves)


def test_a_session_stays_on_one_instance_and_the_death_of_one_stops_no_batch(tmp_path: Path, postgres_url: str) -> None:
    config = (
        "sink = 'postgres'\n[buffer]\nflush_interval = 3600\n"
        f"[sinks.postgres]\nurl = '{postgres_url}'\nwriters = 'several'\n"
    )
    with contextlib.ExitStack() as stack:
        for number in range(3):
            (tmp_path / f"{number}").mkdir()
        proxy = "trusted_proxies = ['127.0.0.1']\n"
        instances = [stack.enter_context(Persistd(tmp_path / f"{n}", config, server=proxy)) for n in range(3)]
        client = stack.enter_context(haproxy(tmp_path, instances))

        def post(session: int, status: str) -> str:
            rows = {"tasks": [task(session_id=f"s{session}", status=status)]}
            answer = client.post(TASKS, json=rows, headers={"X-Session-ID": f"s{session}"})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["timestamp"])

        def taken() -> list[int]:
            return [one.stats()["accounting"]["accepted"] for one in instances if one not in dead]

        dead: list[Persistd] = []
        for session in range(60):
            post(session, "pending")
        before = taken()
        assert sum(before) == 60
        sent = [line for one in instances for line in one.log("request") if line["path"] == TASKS]
        assert {line["client"] for line in sent} == {CLIENT}
        assert min(before) > 5, before
        for session in range(60):
            post(session, "processing")
        assert taken() == [2 * count for count in before], "each session where it was"
        instances[0].kill()
        dead.append(instances[0])
        latest = {session: post(session, "completed") for session in range(60)}
        assert sum(taken()) == 2 * sum(before[1:]) + 60
        for one in instances[1:]:
            one.flush()
        # The dead one comes back and writes what it has kept: older than what others have written.
        instances[0].start()
        instances[0].flush()
        stored = read_postgres(postgres_url)["task"]
        assert Counter(row["status"] for row in stored.values()) == {"completed": 60}
        assert {key[0]: row["updated_at"] for key, row in stored.items()} == {
            f"s{session}": at for session, at in latest.items()
        }


def test_nginx_as_the_page_says_keeps_sessions_and_sends_a_batch_to_another_instance_when_one_dies(
    tmp_path: Path,
) -> None:
    page = (CONF.parent / "docs" / "scaling.rst").read_text()
    upstream, location = (
        textwrap.dedent(block) for block in re.findall(r"\.\. code-block:: nginx\n\n((?:    .*\n|\n)+)", page)
    )
    port = free_port()
    with contextlib.ExitStack() as stack:
        instances = []
        for number in range(3):
            (tmp_path / f"{number}").mkdir()
            instances.append(stack.enter_context(Persistd(tmp_path / f"{number}", MANUAL)))
            upstream = upstream.replace(f"127.0.0.1:{8001 + number}", instances[-1].url.removeprefix("http://"))
        file = tmp_path / "nginx.conf"
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in names)
        file.write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} worker_processes 1; pid {tmp_path}/pid; daemon off;\n"
            f"error_log stderr; events {{}}\nhttp {{ access_log off;\n{temporary}{upstream}\nserver {{\n"
            f"listen 127.0.0.1:{port}; location / {{\n{location}proxy_http_version 1.1;\n"
            "proxy_set_header Connection ''; proxy_set_header Host localhost; proxy_pass http://persistd;\n} } }\n"
        )
        process = subprocess.Popen([tools.require("nginx"), "-e", "stderr", "-c", str(file)])
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))
        wait_until_ready(client, process)

        def post_all() -> None:
            for session in range(30):
                rows = {"tasks": [task(session_id=f"s{session}")]}
                answer = client.post(TASKS, json=rows, headers={"X-Session-ID": f"s{session}"})
                assert answer.status_code == 200, answer.text

        def taken(*which: Persistd) -> list[int]:
            return [one.stats()["accounting"]["accepted"] for one in which]

        post_all()
        before = taken(*instances)
        assert (sum(before), min(before) > 2) == (30, True), before
        post_all()
        assert taken(*instances) == [2 * count for count in before], "each session where it was"
        instances[0].kill()
        post_all()
        assert sum(taken(*instances[1:])) == 2 * sum(before[1:]) + 30


def test_what_another_instance_accepted_before_a_delete_and_writes_after_it_stays_deleted(
    tmp_path: Path, postgres_url: str
) -> None:
    config = f"sink = 'postgres'\n{MANUAL}[sinks.postgres]\nurl = '{postgres_url}'\nwriters = 'several'\n"
    with contextlib.ExitStack() as stack:
        for name in "ab":
            (tmp_path / name).mkdir()
        one, other = (stack.enter_context(Persistd(tmp_path / name, config)) for name in "ab")
        one.post("task", task("t", session_id="s", context="first"))
        one.post("task", task("t", session_id="kept"), task("u", session_id="kept"))
        one.flush()
        other.post("task", task("t", session_id="s", status="processing", error_message="of old"))
        other.post("task", task("late", session_id="s"))
        other.post("task", task("t", session_id="kept"), task("u", session_id="kept", status="failed"))
        assert one.http.delete("/api/v1/persistence/sessions/s").status_code == 200
        assert one.http.delete("/api/v1/persistence/sessions/kept/tasks/t").status_code == 200
        assert read_postgres(postgres_url)["task"].keys() == {("kept", "u")}
        again = other.post("task", task("t", session_id="s", status="pending", context="new")).json()["timestamp"]
        other.kill()
        other = stack.enter_context(Persistd(tmp_path / "b", config))  # reads all of it back from its journal
        other.flush()
        found = read_postgres(postgres_url)["task"]
        assert found.keys() == {("kept", "u"), ("s", "t")}
        assert found["kept", "u"]["status"] == "failed"
        row = found["s", "t"]
        assert (row["status"], row["context"], row["error_message"]) == ("pending", "new", None)
        assert (row["created_at"], row["updated_at"]) == (again, again)
