"""The files for running the service elsewhere: containers, logrotate, Prometheus, Grafana."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from ruamel.yaml import YAML

from tests import tools
from tests.process import PATIENCE, Persistd, wait_until
from tests.rows import body, task
from tests.servers import Postgres

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
TASKS = "/api/v1/persistence/tasks/batch"
MANUAL = "[buffer]\nflush_interval = 3600\n"


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, check=False)


# Containers.


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(tools.installed("hadolint"), "--no-color", ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_gets_every_file_that_is_copied_into_it() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    text = (ROOT / "Dockerfile").read_text()
    copied = [path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for path in line.split()]
    assert "tornado_persist" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, path


def test_the_image_is_not_roots_and_says_how_it_is_and_how_it_is_stopped() -> None:
    lines = dict(line.split(" ", 1) for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1].isupper())
    assert lines["USER"] == "10001:10001"
    assert lines["STOPSIGNAL"] == "SIGTERM"
    assert lines["VOLUME"] == lines["WORKDIR"] == "/var/lib/persistd"
    assert "/health/live" in (ROOT / "Dockerfile").read_text(), "a database that is down is no reason for a restart"


COMPOSE = {
    "compose.yaml": {"persistd", "postgres", "prometheus", "grafana"},
    "compose-three.yaml": {"one", "two", "three", "balancer", "postgres"},
}


@pytest.mark.parametrize("file", COMPOSE)
def test_the_compose_file_fits_the_schema_of_compose_files(file: str) -> None:
    done = run(tools.installed("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", CONF / file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", COMPOSE)
def test_the_compose_files_services_and_volumes_are_there_and_looked_after(file: str) -> None:
    compose = read_yaml(CONF / file)
    services = compose["services"]
    assert services.keys() == COMPOSE[file]
    for name, service in services.items():
        if "extends" in service:  # it is looked at in the other file
            assert service["extends"] == {"file": "compose.yaml", "service": name}
            continue
        assert "build" in service or "healthcheck" in service, name  # the image of persistd has its own
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if not source.startswith("."):
                assert source in compose["volumes"], volume
        for needed in service.get("depends_on", ()):
            assert needed in services
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_no_container_of_the_compose_file_has_more_rights_than_it_needs() -> None:
    compose = read_yaml(CONF / "compose.yaml")
    for name, service in compose["services"].items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] > 0, name
        assert service["mem_limit"], name
        assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys(), name
        for volume in service["volumes"]:
            assert not volume.startswith(("/", "..")), volume
            assert not volume.startswith(".") or volume.endswith(":ro"), volume
    networks = {name: set(service["networks"]) for name, service in compose["services"].items()}
    assert networks == {
        "persistd": {"database", "monitoring"},
        "postgres": {"database"},
        "prometheus": {"monitoring"},
        "grafana": {"monitoring"},
    }
    assert compose["networks"]["database"] == {"internal": True}
    settings = compose["services"]["persistd"]["environment"]
    assert settings["PERSISTD_SINKS__POSTGRES__CREATE_TABLES"] == "false", "its role cannot"


def test_the_balancer_of_compose_has_the_example_with_the_names_of_the_instances(tmp_path: Path) -> None:
    (_, _, script) = read_yaml(CONF / "compose-three.yaml")["services"]["balancer"]["command"]
    made = tmp_path / "haproxy.cfg"
    for old, new in (("/usr/local/etc/haproxy/example.cfg", CONF / "haproxy.cfg"), ("/tmp/haproxy.cfg", made)):
        script = script.replace(old, str(new))
    script, _, rest = script.partition(" && exec ")
    assert run("sh", "-c", script).returncode == 0
    text = made.read_text()
    assert "bind :8080\n" in text
    servers = re.findall(r"^ +server (\w+) (\S+)$", text, re.MULTILINE)
    assert servers == [(name, f"{name}:8001") for name in ("one", "two", "three")]
    assert "127.0.0.1" not in text
    made.write_text(re.sub(r"(?:one|two|three):8001", "127.0.0.1:8001", text))
    command, *arguments = rest.split()
    done = run(tools.require(command), "-c", *arguments)
    assert done.returncode == 0, done.stderr


def test_the_secrets_of_the_compose_file_are_files_that_nothing_else_takes_along() -> None:
    text = (CONF / "compose.yaml").read_text()
    compose = read_yaml(CONF / "compose.yaml")
    made = set(re.findall(r"> conf/(secrets/\w+)", text))
    running = (ROOT / "docs" / "running.rst").read_text()
    for command in re.findall(r"(?m)^#   (.*)$", text):
        assert f"    {command}\n" in running, "the page makes them in the same way"
    assert {secret["file"] for secret in compose["secrets"].values()} == {f"./{name}" for name in made}
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "${" not in value, name
            if "PASSWORD" in name or "URL" in name:
                assert name.endswith("_FILE"), name
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    for file, line in (
        (".gitignore", "/conf/secrets/"),
        (".dockerignore", "conf/secrets"),
        ("MANIFEST.in", "prune conf/secrets"),
    ):
        lines = (ROOT / file).read_text().splitlines()
        assert line in lines, file
        assert "!conf" not in lines[lines.index(line) :], "the last line that fits counts"


@pytest.fixture
def composed(tmp_path: Path, postgres_server: Postgres) -> Iterator[Callable[[str], str]]:
    """Does what the image of PostgreSQL does with an empty volume, for a password in the URL; the URL.

    Database and role have a name of their own.
    """
    name = "composed"

    def initialise(password: str) -> str:
        postgres_server.admin(f"CREATE DATABASE {name}")
        secret, tables, script = (tmp_path / file for file in ("database_url", "postgres.sql", "postgres-init.sh"))
        secret.write_text(f"postgresql://persist:{quote(password, safe='')}@postgres:5432/persist\n")
        tables.write_text(re.sub(r"\bpersist\b", name, (CONF / "postgres.sql").read_text()))
        text = (CONF / "postgres-init.sh").read_text()
        for old, new in {
            "/run/secrets/database_url": str(secret),
            "/usr/share/persistd/postgres.sql": str(tables),
            "ROLE persist ": f"ROLE {name} ",
        }.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        script.write_text(text)
        given = read_yaml(CONF / "compose.yaml")["services"]["postgres"]["environment"]
        variables = {
            "POSTGRES_USER": given["POSTGRES_USER"],
            "POSTGRES_DB": name,
            "PGHOST": str(postgres_server.directory),
            "PGPORT": str(postgres_server.port),
            "PATH": f"{tools.require('psql').parent}:{os.environ['PATH']}",
        }
        subprocess.run(["bash", script], env=variables, check=True, capture_output=True, timeout=PATIENCE)
        place = f"{name}:{quote(password, safe='')}@127.0.0.1:{postgres_server.port}/{name}"
        secret.write_text(secret.read_text().replace(secret.read_text().strip().partition("//")[2], place))
        return str(secret)

    yield initialise
    postgres_server.admin(f"DROP DATABASE {name} WITH (FORCE)")
    postgres_server.admin(f"DROP ROLE {name}")


@pytest.mark.parametrize("password", ["8f2c0d", "p@ss:w/rd?#[]", "a%40b%zz &=+", "$HOME'\"\\` ü", "\\x41\\c\\\\"])
def test_the_role_that_compose_makes_is_no_superuser_and_is_enough(
    tmp_path: Path, postgres_server: Postgres, composed: Callable[[str], str], password: str
) -> None:
    given = read_yaml(CONF / "compose.yaml")["services"]["persistd"]["environment"]
    given["PERSISTD_SINKS__POSTGRES__URL_FILE"] = composed(password)
    with Persistd(tmp_path, MANUAL, variables=given) as service:
        assert service.post("task", task("t1"), task("t2")).status_code == 200
        assert service.flush()["tasks_written"] == 2
        assert service.http.delete("/api/v1/persistence/sessions/s1/tasks/t2").status_code == 200
        assert service.stop() == 0
        assert password not in service.log_text()
    assert postgres_server.admin("SELECT task_id FROM translation_tasks", "composed") == [("t1",)]
    (rights,) = postgres_server.admin(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
        " WHERE rolname = 'composed'"
    )
    assert not any(rights)
    assert postgres_server.admin("SELECT 1 FROM pg_tables WHERE tableowner = 'composed'", "composed") == []


def test_the_three_instances_of_compose_differ_in_name_and_volume_and_know_of_one_another(
    tmp_path: Path, postgres_server: Postgres, composed: Callable[[str], str]
) -> None:
    compose = read_yaml(CONF / "compose-three.yaml")
    services = compose["services"]
    one, *others = (dict(services[name]) for name in ("one", "two", "three"))
    for name, other in zip(("two", "three"), others, strict=True):
        assert other.pop("environment") == {**one["environment"], "PERSISTD_INSTANCE": name}
        assert other.pop("volumes") == [f"{name}:/var/lib/persistd"]
        assert other == {key: value for key, value in one.items() if key not in ("environment", "volumes")}
    single = read_yaml(CONF / "compose.yaml")
    for name in ("one", "balancer"):
        for key in ("read_only", "cap_drop", "security_opt", "pids_limit"):
            assert services[name][key] == single["services"]["persistd"][key]
    assert compose["networks"]["database"] == single["networks"]["database"]
    assert all(single["secrets"][name] == secret for name, secret in compose["secrets"].items())
    given = {**one["environment"], "PERSISTD_SINKS__POSTGRES__URL_FILE": composed("secret")}
    # What the image of PostgreSQL runs after postgres-init.sh.
    (several,) = services["postgres"]["configs"]
    assert several["target"] > "/docker-entrypoint-initdb.d/postgres-init.sh", "in the order of their names"
    statements = compose["configs"]["several"]["content"].partition("|\n")[0]
    done = run("sh", "-c", statements.replace("/usr/share/persistd/postgres.sql", str(tmp_path / "postgres.sql")))
    postgres_server.admin(done.stdout, "composed")
    with Persistd(tmp_path, MANUAL, variables=given) as service:
        assert service.http.get("/health").json()["instance"]["name"] == "one"
        old = service.post("task", task("t1", context="old")).json()["timestamp"]
        service.post("task", task("t1", status="completed"))
        service.flush()
        again = service.http.post(TASKS, content=body("task", task("t1")), headers={"X-Persist-At": old})
        assert again.status_code == 200, "there are several writers"
        assert service.flush()["tasks_written"] == 1
    assert postgres_server.admin("SELECT status, context FROM translation_tasks", "composed") == [("completed", "old")]


def test_compose_mounts_what_postgresql_needs_where_it_looks_for_it() -> None:
    postgres = read_yaml(CONF / "compose.yaml")["services"]["postgres"]
    # Its data are lost with the container where the volume is mounted at .../data, as before 18.
    assert int(postgres["image"].partition(":")[2]) >= 18
    data, script, tables = postgres["volumes"]
    assert data == "postgres:/var/lib/postgresql"
    assert script == "./postgres-init.sh:/docker-entrypoint-initdb.d/postgres-init.sh:ro"
    assert os.access(CONF / "postgres-init.sh", os.X_OK)
    source, place, _ = tables.split(":")
    assert (CONF / source).exists()
    assert f"\\i {place}\n" in (CONF / "postgres-init.sh").read_text()


def test_prometheus_asks_the_service_for_its_metrics() -> None:
    (job,) = read_yaml(CONF / "prometheus.yml")["scrape_configs"]
    assert (job["metrics_path"], job["static_configs"]) == ("/metrics", [{"targets": ["persistd:8001"]}])


def test_grafana_finds_its_data_source_and_its_dashboards_where_compose_puts_them() -> None:
    provisioning = CONF / "grafana-provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = read_yaml(provisioning / "dashboards" / "persistd.yaml")["providers"]
    volumes = read_yaml(CONF / "compose.yaml")["services"]["grafana"]["volumes"]
    assert any(volume.split(":")[1].startswith(provider["options"]["path"] + "/") for volume in volumes)


# logrotate.


def test_logrotate_moves_the_file_and_the_service_goes_on_in_a_new_one(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL, log="file = 'persistd.log'\nmax_bytes = 0\n") as service:
        text = (CONF / "logrotate").read_text()
        assert "su persistd persistd\n" in text
        text = text.replace("/var/lib/persistd", str(service.data_dir))
        text = re.sub(r" *su persistd persistd\n", "", text)
        file = tmp_path / "logrotate.conf"
        file.write_text(text)
        file.chmod(0o644)
        log = service.data_dir / "persistd.log"
        service.data_dir.chmod(0o755)
        for _ in range(2):
            logged = log.read_text()
            done = run(tools.require("logrotate"), "--force", "--state", tmp_path / "state", file)
            assert done.returncode == 0, done.stderr
            wait_until(lambda: log.exists() and "configuration reloaded" in log.read_text())
            assert (service.data_dir / "persistd.log.1").read_text().startswith(logged)
        assert (service.data_dir / "persistd.log.2.gz").exists()
        assert service.stop() == 0


def test_the_configurations_of_prometheus_pass_its_own_check() -> None:
    done = run(tools.require("promtool"), "check", "config", "--syntax-only", CONF / "prometheus.yml")
    assert done.returncode == 0, done.stderr
