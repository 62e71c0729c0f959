"""LlamaFarm's document, sections "Health API" and "System Info"."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

from tests.contract.shape import assert_shape
from tests.running_server import RunningServer


def test_root_says_hello(http: httpx.Client) -> None:
    answer = http.get("/")
    assert answer.status_code == 200
    assert answer.json() == {"message": "Hello, World!"}


def test_info_tells_version_and_data_directory(http: httpx.Client, server: RunningServer) -> None:
    answer = http.get("/info").json()
    assert_shape({"version": "0.1.0", "data_directory": "/Users/username/.llamafarm"}, answer)
    assert answer["data_directory"] == str(server.data_dir)


def test_health_names_the_documented_services(http: httpx.Client) -> None:
    answer = http.get("/health")
    assert answer.status_code == 200
    assert_shape({"status": "healthy", "services": {"api": "healthy"}}, answer.json())
    assert answer.json()["status"] == "healthy"


def test_health_has_what_the_command_line_client_decodes(http: httpx.Client) -> None:
    answer = http.get("/health").json()
    component = {"name": "server", "status": "healthy", "message": "", "latency_ms": 1}
    assert_shape({"status": "healthy", "summary": "", "components": [component], "timestamp": 1}, answer)
    assert {"server", "rag-service", "universal-runtime"} <= {entry["name"] for entry in answer["components"]}
    assert all(type(entry["latency_ms"]) is int for entry in answer["components"])
    assert type(answer["timestamp"]) is int
    for entry in answer["components"]:
        # The client asserts these types without checking them, and knows `uptime` as something JSON can't hold.
        details = entry.get("details", {})
        assert type(details.get("pid", 1)) is int
        assert isinstance(details.get("log_file", ""), str)
        assert "uptime" not in details
    assert any("pid" in entry.get("details", {}) for entry in answer["components"])


def test_health_tells_the_default_model(http: httpx.Client) -> None:
    (seed,) = http.get("/health").json()["seeds"]
    runtime = {"provider": "llamastead", "model": "llamastead-tiny-4m", "host": "127.0.0.1:8000"}
    assert_shape({"name": "", "status": "healthy", "message": "", "latency_ms": 1, "runtime": runtime}, seed)
    assert (seed["status"], seed["runtime"]["model"]) == ("healthy", "llamastead-tiny-4m")


def test_the_openapi_document_is_served_where_generators_look_for_it(http: httpx.Client) -> None:
    answer = http.get(http.get("/info").json()["openapi_url"])
    assert answer.headers["content-type"] == "application/json"
    served = answer.json()
    generated = yaml.safe_load((Path(__file__).parents[2] / "gen" / "openapi.yaml").read_text("utf-8"))
    assert served == {**generated, "servers": [{"url": "/"}]}
    assert list(served["paths"]) == list(generated["paths"])
    answer = http.get("/openapi.yaml")
    assert answer.headers["content-type"] == "application/yaml"
    assert yaml.safe_load(answer.text) == served


@pytest.mark.parametrize("path", ["/api/health", "/api/health/liveness", "/api/info", "/api/openapi.json"])
def test_the_designers_prefix_is_answered(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert set(answer.json()) == set(http.get(path.removeprefix("/api")).json())


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_version_is_told_without_the_internet(http: httpx.Client, prefix: str) -> None:
    answer = http.get(f"{prefix}/v1/system/version-check")
    assert answer.status_code == 200
    own = http.get("/info").json()["version"]
    assert_shape({"current_version": "0.1.0", "latest_version": "0.1.0", "update_available": False}, answer.json())
    assert (answer.json()["latest_version"], answer.json()["update_available"]) == (own, False)


def test_the_disk_is_told(http: httpx.Client, server: RunningServer) -> None:
    answer = http.get("/v1/system/disk")
    assert answer.status_code == 200
    space = {"path": "/", "total_bytes": 2, "used_bytes": 1, "free_bytes": 1, "percent_free": 50.0}
    assert_shape({"cache": space, "system": space}, answer.json())
    assert answer.json()["system"]["path"] == str(server.data_dir)


def test_liveness_answers_alive(http: httpx.Client) -> None:
    answer = http.get("/health/liveness")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_an_unknown_path_answers_404_in_the_documented_body(http: httpx.Client) -> None:
    answer = http.get("/v1/nothing/here/at/all")
    assert answer.status_code == 404
    assert_shape({"detail": "Error message description"}, answer.json())
    answer = http.get("/api/nothing")
    assert answer.status_code == 404
    assert_shape({"error": {"code": "string", "message": "string"}}, answer.json())
