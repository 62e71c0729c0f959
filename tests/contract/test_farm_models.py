"""LlamaFarm's document, section "Multi-Model Support", and models that other servers hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.contract.shape import assert_shape
from tests.remote_server import called, ended, remote_server, said
from tests.running_server import RunningServer, running

HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0}
DOCUMENTED = {
    "models": [
        {"name": "fast-model", "provider": "ollama", "model": "llama3.2:3b"},
        {"name": "smart-model", "provider": "ollama", "model": "llama3.2:70b"},
    ],
    "default_model": "fast-model",
}


def project(http: httpx.Client, name: str, runtime: dict[str, Any]) -> str:
    """Makes a project with this runtime and gives its path."""
    http.post("/v1/projects/models", json={"name": name}).raise_for_status()
    config = {"version": "v1", "name": name, "namespace": "models", "runtime": runtime}
    http.put(f"/v1/projects/models/{name}", json={"config": config}).raise_for_status()
    return f"/v1/projects/models/{name}"


def test_the_documented_configuration_answers_by_entry_and_by_default(http: httpx.Client) -> None:
    path = project(http, "documented", DOCUMENTED)
    for fields, model in (({}, "fast-model"), ({"model": "smart-model"}, "smart-model")):
        answer = http.post(f"{path}/chat/completions", json={**HELLO, **fields})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == model


def test_the_models_of_a_project_are_listed_truly(http: httpx.Client, server: RunningServer) -> None:
    runtime = {
        **DOCUMENTED,
        "models": [*DOCUMENTED["models"], {"name": "absent", "provider": "universal", "model": "x/y"}],
    }
    path = project(http, "listed", runtime)
    http.post(f"{path}/chat/completions", json=HELLO).raise_for_status()
    answer = http.get(f"{path}/models").json()
    assert_shape({"total": 3, "models": [{"name": "fast-model", "provider": "ollama", "default": True}]}, answer)
    fast, smart, absent = answer["models"]
    assert_shape(
        {
            "model": "llama3.2:3b",
            "prompts": [],
            "tool_call_strategy": "native_api",
            "tools": [],
            "keep_loaded": False,
            "runtime_status": "loaded",
            "runtime_loaded": True,
            "runtime_running": True,
            "runtime_host": "localhost",
            "memory_usage_bytes": 1,
            "memory_usage_human": "0.1GB",
            "uptime_seconds": 1.5,
            "uptime_human": "1s",
            "runtime_details": {"name": "llamastead-tiny-4m", "engine": "llamacpp", "context_length": 2048},
        },
        fast,
    )
    assert [entry["default"] for entry in answer["models"]] == [True, False, False]
    assert smart["runtime_status"] == "loaded"
    assert (absent["runtime_status"], absent["runtime_loaded"]) == ("not_installed", False)
    assert "llamastead pull" in absent["runtime_message"]
    assert [entry["id"] for entry in answer["data"]] == ["fast-model", "smart-model", "absent"]
    client = openai.OpenAI(base_url=f"{server.url}{path}", api_key="x", max_retries=0)
    assert [model.id for model in client.models.list()] == ["fast-model", "smart-model", "absent"]


@pytest.mark.parametrize("provider", ["llamastead", "universal", "ollama", "lemonade", "openai"])
def test_a_model_that_is_not_installed_answers_404_and_says_what_to_do(http: httpx.Client, provider: str) -> None:
    path = project(http, f"absent-{provider}", {"models": [{"name": "m", "provider": provider, "model": "some/model"}]})
    for stream in (False, True):
        answer = http.post(f"{path}/chat/completions", json={**HELLO, "stream": stream})
        assert answer.status_code == 404
        for word in ("some/model", "llamastead-tiny-4m", "llamastead pull", "LLAMASTEAD_MODEL_ALIASES"):
            assert word in answer.json()["detail"]
        assert answer.json()["error"]["code"] == "model_not_found"


def test_a_host_that_is_not_listed_is_never_called(http: httpx.Client) -> None:
    entry = {"provider": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "sk-secret"}
    models = [{"name": "far", "model": "gpt", **entry}, {"name": "near", "model": "llamastead-tiny-4m", **entry}]
    path = project(http, "unlisted", {"models": models})
    refused = http.post(f"{path}/chat/completions", json=HELLO)
    assert refused.status_code == 404
    assert "LLAMASTEAD_REMOTE_HOSTS" in refused.json()["detail"]
    assert http.post(f"{path}/chat/completions", json={**HELLO, "model": "near"}).status_code == 200
    far = http.get(f"{path}/models").json()["models"][0]
    assert (far["runtime_status"], far["base_url"]) == ("not_installed", "http://127.0.0.1:9/v1")
    assert "sk-secret" not in http.get(f"{path}/models").text


async def test_a_listed_host_answers_and_its_failures_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_KEY", "sk-from-the-environment")
    async with remote_server() as remote:
        settings = {"LLAMASTEAD_REMOTE_HOSTS": f"{remote.host},127.0.0.1:9"}
        with running(tmp_path, settings=settings) as server:
            with httpx.Client(base_url=server.url, timeout=60) as http:
                models = [
                    {"name": "far", "provider": "openai", "model": "gpt", "base_url": remote.base_url,
                     "api_key": "${env:REMOTE_KEY}"},
                    {"name": "down", "provider": "openai", "model": "gpt", "base_url": "http://127.0.0.1:9/v1"},
                ]  # fmt: skip
                chat = project(http, "remote", {"models": models}) + "/chat/completions"
                listed = http.get("/v1/projects/models/remote/models").json()["models"][0]
            assert (listed["runtime_status"], listed["runtime_host"]) == ("remote", remote.host)
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                whole = await client.post(chat, json=HELLO, headers={"X-Session-ID": "far"})
                assert whole.status_code == 200, whole.text
                assert whole.json()["choices"][0]["message"]["content"] == "Hello there."
                assert whole.json()["usage"]["total_tokens"] == 11
                assert remote.asked[0][1]["authorization"] == "Bearer sk-from-the-environment"
                streamed = await client.post(chat, json={**HELLO, "stream": True}, headers={"X-Session-ID": "far"})
                assert streamed.text.endswith("data: [DONE]\n\n")
                assert [message["role"] for message in remote.asked[1][2]["messages"]] == ["user", "assistant", "user"]

                remote.chunks = [called(0, name="weather", arguments="{}"), ended("tool_calls")]
                tool = {"type": "function", "function": {"name": "weather"}}
                calls = (await client.post(chat, json={**HELLO, "tools": [tool]})).json()["choices"][0]
                assert (calls["finish_reason"], calls["message"]["tool_calls"][0]["id"]) == ("tool_calls", "c0")

                down = await client.post(chat, json={**HELLO, "model": "down"})
                assert (down.status_code, "127.0.0.1:9" in down.json()["detail"]) == (503, True)
                for status, expected in ((401, 503), (404, 404), (429, 503), (400, 400), (500, 503), (307, 503)):
                    remote.status = status
                    refused = await client.post(chat, json={**HELLO, "stream": True})
                    assert refused.status_code == expected, refused.text
                    assert remote.host in refused.json()["detail"]

                remote.status, remote.chunks, remote.cut = 200, [said("half")], True
                late = await client.post(chat, json={**HELLO, "stream": True})
                *_, error = [block for block in late.text.split("\n\n") if block]
                assert "ended the answer" in json.loads(error.removeprefix("data: "))["error"]["message"]

                remote.chunks, remote.pause = [said("word ")] * 10_000, 0.001
                async with client.stream("POST", chat, json={**HELLO, "stream": True}) as answer:
                    await anext(answer.aiter_lines())
                await remote.left.wait()
        assert "sk-from-the-environment" not in server.log
