"""What the client has dropped is seen at the service: figures, metrics, log."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from tests.process import PATIENCE, Persistd
from tests.rows import task
from tests.servers import free_port
from tornado_persist.client import Client


def test_the_service_shows_what_a_client_dropped_once_also_after_a_restart(tmp_path: Path) -> None:
    with Persistd(tmp_path, port=free_port()) as service, Client(service.url, max_rows=2, interval=60) as persist:
        with persist._changed:  # nothing is sent meanwhile
            for number in range(5):
                persist.task(**task(str(number)))
        assert persist.flush()
        drops = service.stats()["client_drops"]
        assert drops["rows"] == 3
        assert drops["last"]["client"] == "127.0.0.1"
        assert drops["last"]["user_agent"] == "tornado-persist-client"
        assert service.http.get("/api/v1/persistence/history").json()["client_drops"] == drops
        assert "\npersistd_client_rows_dropped_total 3.0\n" in service.http.get("/metrics").text
        assert service.wait_for_log("a client dropped rows")["rows"] == 3
        service.stop()
        service.start()
        with persist._changed:
            for number in range(3):
                persist.task(**task(str(number)))
        assert persist.flush()
        assert service.stats()["client_drops"]["rows"] == 1


def test_the_description_of_the_interface_names_the_header_with_an_example_that_counts(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        described = service.http.get("/openapi.json").json()
        batch = described["paths"]["/api/v1/persistence/tasks/batch"]["post"]
        assert {"$ref": "#/components/parameters/Dropped"} in batch["parameters"]
        header = described["components"]["parameters"]["Dropped"]
        (example,) = re.findall("`([0-9].*?)`", header["description"])
        with httpx.Client(base_url=service.url, headers={header["name"]: example}, timeout=PATIENCE) as http:
            assert http.post("/api/v1/persistence/tasks/batch", json={"tasks": [task()]}).status_code == 200
        assert service.stats()["client_drops"]["rows"] == 12
