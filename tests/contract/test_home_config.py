"""LlamaHome's document, section "Configuration"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.shape import assert_shape
from tests.contract.test_home_prompts import PREFIXES, assert_home_error
from tests.running_server import RunningServer, running

CONFIG = {
    "model_settings": {"default_model": "x", "max_tokens": 100, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    "system_settings": {
        "cache_size": "256MB",
        "max_requests_per_minute": 60,
        "max_concurrent_streams": 10,
        "max_batch_operations_per_minute": 5,
        "request_timeout_seconds": 600.0,
        "log_level": "INFO",
    },
    "models": {},
}
DONE = {"status": "success", "message": "…"}
PROMPT = {"prompt": "Hello!", "model": "llama3.3"}


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("configured")) as server:
        yield server
        if server.process is not None and server.process.poll() is None:
            server.stop()


@pytest.fixture
def client(configured: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=configured.url, timeout=60) as client:
        yield client
        client.post("/api/reset_config")


def tokens(client: httpx.Client) -> int:
    return int(client.post("/api/process_prompt", json=PROMPT).json()["tokens_used"])


@PREFIXES
def test_the_configuration_is_read(client: httpx.Client, prefix: str) -> None:
    for answer in (client.get(f"{prefix}/get_config"), client.post(f"{prefix}/config", json={})):
        assert answer.status_code == 200
        assert_shape(CONFIG, answer.json())
        shown = answer.json()
        shown["model_settings"]["default_model"] = "x"
        assert {key: shown[key] for key in CONFIG} == CONFIG
    assert client.post(f"{prefix}/config").status_code == 200


def test_an_update_changes_only_what_it_carries_and_takes_effect(client: httpx.Client) -> None:
    answer = client.post("/api/config", json={"model_settings": {"max_tokens": 1}})
    assert_shape({**DONE, **CONFIG}, answer.json())
    assert answer.json()["model_settings"]["max_tokens"] == 1
    assert answer.json()["model_settings"]["temperature"] == 0.7
    assert client.post("/api/process_prompt", json=PROMPT).json()["finish_reason"] == "length"
    few = tokens(client)
    client.post("/api/reset_config")
    assert tokens(client) >= few


@PREFIXES
def test_configure_model_answers_the_documented_body_and_is_effective_on_the_next_request(
    client: httpx.Client, prefix: str
) -> None:
    wanted = {"model": "llama3.3", "temperature": 0.0, "max_tokens": 2}
    answer = client.post(f"{prefix}/configure_model", json=wanted)
    assert answer.status_code == 200, answer.text
    assert_shape({**DONE, "updated_params": {"temperature": 0.5, "max_tokens": 2}}, answer.json())
    assert answer.json()["updated_params"] == {"temperature": 0, "max_tokens": 2}
    first, second = (client.post("/api/process_prompt", json=PROMPT).json() for _ in range(2))
    assert first["finish_reason"] == "length"
    assert first["response"] == second["response"]
    more = client.post("/api/process_prompt", json={**PROMPT, "max_tokens": 5}).json()
    assert more["tokens_used"] > first["tokens_used"]


@pytest.mark.parametrize(
    "wrong", [{"temperature": 3}, {"max_tokens": 0}, {"top_p": 0}, {"top_k": 1001}, {"min_p": 2}], ids=str
)
def test_a_parameter_out_of_range_is_400_and_names_the_field(client: httpx.Client, wrong: dict[str, Any]) -> None:
    error = assert_home_error(client.post("/api/configure_model", json={"model": "llama3.3", **wrong}), 400)
    assert set(error["details"]) == set(wrong)
    assert client.get("/api/get_config").json()["models"] == {}


def test_configure_model_needs_a_model_that_exists_and_something_to_set(client: httpx.Client) -> None:
    assert_home_error(client.post("/api/configure_model", json={"temperature": 1}), 400)
    assert_home_error(client.post("/api/configure_model", json={"model": "llama3.3"}), 400)
    assert_home_error(client.post("/api/configure_model", json={"model": "absent", "temperature": 1}), 404)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("model_settings.temperature", {"model_settings": {"temperature": 9}}),
        ("model_settings.max_tokens", {"model_settings": {"max_tokens": 0}}),
        ("system_settings.log_level", {"system_settings": {"log_level": "LOUD"}}),
        ("system_settings.cache_size", {"system_settings": {"cache_size": "much"}}),
        ("system_settings.request_timeout_seconds", {"system_settings": {"request_timeout_seconds": 0}}),
    ],
)
def test_a_wrong_setting_is_400_names_the_field_and_changes_nothing(
    client: httpx.Client, field: str, body: dict[str, Any]
) -> None:
    before = client.get("/api/get_config").json()
    both = {**body, "model_settings": {"top_k": 7, **body.get("model_settings", {})}}
    error = assert_home_error(client.post("/api/config", json=both), 400)
    assert set(error["details"]) == {field}
    assert client.get("/api/get_config").json() == before


@PREFIXES
@pytest.mark.parametrize(
    ("call", "body", "fields"),
    [
        ("config", {"models": {"llama3.3": {"top_k": 3}}}, {"models"}),
        ("config", {"model_settings": {"max_token": 5, "top_k": 7}}, {"model_settings.max_token"}),
        ("config", {"systemSettings": {"logLevel": "DEBUG", "level": 1}, "x": None}, {"system_settings.level", "x"}),
        ("configure_model", {"model": "llama3.3", "temprature": 0.1, "top_k": 3}, {"temprature"}),
        ("configure_model", {"model": "llama3.3", "top_k": {"a": 1}}, None),
        ("configure_model", {"model": "llama3.3", "temperature": "warm"}, None),
        ("save_config", {"path": "/etc/passwd"}, {"path"}),
        ("reset_config", {"model": "llama3.3"}, {"model"}),
    ],
)
def test_an_unknown_field_is_400_is_named_and_changes_nothing(
    client: httpx.Client, prefix: str, call: str, body: dict[str, Any], fields: set[str] | None
) -> None:
    client.post("/api/config", json={"model_settings": {"max_tokens": 9}})
    before = client.get("/api/get_config").json()
    error = assert_home_error(client.post(f"{prefix}/{call}", json=body), 400)
    assert fields is None or set(error["details"]) == fields
    assert all(field in error["message"] for field in fields or {"t"})
    assert client.get("/api/get_config").json() == before


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"modelSettings": {"topK": 4}, "system_settings": null}'])
def test_what_a_body_may_be_besides(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/api/config", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_settings"]["top_k"] == (4 if b"topK" in body else 0)


@pytest.mark.parametrize("body", [b"[]", b"1", b'{"model_settings": 1}', b'{"model_settings": {"top_k": NaN}}', b"{"])
def test_a_body_that_is_no_configuration_is_400(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/api/config", content=body, headers={"content-type": "application/json"})
    assert_home_error(answer, 400)


def test_an_absent_default_model_is_404(client: httpx.Client) -> None:
    answer = client.post("/api/config", json={"model_settings": {"default_model": "absent"}})
    assert assert_home_error(answer, 404)["code"] == "model_not_found"


def test_the_log_level_changes_at_run_time(client: httpx.Client) -> None:
    client.post("/api/config", json={"system_settings": {"log_level": "error"}})
    client.get("/info", headers={"X-Request-ID": "quiet"})
    client.post("/api/config", json={"system_settings": {"log_level": "INFO"}})
    client.get("/info", headers={"X-Request-ID": "heard"})
    log = client.get("/api/logs").text
    assert "heard" in log
    assert "quiet" not in log


def test_limits_change_at_run_time(client: httpx.Client) -> None:
    none = {"input_file_id": "file-absent", "endpoint": "/v1/embeddings"}
    assert client.post("/v1/batches", json=none).status_code == 404
    client.post("/api/config", json={"system_settings": {"max_batch_operations_per_minute": 1}})
    statuses = [client.post("/v1/batches", json=none).status_code for _ in range(3)]
    assert statuses.count(429) >= 2
    client.post("/api/reset_config")
    assert client.post("/v1/batches", json=none).status_code == 404


def test_a_saved_configuration_survives_a_kill_and_the_rest_does_not(configured: RunningServer) -> None:
    with httpx.Client(base_url=configured.url, timeout=60) as client:
        client.post("/api/config", json={"model_settings": {"max_tokens": 5}, "system_settings": {"cache_size": "1MB"}})
        client.post("/api/configure_model", json={"model": "llama3.3", "top_k": 3})
        saved = client.post("/api/save_config")
        assert_shape(DONE, saved.json())
        client.post("/api/config", json={"model_settings": {"max_tokens": 6}})
        model = client.get("/api/get_config").json()["model_settings"]["default_model"]
    configured.kill()
    configured.start()
    with httpx.Client(base_url=configured.url, timeout=60) as client:
        found = client.get("/api/get_config").json()
        assert found["model_settings"]["max_tokens"] == 5
        assert found["system_settings"]["cache_size"] == "1MB"
        assert found["models"] == {model: {"top_k": 3}}
        reset = client.post("/api/reset_config")
        assert_shape(DONE, reset.json())
        assert client.get("/api/get_config").json()["model_settings"]["max_tokens"] == 100
