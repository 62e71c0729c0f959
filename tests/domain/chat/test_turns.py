from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamastead_server.domain.chat.answer import ChoiceFinished, TextDelta, TurnFinished
from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.turns import SessionChoice
from llamastead_server.domain.errors import (
    Conflict,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    RequestTimeout,
    ValidationFailed,
)
from llamastead_server.domain.models.generation import Message, Usage
from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.names import ProjectRef
from tests.chat_stack import REF, ChatStack, chat_stack, passage

S = SessionChoice("s")
EXAMPLE = [Message("user", "Hi?"), Message("assistant", "Hi.")]
RAG: dict[str, Any] = {"rag": {"databases": [{"name": "main_db"}, {"name": "second"}]}}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ChatStack]:
    async with chat_stack(tmp_path) as stack:
        yield stack
        assert stack.engine.active == 0
        assert stack.models.leases == 0
        assert not stack.sessions._seats


def ask(text: str = "Hello!", **fields: Any) -> ChatRequest:
    return ChatRequest.parse({"messages": [{"role": "user", "content": text}], **fields})


async def run(stack: ChatStack, request: ChatRequest, session: SessionChoice = S) -> tuple[str, TurnFinished]:
    text = ""
    async with stack.turns.start(REF, request, session) as turn:
        async for event in turn:
            if isinstance(event, TurnFinished):
                return text, event
            assert isinstance(event, TextDelta)
            text += event.text
    raise AssertionError("the turn did not finish")


async def test_a_turn_streams_text_and_ends_with_usage(stack: ChatStack) -> None:
    await stack.project()
    async with stack.turns.start(REF, ask()) as turn:
        events = [event async for event in turn]
    assert turn.started.model == "fake"
    assert turn.started.session_id
    assert [event.text for event in events[:-1] if isinstance(event, TextDelta)] == ["Hello", ", ", "world", "."]
    assert isinstance(events[-1], TurnFinished)
    assert events[-1].usage.completion_tokens == 4


async def test_history_follows_into_the_next_prompt(stack: ChatStack) -> None:
    await stack.project(prompts=[{"role": "system", "content": "Be {{how | brief}}."}])
    await run(stack, ask("one"))
    await run(stack, ask("two", variables={"how": "kind"}))
    assert stack.engine.requests[1].messages == [
        Message("system", "Be kind."),
        Message("user", "one"),
        Message("assistant", "Hello, world."),
        Message("user", "two"),
    ]
    answer = ("assistant", "Hello, world.")
    assert await stack.history() == [("user", "one"), answer, ("user", "two"), answer]


async def test_the_history_is_complete_when_the_end_is_seen(stack: ChatStack) -> None:
    await stack.project()
    async with stack.turns.start(REF, ask(), S) as turn:
        async for event in turn:
            assert bool(await stack.history()) == isinstance(event, TurnFinished)


async def test_a_request_system_message_replaces_the_configured_one_and_is_not_kept(stack: ChatStack) -> None:
    await stack.project(prompts=[{"role": "system", "content": "Configured {{absent}}."}])
    system = {"role": "system", "content": "Own."}
    await run(stack, ChatRequest.parse({"messages": [system, {"role": "user", "content": "x"}]}))
    assert stack.engine.requests[0].messages == [Message("system", "Own."), Message("user", "x")]
    assert [role for role, _ in await stack.history()] == ["user", "assistant"]
    with pytest.raises(ValidationFailed, match=r"variables\.absent"):
        await run(stack, ask())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, [Message("system", "Own.")]),
        ("api_replace", [Message("system", "Own.")]),
        (
            "api_supplement",
            [Message("system", "Be brief.\n\nOwn."), Message("user", "Hi?"), Message("assistant", "Hi.")],
        ),
        ("config_only", [Message("system", "Be brief."), Message("user", "Hi?"), Message("assistant", "Hi.")]),
    ],
)
async def test_the_prompts_mode_says_what_becomes_of_a_requests_system_message(
    stack: ChatStack, mode: str | None, expected: list[Message]
) -> None:
    configured = [("system", "Be {{how}}."), ("user", "Hi?"), ("assistant", "Hi.")]
    await stack.project(
        prompts=[{"role": role, "content": content} for role, content in configured],
        runtime={"models": [{"name": "m", "model": "fake", "prompts_mode": mode}]},
    )
    messages = [{"role": "system", "content": "Own."}, {"role": "user", "content": "x"}]
    await run(stack, ChatRequest.parse({"messages": messages, "variables": {"how": "brief"}}))
    assert stack.engine.requests[0].messages == [*expected, Message("user", "x")]


