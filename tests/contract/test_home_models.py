"""LlamaHome's document, section "Model Management"."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import llamastead_server
from tests.contract.shape import assert_shape
from tests.contract.test_home_prompts import PREFIXES, assert_home_error
from tests.running_server import RunningServer, running, wait_until_gone

MODEL = next((Path(llamastead_server.__file__).parent / "models").glob("*.gguf"))
DONE = {"status": "success", "message": "…"}
PROMPT = {"prompt": "Hello!", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("models")
    installed = folder / "data" / "models" / "org"
    installed.mkdir(parents=True)
    shutil.copy(MODEL, installed / "Llama-3.3-1B.gguf")
    (installed / "broken.gguf").write_bytes(os.urandom(1000))
    with running(folder) as server:
        yield server


@pytest.fixture
def client(models: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=models.url, timeout=60) as client:
        yield client


@PREFIXES
def test_models_lists_what_is_installed(client: httpx.Client, prefix: str) -> None:
    answer = client.get(f"{prefix}/models")
    assert answer.status_code == 200
    example = {"id": "x", "name": "x", "version": "3.3", "parameters": "7B", "context_length": 32768}
    assert_shape({"models": [example], "default_model": "x"}, answer.json())
    found = {model["id"]: model for model in answer.json()["models"]}
    assert found["Llama-3.3-1B"]["version"] == "3.3"
    assert "llama3.3" in found[answer.json()["default_model"]]["aliases"]


@PREFIXES
@pytest.mark.parametrize("name", ["Llama-3.3-1B", "org/Llama-3.3-1B.gguf"])
def test_a_model_is_loaded_by_name_or_path_and_becomes_the_active_one(
    client: httpx.Client, prefix: str, name: str
) -> None:
    answer = client.post(f"{prefix}/load_model", json={"model_path": name})
    assert answer.status_code == 200, answer.text
    assert_shape(DONE, answer.json())
    assert answer.json()["message"] == "Model loaded successfully"
    assert client.get("/api/models").json()["active_model"] == "Llama-3.3-1B"


@PREFIXES
def test_unloading_ends_the_worker_and_frees_its_memory(
    client: httpx.Client, models: RunningServer, prefix: str
) -> None:
    client.post("/api/load_model", json={"model_path": "Llama-3.3-1B"})
    workers = [pid for pid in models.descendants() if "Llama-3.3-1B.gguf" in " ".join(psutil.Process(pid).cmdline())]
    assert [psutil.Process(pid).memory_info().rss > MODEL.stat().st_size // 2 for pid in workers] == [True]
    answer = client.post(f"{prefix}/unload_model", json={"model": "Llama-3.3-1B"})
    assert answer.status_code == 200
    assert_shape(DONE, answer.json())
    assert answer.json()["message"] == "Model unloaded successfully"
    assert wait_until_gone(workers) == []
    assert_home_error(client.post("/api/unload_model", json={"model": "Llama-3.3-1B"}), 404)


def test_unloading_nothing_is_404_and_a_request_loads_again(client: httpx.Client) -> None:
    while client.get("/api/models").json().get("active_model"):
        assert client.post("/api/unload_model").status_code == 200
    assert_home_error(client.post("/api/unload_model"), 404)
    assert_home_error(client.post("/api/unload_model", json={}), 404)
    assert client.get("/api/health_check").json()["model_loaded"] is False
    assert client.post("/api/process_prompt", json=PROMPT).status_code == 200
    assert client.get("/api/health_check").json()["model_loaded"] is True


@pytest.mark.parametrize("body", [None, {}, {"model_path": ""}], ids=str)
def test_a_missing_path_is_400(client: httpx.Client, body: dict[str, str] | None) -> None:
    error = assert_home_error(client.post("/api/load_model", json=body), 400)
    assert error["details"] == {"field": "model_path"}


@pytest.mark.parametrize("path", ["../../../etc/passwd", "org/../../x.gguf"])
def test_a_path_outside_the_models_folder_is_400(client: httpx.Client, path: str) -> None:
    assert_home_error(client.post("/api/load_model", json={"model_path": path}), 400)


def test_an_absent_model_is_404(client: httpx.Client) -> None:
    for path in ("absent", "org/absent.gguf"):
        assert_home_error(client.post("/api/load_model", json={"model_path": path}), 404)


def test_a_model_that_does_not_load_is_500_and_says_why(client: httpx.Client) -> None:
    error = assert_home_error(client.post("/api/load_model", json={"model_path": "org/broken.gguf"}), 500)
    assert error["code"] == "model_load_failed"
    assert error["message"]
    state = {model["id"]: model["state"] for model in client.get("/api/models").json()["models"]}
    assert state["broken"] == "failed"
    assert client.post("/api/process_prompt", json=PROMPT).status_code == 200


def test_a_loads_parameters_become_the_models_defaults(client: httpx.Client) -> None:
    wanted = {"model_path": "Llama-3.3-1B", "temperature": 0.0, "max_tokens": 3, "context_length": 512}
    assert client.post("/api/load_model", json=wanted).status_code == 200
    found = {model["id"]: model for model in client.get("/api/models").json()["models"]}
    assert found["Llama-3.3-1B"]["context_length"] == 512
    assert client.get("/api/get_config").json()["models"]["Llama-3.3-1B"] == {"temperature": 0, "max_tokens": 3}
    body = {"prompt": "Hello!", "model": "Llama-3.3-1B"}
    assert client.post("/api/process_prompt", json=body).json()["finish_reason"] == "length"
    error = assert_home_error(client.post("/api/load_model", json={**wanted, "top_p": 2}), 400)
    assert "top_p" in error["details"]
