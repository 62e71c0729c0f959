"""Chat turns that call functions, with the scripted engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamastead_server.domain.chat.answer import AnswerEvent, CallDelta, TextDelta, TurnFinished
from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.turns import SessionChoice
from llamastead_server.domain.errors import Conflict, InvalidRequest, ModelNotFound, ValidationFailed
from llamastead_server.domain.models.generation import Message, ToolCall
from tests.chat_stack import REF, ChatStack, chat_stack

S = SessionChoice("s")
USER = {"role": "user", "content": "Is it raining in Oslo?"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = '{"name": "weather", "parameters": {"city": "Oslo"}}'


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ChatStack]:
    async with chat_stack(tmp_path) as stack:
        yield stack
        assert (stack.engine.active, stack.models.leases) == (0, 0)


async def run(stack: ChatStack, messages: Sequence[Any] = (USER,), **fields: Any) -> list[AnswerEvent]:
    request = ChatRequest.parse({"messages": list(messages), **fields})
    async with stack.turns.start(REF, request, S) as turn:
        return [event async for event in turn]


def text(events: Sequence[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def calls(events: Sequence[AnswerEvent]) -> list[tuple[int, str, Any]]:
    found = [event for event in events if isinstance(event, CallDelta)]
    return [(event.index, event.call.name, json.loads(event.call.arguments)) for event in found]


def reason(events: Sequence[AnswerEvent]) -> str:
    assert isinstance(events[-1], TurnFinished)
    return events[-1].reason


async def test_a_call_in_the_answer_is_a_call_and_the_history_keeps_it_exactly(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = list(CALL)
    events = await run(stack, tools=[WEATHER])
    assert (text(events), calls(events), reason(events)) == ("", [(0, "weather", {"city": "Oslo"})], "tool_calls")
    assert stack.engine.requests[0].tools == [
        {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": CITY}}
    ]
    call = next(event.call for event in events if isinstance(event, CallDelta))
    stack.engine.pieces = ["Yes."]
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    assert text(await run(stack, [result], tools=[WEATHER])) == "Yes."
    kept = [
        Message("user", USER["content"]),
        Message("assistant", "", (call,)),
        Message("tool", "rain", (), call.id),
        Message("assistant", "Yes."),
    ]
    assert stack.engine.requests[1].messages == kept[:3]
    assert await stack.sessions.history(REF, "s") == kept


async def test_a_client_that_repeats_the_conversation_is_not_recorded_twice(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = [CALL]
    events = await run(stack, tools=[WEATHER])
    call = next(event.call for event in events if isinstance(event, CallDelta))
    stack.engine.pieces = ["Yes."]
    made = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    repeated = {"role": "assistant", "content": None, "tool_calls": [made]}
    await run(stack, [USER, repeated, {"role": "tool", "tool_call_id": call.id, "content": "rain"}], tools=[WEATHER])
    assert [message.role for message in await stack.sessions.history(REF, "s")] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


async def test_several_calls_have_places_and_one_is_kept_when_they_may_not_be_parallel(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = [f"{CALL}; ", '{"name": "time", "parameters": {}}']
    both = [(0, "weather", {"city": "Oslo"}), (1, "time", {})]
    assert calls(await run(stack, tools=[WEATHER, TIME])) == both
    assert calls(await run(stack, tools=[WEATHER, TIME], parallel_tool_calls=False)) == both[:1]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", ["weather", "time"]), ({"type": "function", "function": {"name": "time"}}, ["time"])],
)
async def test_a_demanded_call_is_bound_by_the_functions_schemas(
    stack: ChatStack, choice: Any, names: list[str]
) -> None:
    await stack.project()
    stack.engine.pieces = ['{"name":"time",', '"arguments":{}}']
    assert calls(await run(stack, tools=[WEATHER, TIME], tool_choice=choice)) == [(0, "time", {})]
    schema = json.loads(stack.engine.requests[0].json_schema or "")
    branches = schema.get("anyOf", [schema])
    assert [branch["properties"]["name"]["const"] for branch in branches] == names
    parameters = schema["$defs"][branches[0]["properties"]["arguments"]["$ref"].removeprefix("#/$defs/")]
    assert parameters["additionalProperties"] is False


@pytest.mark.parametrize(
    ("fields", "pieces", "said"),
    [
        ({"tool_choice": "none"}, [CALL], CALL),
        ({}, ['{"name": "absent", "parameters": {}}'], '{"name": "absent", "parameters": {}}'),
    ],
)
async def test_what_is_no_call_is_text(stack: ChatStack, fields: dict[str, Any], pieces: list[str], said: str) -> None:
    await stack.project()
    stack.engine.pieces = pieces
    events = await run(stack, tools=[WEATHER], **fields)
    assert (text(events), calls(events), reason(events)) == (said, [], "stop")
    assert bool(stack.engine.requests[0].tools) == (not fields)


async def test_half_a_call_for_lack_of_room_ends_with_length_and_no_text(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = list(CALL)
    events = await run(stack, tools=[WEATHER], max_tokens=20)
    assert (text(events), calls(events), reason(events)) == ("", [], "length")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            "'weather' is not one",
        ),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c7", "content": "x"}]}, "'c7' answers no call"),
    ],
    ids=str,
)
async def test_what_does_not_fit_together_is_refused(stack: ChatStack, fields: dict[str, Any], word: str) -> None:
    await stack.project()
    with pytest.raises(ValidationFailed, match=word):
        await run(stack, **fields)
    assert not stack.engine.requests


CONFIGURED = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of {{country | Norway}}.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "In {{country}}."}}},
}


async def test_configured_tools_are_offered_filled_unless_the_request_brings_its_own(stack: ChatStack) -> None:
    await stack.project(runtime={"models": [{"name": "m", "model": "fake", "tools": [CONFIGURED]}]})
    await run(stack, variables={"country": "Sweden"})
    function = stack.engine.requests[0].tools[0]["function"]
    assert function["description"] == "Tells the weather of Sweden."
    assert function["parameters"]["properties"]["city"]["description"] == "In Sweden."
    await run(stack, tools=[TIME])
    assert [tool["function"]["name"] for tool in stack.engine.requests[1].tools] == ["time"]
    with pytest.raises(ValidationFailed, match=r"variables\.country"):
        await run(stack)


@pytest.mark.parametrize(
    ("mode", "alone", "together"),
    [
        (None, ["weather", "clock"], ["time", "weather"]),
        ("api_replace", ["weather", "clock"], ["time", "weather"]),
        ("api_supplement", ["weather", "clock"], ["clock", "time", "weather"]),
        ("config_only", ["weather", "clock"], ["weather", "clock"]),
    ],
)
async def test_the_tools_mode_says_what_becomes_of_a_requests_tools(
    stack: ChatStack, mode: str | None, alone: list[str], together: list[str]
) -> None:
    configured = [{"name": "weather", "description": "Ours."}, {"name": "clock"}]
    entry = {"name": "m", "model": "fake", "tools": configured, "tools_mode": mode}
    await stack.project(runtime={"models": [entry]})
    await run(stack)
    await run(stack, tools=[TIME, WEATHER])
    offered = [[tool["function"] for tool in request.tools] for request in stack.engine.requests]
    assert [[tool["name"] for tool in tools] for tools in offered] == [alone, together]
    by_name = {tool["name"]: tool for tool in offered[1]}
    assert by_name["weather"]["description"] == ("Ours." if mode == "config_only" else "Tells.")


async def test_configured_and_own_tools_together_are_bounded(stack: ChatStack) -> None:
    configured = [{"name": f"t{number}"} for number in range(128)]
    entry = {"name": "m", "model": "fake", "tools": configured, "tools_mode": "api_supplement"}
    await stack.project(runtime={"models": [entry]})
    with pytest.raises(InvalidRequest, match="129"):
        await run(stack, tools=[TIME])


async def test_a_wrong_configured_tool_is_the_projects_fault(stack: ChatStack) -> None:
    await stack.project(runtime={"models": [{"name": "m", "model": "fake", "tools": [{"name": "a b"}]}]})
    with pytest.raises(Conflict, match=r"runtime\.models\[m\]\.tools"):
        await run(stack)


async def test_prompt_based_tools_stand_in_the_system_prompt_and_calls_in_the_conversation(stack: ChatStack) -> None:
    model = {"name": "m", "model": "fake", "tool_call_strategy": "prompt_based", "tools": [CONFIGURED]}
    await stack.project(runtime={"models": [model]}, prompts=[{"content": "Be brief."}])
    stack.engine.pieces = [f"<tool_call>\n{CALL}\n</tool_call>"]
    events = await run(stack, variables={"country": "x"})
    assert calls(events) == [(0, "weather", {"city": "Oslo"})]
    asked = stack.engine.requests[0]
    assert not asked.tools
    assert asked.messages[0].content.startswith("Be brief.\n\nYou can call the functions below.")
    assert '"name": "weather"' in asked.messages[0].content
    call = next(event.call for event in events if isinstance(event, CallDelta))
    await run(stack, [{"role": "tool", "tool_call_id": call.id, "content": "rain"}], variables={"country": "x"})
    assert stack.engine.requests[1].messages[1:] == [
        Message("user", USER["content"]),
        Message("assistant", f'<tool_call>\n{{"name": "weather", "arguments": {call.arguments}}}\n</tool_call>'),
        Message("user", "<tool_response>\nrain\n</tool_response>"),
    ]
    assert (await stack.sessions.history(REF, "s"))[1] == Message("assistant", "", (call,))


async def test_a_question_is_never_trimmed_away_from_its_calls(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.context_length = 120
    for number in range(4):
        await run(stack, [{"role": "user", "content": f"q{number} " * 20}])
    stack.engine.pieces = [CALL]
    events = await run(stack, [{"role": "user", "content": "question " * 20}], tools=[TIME, WEATHER], max_tokens=5)
    call = next(event.call for event in events if isinstance(event, CallDelta))
    await run(stack, [{"role": "tool", "tool_call_id": call.id, "content": "rain " * 20}], max_tokens=5)
    seen = stack.engine.requests[-1].messages
    assert [message.role for message in seen[-3:]] == ["user", "assistant", "tool"]
    assert seen[-3].content.startswith("question")
    assert len(seen) < 11


async def test_a_smaller_window_holds_for_prompt_and_answer(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = ["x"] * 1000
    events = await run(stack, [{"role": "user", "content": "word " * 100}], n_ctx=128)
    assert isinstance(events[-1], TurnFinished)
    assert events[-1].usage.total_tokens == 128
    assert reason(events) == "length"
    with pytest.raises(ValidationFailed, match="n_ctx: the model was loaded with a window of 2048"):
        await run(stack, n_ctx=4096)


async def test_a_model_of_an_unlisted_host_is_not_found_before_any_work(stack: ChatStack) -> None:
    entry = {"name": "m", "provider": "openai", "model": "gpt", "base_url": "https://api.openai.com/v1"}
    await stack.project(runtime={"models": [entry]})
    with pytest.raises(ModelNotFound, match="LLAMASTEAD_REMOTE_HOSTS"):
        await run(stack)


async def test_old_rows_and_exact_calls_are_read_from_the_store(stack: ChatStack) -> None:
    call = ToolCall("c1", "weather", '{"city":  "Oslo"}')
    said = [Message("user", "x"), Message("assistant", "See:", (call,)), Message("tool", "rain", (), "c1")]
    async with stack.sessions.turn(REF, "s") as turn:
        await turn.commit(said)
    assert await stack.sessions.history(REF, "s") == said
