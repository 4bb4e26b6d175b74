"""The files for running the service elsewhere: containers, logrotate, Prometheus, Grafana."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests import tools
from tests.process import PATIENCE, Persistd, wait_until
from tests.rows import task
from tests.servers import Postgres

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
MANUAL = "[buffer]\nflush_interval = 3600\n"


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, check=False)


def installed(name: str) -> Path:
    """A program of the environment that the tests run in."""
    return Path(sysconfig.get_path("scripts")) / name


# Containers.


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(installed("hadolint"), "--no-color", ROOT / "Dockerfile")
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


def test_the_compose_file_fits_the_schema_of_compose_files() -> None:
    done = run(installed("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", CONF / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_files_services_and_volumes_are_there_and_looked_after() -> None:
    compose = read_yaml(CONF / "compose.yaml")
    services = compose["services"]
    assert services.keys() == {"persistd", "postgres", "prometheus", "grafana"}
    for name, service in services.items():
        assert name == "persistd" or "healthcheck" in service, name  # the image of persistd has its own
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if not source.startswith("."):
                assert source in compose["volumes"], volume
        for needed in service.get("depends_on", ()):
            assert needed in services
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert "password" not in str(service.get("environment")).lower() or "${" in str(service["environment"])


def interpolated(text: str, **variables: str) -> str:
    """As compose puts variables in: their values as they are."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: variables[found[1]], text)


@pytest.mark.parametrize("password", ["p@ss:w/rd?#[]", "a%40b%zz &=+", "$HOME'\"\\` ü"])
def test_compose_takes_a_password_with_special_characters(
    tmp_path: Path, postgres_server: Postgres, postgres_url: str, password: str
) -> None:
    services = read_yaml(CONF / "compose.yaml")["services"]
    given = {
        name: interpolated(text, POSTGRES_PASSWORD=password)
        for name, text in services["persistd"]["environment"].items()
    }
    database = {
        name: interpolated(text, POSTGRES_PASSWORD=password)
        for name, text in services["postgres"]["environment"].items()
    }
    assert database["POSTGRES_PASSWORD"] == password
    role = f"special_{postgres_url.rpartition('/')[2]}"
    literal = password.replace("'", "''")
    postgres_server.admin(f"CREATE ROLE {role} LOGIN PASSWORD '{literal}' IN ROLE persist")
    try:
        assert given["PERSISTD_SINKS__POSTGRES__URL"].count("persist@postgres:5432/persist") == 1
        given["PERSISTD_SINKS__POSTGRES__URL"] = re.sub(r"//.*@", f"//{role}@", postgres_url)
        with Persistd(tmp_path, MANUAL, variables=given) as service:
            assert service.post("task", task("t1")).status_code == 200
            assert service.flush()["tasks_written"] == 1
            assert service.stop() == 0
            assert password not in service.log_text()
        found = postgres_server.admin("SELECT task_id FROM translation_tasks", postgres_url.rpartition("/")[2])
        assert found == [("t1",)]
    finally:
        postgres_server.admin(f"DROP OWNED BY {role}", postgres_url.rpartition("/")[2])
        postgres_server.admin(f"DROP ROLE {role}")


def test_compose_mounts_the_volume_where_this_postgresql_keeps_its_data() -> None:
    postgres = read_yaml(CONF / "compose.yaml")["services"]["postgres"]
    # Its data are lost with the container where the volume is mounted at .../data, as before 18.
    assert int(postgres["image"].partition(":")[2]) >= 18
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql"]


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
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = run(promtool, "check", "config", "--syntax-only", CONF / "prometheus.yml")
    assert done.returncode == 0, done.stderr
