"""The client and a real service that asks for a token, speaks TLS with a CA of its own, or listens on a Unix socket."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.certificates import issue, save
from tests.process import Persistd
from tests.rows import session, task
from tornado_persist.client import Client, ReadFailed
from tornado_persist.config import tokens


def test_a_token_is_sent_and_its_scopes_are_what_it_may_do(tmp_path: Path) -> None:
    writer, written = tokens.make("writer", ["write"])
    reader, read = tokens.make("reader", ["read", "flush"])
    (tmp_path / "tokens").write_text(f"{written}\n{read}\n")
    with Persistd(tmp_path, f'[auth]\ntokens_file = "{tmp_path}/tokens"\n') as service:
        with Client(service.url, token=writer) as persist:
            persist.session(**session("s"))
            persist.task(**task("t", session_id="s"))
            assert persist.flush()
            assert persist.stats.sent == 2
            assert not persist.flush(database=True)
            assert persist.stats.last_error == "403: The token writer lacks the scope flush"
            with pytest.raises(ReadFailed, match="403: The token writer lacks the scope read") as caught:
                persist.get_session("s")
            assert caught.value.status == 403
        with Client(service.url, token=reader) as persist:
            assert [row["task_id"] for row in persist.iter_tasks("s", fresh=True)] == ["t"]
            persist.task(**task("x"))
            assert not persist.flush()
            assert persist.stats.dropped == {"refused": 1}
            assert persist.flush(database=True)
        for token in (None, "wrong"):
            with Client(service.url, token=token, retries=5) as persist:
                persist.task(**task("x"))
                assert not persist.flush()
                assert persist.stats.dropped == {"refused": 1}, "it is no matter of time"
                assert persist.stats.last_error.startswith("401: ")
                with pytest.raises(ReadFailed, match="401"):
                    persist.get_session("s")


def test_tls_with_a_ca_of_ones_own_and_a_certificate_of_the_client(tmp_path: Path) -> None:
    ours, theirs = issue("our CA"), issue("their CA")
    made = {"ca": ours, "other": theirs, "server": issue("server", ours), "client": issue("client", ours)}
    for name, issued in made.items():
        save(tmp_path, name, issued)
    files = f"[tls]\ncert = '{tmp_path}/server.pem'\nkey = '{tmp_path}/server.key'\n"
    with Persistd(tmp_path, files) as service:
        for ca in (
            tmp_path / "ca.pem",
            str(tmp_path / "ca.pem"),
            ssl.create_default_context(cafile=tmp_path / "ca.pem"),
        ):
            with Client(service.url, ca=ca) as persist:
                persist.session(**session("s"))
                assert persist.flush()
                assert persist.get_session("s")["session_id"] == "s"
        for wrong in (tmp_path / "other.pem", None):
            with Client(service.url, ca=wrong) as persist:
                persist.session(**session("s"))
                assert not persist.flush()
                assert persist.stats.dropped == {"unavailable": 1}
                assert "certificate" in persist.stats.last_error.lower()
                with pytest.raises(ReadFailed, match=r"(?i)certificate"):
                    persist.get_session("s")
        with Client(service.url.replace("https", "http")) as persist:
            persist.session(**session("s"))
            assert not persist.flush()
            assert sum(persist.stats.dropped.values()) == 1
        service.stop()
        service.configure(f"{files}client_ca = '{tmp_path}/ca.pem'\n")
        service.start()
        mutual = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        mutual.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        for context, good in ((mutual, True), (str(tmp_path / "ca.pem"), False)):
            with Client(service.url, ca=context) as persist:
                persist.session(**session("s2"))
                assert persist.flush() == good
                assert persist.stats.sent == good


# httpcore leaves the socket that could not connect to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("tcp", ["true", "false"])
def test_a_unix_socket(tmp_path: Path, tcp: str) -> None:
    with Persistd(tmp_path, server=f"unix_socket = 'persistd.sock'\ntcp = {tcp}\n") as service:
        path = service.data_dir / "persistd.sock"
        for number, persist in enumerate((Client(uds=path), Client(f"http+unix://{quote(str(path), safe='')}"))):
            with persist:
                persist.task(**task(str(number)))
                assert persist.flush()
                assert persist.get_task("s1", str(number))["status"] == "pending"
        assert persist_rows(path) == ["0", "1"]
        service.kill()
        with Client(uds=path) as persist:
            persist.task(**task("away"))
            assert not persist.flush()
            assert persist.stats.dropped == {"unavailable": 1}


def persist_rows(path: Path) -> list[str]:
    with Client(uds=path) as persist:
        return [row["task_id"] for row in persist.iter_tasks("s1", fresh=True)]
