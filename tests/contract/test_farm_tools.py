"""Function calling through the whole server: OpenAI's words, on a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import jsonschema
import openai
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from llamastead.v1 import chat_pb2, chat_pb2_grpc
from tests.running_server import RunningServer, running
from tests.tool_model import make_tool_model

CHAT = "/v1/projects/tools/bot/chat/completions"
SESSIONS = "/v1/projects/tools/bot/chat/sessions"
ASK = [{"role": "user", "content": "Is it raining in Oslo?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Bergen"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "days", "where"],
    "$defs": {"place": {"type": "object", "properties": {"inside": {"type": "boolean"}}, "required": ["inside"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time"}}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("tooled")
    make_tool_model(folder / "data" / "models")
    with running(folder) as server:
        projects = f"{server.url}/v1/projects/tools"
        httpx.post(projects, json={"name": "bot"}).raise_for_status()
        models = [
            {"name": "tooled", "model": "tooled"},
            {"name": "plain", "model": "llamastead-tiny-4m"},
            {"name": "prompted", "model": "llamastead-tiny-4m", "tool_call_strategy": "prompt_based"},
            {
                "name": "equipped",
                "model": "tooled",
                "tools": [{"type": "function", "name": "time", "description": "In {{zone | UTC}}."}],
            },
        ]
        config = {"version": "v1", "name": "bot", "namespace": "tools", "runtime": {"models": models}}
        httpx.put(f"{projects}/bot", json={"config": config}).raise_for_status()
        yield server


@pytest.fixture
def http(tooled: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tooled.url, timeout=60) as client:
        yield client


def check(call: Any) -> None:
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)


@pytest.mark.parametrize("choice", ["required", NAMED], ids=str)
@pytest.mark.parametrize("model", ["tooled", "prompted"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_demanded_call_always_satisfies_its_schema(http: httpx.Client, choice: Any, model: str, seed: int) -> None:
    body = {
        "model": model,
        "messages": ASK,
        "tools": [WEATHER],
        "tool_choice": choice,
        "temperature": 1.5,
        "seed": seed,
    }
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    (call,) = choice["message"]["tool_calls"]
    check(call)


def test_one_of_several_functions_is_called(http: httpx.Client) -> None:
    body = {"messages": ASK, "tools": [WEATHER, TIME], "tool_choice": "required", "temperature": 1.5}
    for seed in range(4):
        call = http.post(CHAT, json={**body, "seed": seed}).json()["choices"][0]["message"]["tool_calls"][0]["function"]
        schema = PARAMETERS if call["name"] == "weather" else {"type": "object", "maxProperties": 0}
        jsonschema.validate(json.loads(call["arguments"]), schema)


def test_a_conversation_with_calls_is_streamed_continued_and_kept(http: httpx.Client) -> None:
    session = {"X-Session-ID": "calls"}
    body = {"messages": ASK, "tools": [WEATHER], "temperature": 0}
    answer = http.post(CHAT, json={**body, "tool_choice": NAMED, "stream": True}, headers=session)
    *chunks, done = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block]
    assert done == "[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    head, *arguments = [part for choice in choices for part in choice["delta"].get("tool_calls", ())]
    assert (head["index"], head["type"], head["function"]) == (0, "function", {"name": "weather", "arguments": ""})
    written = "".join(part["function"]["arguments"] for part in arguments)
    assert all(set(part) == {"index", "function"} for part in arguments)
    jsonschema.validate(json.loads(written), PARAMETERS)
    assert not any(choice["delta"].get("content") for choice in choices)
    assert choices[-1]["finish_reason"] == "tool_calls"

    result = {"role": "tool", "tool_call_id": head["id"], "content": "rain"}
    second = http.post(CHAT, json={**body, "messages": [result], "max_tokens": 8}, headers=session)
    assert second.status_code == 200, second.text
    history = http.get(f"{SESSIONS}/calls/history").json()["messages"]
    made = {"id": head["id"], "type": "function", "function": {"name": "weather", "arguments": written}}
    assert [message["role"] for message in history] == ["user", "assistant", "tool", "assistant"]
    assert (history[1]["content"], history[1]["tool_calls"]) == (None, [made])
    assert (history[2]["content"], history[2]["tool_call_id"]) == ("rain", head["id"])
    # The same conversation sent whole is the same prompt.
    whole = [*ASK, {"role": "assistant", "content": None, "tool_calls": [made]}, result]
    stateless = http.post(CHAT, json={**body, "messages": whole, "max_tokens": 8}, headers={"X-No-Session": "0"})
    assert stateless.json()["usage"]["prompt_tokens"] == second.json()["usage"]["prompt_tokens"]


def test_tools_are_shown_to_the_model(http: httpx.Client) -> None:
    sizes = {
        name: http.post(CHAT, json={"messages": ASK, "max_tokens": 1, **fields}).json()["usage"]["prompt_tokens"]
        for name, fields in {
            "bare": {},
            "offered": {"tools": [WEATHER]},
            "configured": {"model": "equipped"},
            "none": {"tools": [WEATHER], "tool_choice": "none"},
        }.items()
    }
    assert sizes["bare"] == sizes["none"] < sizes["configured"] < sizes["offered"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_tools_in_its_template_answers_400_and_is_named(http: httpx.Client, stream: bool) -> None:
    answer = http.post(CHAT, json={"model": "plain", "messages": ASK, "tools": [WEATHER], "stream": stream})
    assert answer.status_code == 400
    assert "llamastead-tiny-4m" in answer.json()["detail"]
    assert "tool_call_strategy" in answer.json()["detail"]


def test_thinking_is_asked_of_templates_that_know_it(http: httpx.Client) -> None:
    body = {"messages": ASK, "max_tokens": 1}
    sizes = [
        http.post(CHAT, json={**body, **fields}).json()["usage"]["prompt_tokens"]
        for fields in ({}, {"think": False}, {"reasoning_effort": "none"}, {"think": True})
    ]
    assert sizes[0] == sizes[1] == sizes[2] < sizes[3]
    refused = http.post(CHAT, json={**body, "model": "plain", "think": True})
    assert refused.status_code == 400
    assert "thinking" in refused.json()["detail"]


def test_a_schema_that_the_engine_cannot_bind_answers_400(http: httpx.Client) -> None:
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/absent"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    answer = http.post(CHAT, json={"messages": ASK, "tools": [tool], "tool_choice": "required"})
    assert answer.status_code == 400
    assert "schema" in answer.json()["detail"]


def test_the_openai_sdk_reads_whole_and_streamed_calls(tooled: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{tooled.url}/v1/projects/tools/bot", api_key="unused", max_retries=0)
    arguments: dict[str, Any] = {"model": "", "messages": ASK, "tools": [WEATHER], "tool_choice": NAMED, "seed": 2**62}
    message = client.chat.completions.create(**arguments).choices[0].message
    assert message.tool_calls is not None
    check(message.tool_calls[0].model_dump())
    with client.chat.completions.stream(**arguments) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].finish_reason == "tool_calls"
    check(final.choices[0].message.tool_calls[0].model_dump())


def test_typed_calls_carry_the_same(tooled: RunningServer) -> None:
    body = {
        "namespace": "tools",
        "project": "bot",
        "messages": ASK,
        "tools": [WEATHER],
        "tool_choice": NAMED,
        "seed": 1,
    }
    request = ParseDict(body, chat_pb2.CreateChatCompletionRequest())
    for address in tooled.grpc_addresses:
        with grpc.insecure_channel(address) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            whole = stub.CreateChatCompletion(request)
            check(MessageToDict(whole.choices[0].message.tool_calls[0]))
            assert whole.choices[0].message.content.WhichOneof("kind") == "null_value"
            parts = [part for chunk in stub.StreamChatCompletion(request) for choice in chunk.choices
                     for part in choice.delta.tool_calls]  # fmt: skip
            assert parts[0].function.name == "weather"
            jsonschema.validate(json.loads("".join(part.function.arguments for part in parts)), PARAMETERS)
