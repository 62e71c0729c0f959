from __future__ import annotations

import json
from typing import Any

import pytest

from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.tools import ToolOffer
from llamastead_server.domain.errors import Conflict, InvalidRequest, ValidationFailed
from llamastead_server.domain.models.generation import Message, ToolCall

USER = {"role": "user", "content": "Hello!"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def parse(**fields: Any) -> ChatRequest:
    return ChatRequest.parse({"messages": [USER], **fields})


WRONG: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, "warm", True, float("nan"), float("inf"), "NaN"],
    "top_p": [0, 1.1, -1, float("nan")],
    "top_k": [-1, 1.5, 10**9],
    "min_p": [-0.1, 1.1],
    "repeat_penalty": [0, 2.5, float("inf")],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "seed": [1.5, "x", 1e20],
    "max_tokens": [0, -1, 2.5, "10"],
    "max_completion_tokens": [0, -1],
    "stop": [[""], "", ["a"] * 17, [1], 5],
    "logit_bias": [{"x": 1}, {"5": 101}, {"5": float("nan")}, {"-1": 1}, {-1: 1}, {True: 1}, {"4294967296": 1}],
    "n": [0, 9, -1, 1.5, "2"],
    "top_logprobs": [-1, 21],
    "logprobs": ["yes"],
    "response_format": [
        {"type": "xml"},
        {},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"type": "text"}}}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": {"a": 1}}}},
    ],
    "stream": ["true"],
    "rag_enabled": ["no"],
    "rag_top_k": [0, 101, -1],
    "rag_score_threshold": [-0.1, 1.1, float("nan")],
    "sources_limit": [0, 51],
    "variables": [["a"]],
    "metadata": [{str(number): "x" for number in range(17)}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values], ids=str
)
def test_a_value_out_of_range_is_refused_naming_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationFailed) as refused:
        parse(**{field: value})
    assert any(key == field or key.startswith(f"{field}.") for key in refused.value.details)
    assert field in refused.value.message


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        (None, "messages"),
        ([], "at least one"),
        ("Hello!", "list"),
        (["Hello!"], "object"),
        ([{"role": "nobody", "content": "x"}], "nobody"),
        ([{"content": "x"}], "role is missing: give one of system, user"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": 5}], "content"),
        ([{"role": "user", "content": []}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}], "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text"),
        ([{"role": "system", "content": "Be brief."}], "nothing to answer"),
        ([USER, {"role": "assistant", "content": "Hi."}], "nothing to answer"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}, USER], "tool_calls"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "only an assistant"),
        ([{"role": "assistant", "content": None}, USER], "content"),
        ([{"role": "tool", "content": "x"}], "tool_call_id"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused(messages: Any, word: str) -> None:
    with pytest.raises(ValidationFailed, match=word):
        ChatRequest.parse({"messages": messages})


def test_more_messages_than_one_request_may_hold_are_refused_and_no_answer_repeats_them_all() -> None:
    assert len(parse(messages=[USER] * 10_000).messages) == 10_000
    with pytest.raises(ValidationFailed, match="messages: there are 10001; at most 10000 are accepted"):
        parse(messages=[USER] * 10_001)
    with pytest.raises(ValidationFailed) as caught:
        parse(messages=[{"role": "poet", "content": "Hello!"}] * 10_000)
    assert len(caught.value.details) == 100


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ValidationFailed) as refused:
        ChatRequest.parse({"messages": [], "temperature": 9, "top_p": 0})
    assert set(refused.value.details) == {"messages", "temperature", "top_p"}


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "letters"),
        ({"tools": [WEATHER, WEATHER]}, "twice"),
        ({"tools": [{"function": {"name": "x", "parameters": {"type": "array"}}}]}, "object"),
        ({"tools": [{"function": {"name": "x", "parameters": {"type": "object", "properties": 5}}}]}, "properties"),
        ({"tools": [{"function": {"name": f"f{number}"}} for number in range(129)]}, "128"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
    ],
    ids=str,
)
def test_wrong_tools_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationFailed, match=word):
        parse(**fields)


def test_calls_and_their_results_are_read() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    call = ToolCall("c1", "weather", '{"city":"Oslo"}')
    assert ChatRequest.parse({"messages": messages}).messages == [
        Message("user", "Hello!"),
        Message("assistant", "", (call,)),
        Message("tool", "rain", (), "c1"),
    ]