async def test_concurrent_turns_of_a_session_alternate(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.delay = 0.002
    await asyncio.gather(*(run(stack, ask(str(number))) for number in range(10)))
    assert [role for role, _ in await stack.history()] == ["user", "assistant"] * 10
    assert stack.engine.peak == 1


async def test_turns_of_different_sessions_run_together(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.delay = 0.01
    await asyncio.gather(*(run(stack, ask(), SessionChoice(f"s{number}")) for number in range(4)))
    assert stack.engine.peak == 4


@pytest.mark.parametrize("stage", ["prefill", "answer"])
async def test_a_cancelled_turn_frees_the_engine_and_keeps_nothing(stack: ChatStack, stage: str) -> None:
    await stack.project()
    if stage == "prefill":
        stack.engine.prefill_delay = 60
    else:
        stack.engine.gate = asyncio.Event()
    task = asyncio.create_task(run(stack, ask()))
    async with asyncio.timeout(5):
        while not stack.engine.active:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (stack.engine.active, stack.engine.closed) == (0, 1)
    assert await stack.history() == []


async def test_leaving_a_turn_early_keeps_nothing(stack: ChatStack) -> None:
    await stack.project()
    async with stack.turns.start(REF, ask(), S) as turn:
        async for _ in turn:
            break
    assert (stack.engine.active, stack.engine.closed) == (0, 1)
    assert await stack.history() == []


async def test_a_failure_in_the_middle_is_raised_and_keeps_nothing(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = list("abcdefgh")
    stack.engine.fail_at = 5
    seen: list[str] = []

    async def read() -> None:
        async with stack.turns.start(REF, ask(), S) as turn:
            async for event in turn:
                assert isinstance(event, TextDelta)
                seen.append(event.text)

    with pytest.raises(EngineFailed):
        await read()
    assert seen == list("abcde")
    assert await stack.history() == []
    stack.engine.fail_at = None
    assert (await run(stack, ask()))[0] == "abcdefgh"


@pytest.mark.parametrize("stage", ["prefill_delay", "delay"])
async def test_a_turn_that_takes_too_long_times_out_and_keeps_nothing(stack: ChatStack, stage: str) -> None:
    await stack.project()
    setattr(stack.engine, stage, 60)
    stack.turns = stack.with_timeout(0.05)
    with pytest.raises(RequestTimeout, match=r"0\.05 seconds"):
        await run(stack, ask())
    assert await stack.history() == []


async def test_a_model_is_kept_on_behalf_of_the_entry_that_says_so(stack: ChatStack) -> None:
    models = [{"name": "hot", "model": "fake", "keep_loaded": True}, {"name": "cold", "model": "fake"}]
    await stack.project(runtime={"models": models})
    for name in ("hot", "cold"):
        await run(stack, ask(model=name))
    async with stack.turns.start(None, ask()) as turn:
        await turn.whole()
    assert stack.models.keepers == [Keeper(REF, "hot", True), Keeper(REF, "cold", False), None]


async def test_several_answers_come_one_after_another_and_the_session_remembers_the_first(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.pieces = ["one"]
    async with stack.turns.start(REF, ask("Hello!", n=3, seed=7), S) as turn:
        seen: list[Any] = []
        async for event in turn:
            seen.append(event)
            # Each answer differs, as a model's would.
            stack.engine.pieces = ["two"] if isinstance(event, ChoiceFinished) else stack.engine.pieces
            assert bool(await stack.history()) == isinstance(event, TurnFinished)
    assert [event.choice for event in seen] == [0, 0, 1, 1, 2, 2]
    assert [event.text for event in seen if isinstance(event, TextDelta)] == ["one", "two", "two"]
    assert [type(event) for event in seen if not isinstance(event, TextDelta)] == [
        ChoiceFinished,
        ChoiceFinished,
        TurnFinished,
    ]
    assert await stack.history() == [("user", "Hello!"), ("assistant", "one")]
    assert [request.sampling.seed for request in stack.engine.requests] == [7, 8, 9]
    assert len({tuple(request.messages) for request in stack.engine.requests}) == 1
    assert stack.engine.peak == 1
    alone = (await run(stack, ask("Hello!"), SessionChoice(stateless=True)))[1].usage
    assert seen[-1].usage == Usage(alone.prompt_tokens, 3 * alone.completion_tokens, alone.cached_tokens)


async def test_a_failure_in_a_later_answer_is_raised_and_keeps_nothing(stack: ChatStack) -> None:
    await stack.project()

    async def read() -> None:
        async with stack.turns.start(REF, ask(n=2), S) as turn:
            async for event in turn:
                if isinstance(event, ChoiceFinished):
                    stack.engine.fail_at = 1

    with pytest.raises(EngineFailed):
        await read()
    assert await stack.history() == []


async def test_leaving_a_turn_in_a_later_answer_frees_the_engine(stack: ChatStack) -> None:
    await stack.project()
    async with stack.turns.start(REF, ask(n=2), S) as turn:
        async for event in turn:
            if event.choice == 1:
                break
        assert stack.engine.active == 1
    assert stack.engine.active == 0
    assert await stack.history() == []


async def test_a_later_answer_has_no_more_time_than_the_turn(stack: ChatStack) -> None:
    await stack.project()
    stack.turns = stack.with_timeout(0.2)

    async def read() -> None:
        async with stack.turns.start(REF, ask(n=2), S) as turn:
            async for event in turn:
                if isinstance(event, ChoiceFinished):
                    stack.engine.prefill_delay = 60

    with pytest.raises(RequestTimeout):
        await read()


async def test_deleting_the_session_during_its_turn_keeps_nothing_of_it(stack: ChatStack) -> None:
    await stack.project()
    async with stack.turns.start(REF, ask(), S) as turn:
        await stack.sessions.delete(REF, "s")
        assert isinstance([event async for event in turn][-1], TurnFinished)
    assert await stack.history() == []


async def test_stateless_turns_know_and_keep_nothing(stack: ChatStack) -> None:
    await stack.project()
    await run(stack, ask("one"))
    async with stack.turns.start(REF, ask("two"), SessionChoice("s", stateless=True)) as turn:
        assert turn.started.session_id is None
        assert isinstance([event async for event in turn][-1], TurnFinished)
    assert len(await stack.history()) == 2
    assert stack.engine.requests[1].messages == [Message("user", "two")]


async def test_characters_split_over_tokens_arrive_whole(stack: ChatStack) -> None:
    await stack.project()
    text = "日本語 👩‍👩‍👧 ď"
    stack.engine.pieces = [bytes([byte]) for byte in text.encode()]
    streamed, _ = await run(stack, ask())
    assert streamed == text
    assert (await stack.history())[-1] == ("assistant", text)


async def test_passages_reach_the_prompt_and_the_caller(stack: ChatStack) -> None:
    await stack.project(**RAG)
    stack.shelf.sources = [passage()]
    async with stack.turns.start(REF, ask("When does it close?", rag_top_k=7, rag_score_threshold=0.2), S) as turn:
        assert turn.started.sources == [passage()]
        assert isinstance([event async for event in turn][-1], TurnFinished)
    assert stack.shelf.asked == [
        {
            "question": "When does it close?",
            "database": "main_db",
            "strategy": None,
            "top_k": 7,
            "score_threshold": 0.2,
        }
    ]
    system = stack.engine.requests[0].messages[0]
    assert system.role == "system"
    assert "It closes at nine." in system.content
    assert [role for role, _ in await stack.history()] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("model", "request_fields", "database"),
    [
        ({}, {}, "main_db"),
        ({}, {"rag_enabled": False}, None),
        ({"rag_enabled": False}, {}, None),
        ({"rag_enabled": False}, {"rag_enabled": True}, "main_db"),
        ({"target_database": "second"}, {}, "second"),
        ({"target_database": "second"}, {"database": "main_db"}, "main_db"),
    ],
    ids=str,
)
async def test_retrieval_is_chosen_by_request_then_model_then_project(
    stack: ChatStack, model: dict[str, Any], request_fields: dict[str, Any], database: str | None
) -> None:
    await stack.project(**RAG, runtime={"models": [{"name": "m", "model": "fake", **model}]})
    await run(stack, ask(**request_fields))
    assert [asked["database"] for asked in stack.shelf.asked] == ([] if database is None else [database])


async def test_a_project_without_databases_answers_without_passages(stack: ChatStack) -> None:
    await stack.project()
    await run(stack, ask(rag_enabled=True))
    assert stack.shelf.asked == []
    with pytest.raises(NotFound, match="absent"):
        await run(stack, ask(rag_enabled=True, database="absent"))


async def test_the_models_parameters_stand_under_the_requests(stack: ChatStack) -> None:
    model = {"name": "m", "model": "fake", "model_api_parameters": {"temperature": 0.1, "max_tokens": 2}}
    await stack.project(runtime={"models": [model]})
    _, end = await run(stack, ask(temperature=0))
    assert stack.engine.requests[0].sampling.temperature == 0
    assert stack.engine.requests[0].max_tokens == 2
    assert end.reason == "length"


async def test_models_are_found_by_entry_by_model_string_and_by_installed_name(stack: ChatStack) -> None:
    await stack.project(runtime={"models": [{"name": "fast", "provider": "ollama", "model": "llama3.2:3b"}]})
    for name, shown in (
        (None, "fast"),
        ("", "fast"),
        ("fast", "fast"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("fake", "fake"),
    ):
        async with stack.turns.start(REF, ask(model=name)) as turn:
            assert turn.started.model == shown
    with pytest.raises(ModelNotFound, match=r"'absent' is not configured in this project\. Configured: fast"):
        await run(stack, ask(model="absent"))


async def test_a_configured_model_that_is_not_installed_is_named(stack: ChatStack) -> None:
    await stack.project(runtime={"model": "llama3:70b"})
    with pytest.raises(ModelNotFound, match="llama3:70b"):
        await run(stack, ask())


async def test_a_message_longer_than_the_window_is_refused_before_the_first_event(stack: ChatStack) -> None:
    await stack.project()
    await run(stack, ask("one"))
    with pytest.raises(ContextLengthExceeded) as refused:
        async with stack.turns.start(REF, ask("word " * 3000), S):
            raise AssertionError("the turn must not start")
    assert refused.value.details["context_length"] == "2048"
    assert len(await stack.history()) == 2


async def test_history_that_no_longer_fits_is_trimmed_and_said(stack: ChatStack) -> None:
    await stack.project()
    stack.engine.context_length = 100
    for number in range(4):
        await run(stack, ask(f"q{number} " * 20))  # with its answer, 24 tokens
    async with stack.turns.start(REF, ask("last", max_tokens=20), S) as turn:
        assert str(turn.started.trimmed) == "turns=1"
        assert isinstance([event async for event in turn][-1], TurnFinished)
    assert stack.engine.requests[-1].messages[0].content.startswith("q1")
    assert len(await stack.history()) == 10


async def test_a_template_that_adds_more_than_reckoned_is_fitted_then(
    stack: ChatStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stack.project()
    for number in range(4):
        await run(stack, ask(f"q{number} " * 20))
    stack.engine.context_length = 60
    monkeypatch.setattr("llamastead_server.domain.chat.prompt.Prompt.surely_fits", lambda *_: True)
    async with stack.turns.start(REF, ask("last", max_tokens=5), S) as turn:
        assert turn.started.trimmed.turns == 2


@pytest.mark.parametrize(
    ("broken", "error"),
    [("absent", NotFound), ("session", InvalidRequest), ("yaml", Conflict)],
)
async def test_what_fails_fails_before_any_work(
    stack: ChatStack, tmp_path: Path, broken: str, error: type[Exception]
) -> None:
    await stack.project(runtime={"model": "fake"})
    if broken == "yaml":
        (tmp_path / "projects" / "org" / "bot" / "llamafarm.yaml").write_text("runtime: [")
    ref = ProjectRef("org", "absent") if broken == "absent" else REF
    with pytest.raises(error):
        async with stack.turns.start(ref, ask(), SessionChoice("../x" if broken == "session" else "s")):
            raise AssertionError("the turn must not start")
    assert not stack.engine.requests
