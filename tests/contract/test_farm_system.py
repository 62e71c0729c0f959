"""LlamaFarm's document, sections "Health API" and "System Info"."""

from __future__ import annotations

import httpx

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
    assert isinstance(answer["seeds"], list)


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


def test_what_is_not_implemented_yet_answers_501(http: httpx.Client) -> None:
    answer = http.post("/api/save_config", json={})
    assert answer.status_code == 501
    assert_shape({"error": {"code": "string", "message": "string"}}, answer.json())