@pytest.mark.parametrize(
    ("given", "engine"),
    [(7, 7), (0, 0), (2**32 - 2, 2**32 - 2), (2**32 - 1, 0), (-1, 2**32 - 2), (2**53, 2**53 % (2**32 - 1)),
     (float(2**62), 2**62 % (2**32 - 1))],
)  # fmt: skip
def test_any_whole_seed_leads_to_one_the_engine_takes(given: float, engine: int) -> None:
    assert parse(seed=given).seed == engine


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("service_tier", "flex"),
        ("store", True),
        ("reasoning_effort", "high"),
        ("thinking_budget", 100),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("functions", [{"name": "x"}]),
        ("function_call", "auto"),
    ],
)
def test_what_the_server_does_not_do_is_refused_with_the_reason(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field} is not supported: \w+"):
        parse(**{field: value})


def test_values_that_ask_for_what_happens_anyway_are_taken() -> None:
    request = parse(
        modalities=["text"],
        service_tier="auto",
        store=False,
        verbosity="medium",
        functions=[],
        function_call="none",
        reasoning_effort="none",
        safety_identifier="me",
        prompt_cache_key="key",
    )
    assert request.think is False
    assert request.generation([], request).thinking is False


def test_a_form_of_the_answer_and_tools_exclude_each_other() -> None:
    request = parse(tools=[WEATHER], response_format={"type": "json_object"})
    offer = ToolOffer.of(request.tools, None, parallel=True, in_prompt=False)
    with pytest.raises(InvalidRequest, match="response_format can't be combined with tools"):
        request.generation([], request, offer)
    assert request.generation([], request).json_object


def test_nulls_labels_and_absent_tools_are_accepted() -> None:
    request = parse(
        temperature=None, tools=[], tool_choice="none", user="me", metadata={"a": "b"}, n=1, unknown=1, stop=None
    )
    assert request.temperature is None


def test_text_parts_are_joined_and_developer_means_system() -> None:
    request = ChatRequest.parse(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
                {"role": "system", "content": "Be kind."},
            ]
        }
    )
    assert request.system == "Be brief.\n\nBe kind."
    assert request.turns == [Message("user", "Hello")]


def test_every_field_reaches_the_engine() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    request = parse(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repeat_penalty=1.1,
        presence_penalty=1,
        frequency_penalty=-1,
        seed=7,
        max_tokens=100,
        max_completion_tokens=9,
        stop="end",
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    generation = request.generation([], request.parameters({}, source="x"))
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 3, 0.1)
    assert (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 1, -1)
    assert (sampling.seed, dict(sampling.logit_bias)) == (7, {5: -100})
    assert (generation.max_tokens, generation.stop, generation.top_logprobs) == (9, ("end",), 2)
    assert json.loads(generation.json_schema or "") == schema
    assert parse(response_format={"type": "json_object"}).generation([], request).json_object


def test_the_requests_values_stand_over_the_models_and_those_over_the_defaults() -> None:
    configured = {"temperature": 0.2, "max_tokens": 50, "stop": ["x"], "num_ctx": 4096}
    request = parse(temperature=0, max_completion_tokens=5)
    parameters = request.parameters(configured, source="model_api_parameters")
    assert (parameters.temperature, parameters.token_limit, parameters.stop) == (0, 5, ["x"])
    assert parse(max_tokens=5).parameters({"max_completion_tokens": 99}, source="x").token_limit == 5
    bare = parse().generation([], parse().parameters({}, source="x")).sampling
    assert (bare.temperature, bare.top_p, bare.top_k) == (0.7, 0.9, None)


def test_a_wrong_configured_parameter_is_the_projects_fault() -> None:
    with pytest.raises(Conflict, match=r"model_api_parameters is wrong: temperature"):
        parse().parameters({"temperature": 9}, source="model_api_parameters")


@pytest.mark.parametrize("strict", [True, False, None])
def test_what_is_asked_for_strictly_stays_strict(strict: bool | None) -> None:
    schema = {"name": "x", "schema": {"type": "boolean"}, "strict": strict}
    request = parse(response_format={"type": "json_schema", "json_schema": schema})
    assert request.generation((), request.parameters({}, source="")).json_strict is (strict is True)
    tool = parse(tools=[{"type": "function", "function": {"name": "f", "strict": strict}}]).tools[0]
    assert tool.plain()["function"].get("strict", False) is (strict is True)
