"""The CPU engine through its worker process, on the model on board."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import llamastead_server
from llamastead_server.adapters.engine import WorkerEngine
from llamastead_server.adapters.loaded_model import EngineProbe
from llamastead_server.adapters.supervision import Supervision
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, Overloaded
from llamastead_server.domain.models.generation import (
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Message,
    ModelCard,
    Sampling,
    Started,
    TokenLogprob,
)

MODEL = next((Path(llamastead_server.__file__).parent / "models").glob("*.gguf"))
CARD = ModelCard(MODEL.stem, MODEL.name, "gguf", "llamacpp", MODEL.stat().st_size)
WINDOW = 2048
GREEDY = Sampling(temperature=0)
ENDLESS = Sampling(temperature=0, logit_bias={70: 100.0})
QUESTION = (Message("system", "You are kind."), Message("user", "What is the capital of France?"))
QUICK = Supervision(
    start_timeout=60, heartbeat_interval=0.2, heartbeat_timeout=2, heartbeat_failures=2, first_backoff=0.05
)


class Running:
    def __init__(self) -> None:
        arguments = ["--model", str(MODEL), "--context-length", str(WINDOW), "--slots", "4", "--threads", "1"]
        self.worker = WorkerProcess("engine", "llamastead_server.workers.engine", arguments, EngineProbe(), QUICK)
        self.engine = WorkerEngine(CARD, self.worker, context_length=WINDOW, slots=4, queue=2)

    async def events(self, **request: Any) -> list[GenerationEvent]:
        request = {"messages": QUESTION, "sampling": GREEDY, "max_tokens": 24, **request}
        if "prompt" in request:
            del request["messages"]
        async with aclosing(self.engine.generate(GenerationRequest(**request))) as events:
            return [event async for event in events]

    async def text(self, **request: Any) -> str:
        return text_of(await self.events(**request))

    async def idle(self) -> None:
        async with asyncio.timeout(20):
            while (await self.engine.status()).active_requests:
                await asyncio.sleep(0.01)


def text_of(events: Sequence[GenerationEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def finished(events: Sequence[GenerationEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def forced(running_tokens: Sequence[int]) -> dict[int, float]:
    return dict.fromkeys(running_tokens, 100.0)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    await running.worker.start()
    yield running
    await running.worker.stop()


async def test_a_completion_starts_streams_and_ends_with_its_cost(running: Running) -> None:
    events = await running.events()
    assert isinstance(events[0], Started)
    assert all(isinstance(event, Delta) for event in events[1:-1])
    end = finished(events)
    assert end.usage.prompt_tokens == (await running.engine.count_tokens(QUESTION)).total
    assert 0 < end.usage.completion_tokens <= 24


async def test_counts_add_up(running: Running) -> None:
    count = await running.engine.count_tokens(QUESTION)
    assert sum(count.per_message) == count.total
    assert len(count.per_message) == 2


async def test_max_tokens_ends_with_length(running: Running) -> None:
    end = finished(await running.events(prompt="Once upon a time", max_tokens=3, sampling=ENDLESS))
    assert (end.reason, end.usage.completion_tokens) == ("length", 3)


async def test_more_tokens_than_the_engine_can_count_are_as_many_as_fit(running: Running) -> None:
    prompt = "one two " * 900
    for most in (2**32 - 1, 10**12):
        end = finished(await running.events(prompt=prompt, max_tokens=most, sampling=Sampling(seed=1)))
        assert end.usage.completion_tokens > 0


async def test_no_max_tokens_runs_to_the_end_of_the_window_at_most(running: Running) -> None:
    end = finished(await running.events(prompt="one two " * 900, max_tokens=None, sampling=Sampling(seed=1)))
    assert end.usage.total_tokens <= WINDOW


async def test_concurrent_streams_interleave_and_equal_their_single_runs(running: Running) -> None:
    prompts = ["The sun", "A long time ago", "Water is", "My name is"]
    single = [await running.text(prompt=prompt, max_tokens=60) for prompt in prompts]
    order: list[int] = []

    async def stream(index: int) -> str:
        request = GenerationRequest(prompt=prompts[index], sampling=GREEDY, max_tokens=60)
        parts = []
        async for event in running.engine.generate(request):
            if isinstance(event, Delta):
                order.append(index)
                parts.append(event.text)
        return "".join(parts)

    assert await asyncio.gather(*(stream(index) for index in range(4))) == single
    assert len(list(itertools.groupby(order))) > 8


async def test_the_second_turn_reuses_the_first_ones_prompt(running: Running) -> None:
    answer = await running.text()
    turn = (*QUESTION, Message("assistant", answer), Message("user", "And of Italy?"))
    usage = finished(await running.events(messages=turn)).usage
    first = (await running.engine.count_tokens(QUESTION)).total
    assert usage.cached_tokens >= first - 1


async def test_a_seed_makes_the_draw_repeatable_and_its_absence_does_not(running: Running) -> None:
    request = {"prompt": "Once", "max_tokens": 24}
    seeded = [await running.text(**request, sampling=Sampling(temperature=1.5, seed=7)) for _ in range(2)]
    fresh = {await running.text(**request, sampling=Sampling(temperature=1.5)) for _ in range(4)}
    assert seeded[0] == seeded[1]
    assert len(fresh) > 1


async def test_logit_bias_and_top_k_take_effect(running: Running) -> None:
    biased = await running.text(prompt="Once", sampling=ENDLESS, max_tokens=4)
    assert len(set(biased)) == 1
    assert await running.text(prompt="Once", sampling=Sampling(temperature=2, top_k=1)) == await running.text(
        prompt="Once"
    )


async def test_a_bias_on_a_token_that_the_model_lacks_is_refused(running: Running) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias names token 99999"):
        await running.text(prompt="Once", sampling=Sampling(logit_bias={99999: 1.0}))


async def test_penalties_take_effect(running: Running) -> None:
    bias = {70: 10.0}
    free = await running.text(prompt="Once", sampling=Sampling(temperature=0, logit_bias=bias))
    for held in (
        Sampling(temperature=0, logit_bias=bias, frequency_penalty=2.0),
        Sampling(temperature=0, logit_bias=bias, repeat_penalty=1.9),
    ):
        assert await running.text(prompt="Once", sampling=held) != free


async def test_log_probabilities_cover_every_token(running: Running) -> None:
    events = await running.events(prompt="Once", max_tokens=12, top_logprobs=3)
    entries: list[TokenLogprob] = [entry for event in events if isinstance(event, Delta) for entry in event.logprobs]
    assert len(entries) == finished(events).usage.completion_tokens
    assert b"".join(entry.token_bytes for entry in entries).decode(errors="replace").startswith(text_of(events)[:5])
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top) == 3
        assert entry.logprob == pytest.approx(entry.top[0].logprob)
    plain = await running.events(prompt="Once", max_tokens=2, top_logprobs=0, sampling=ENDLESS)
    assert [len(entry.top) for event in plain if isinstance(event, Delta) for entry in event.logprobs] == [0, 0]


async def test_a_schema_binds_the_text(running: Running) -> None:
    schema = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}'
    assert await running.text(json_schema=schema, max_tokens=40) in ('{"ok":true}', '{"ok":false}')
    assert (await running.text(json_object=True, max_tokens=200)).startswith("{")


@pytest.mark.parametrize(
    "schema", ["{", "[1]", '{"type":"nonsense"}', '{"$ref":"#/nowhere"}', '{"type":"string","pattern":"foo**("}']
)
async def test_a_bad_schema_is_refused_and_the_engine_lives_on(running: Running, schema: str) -> None:
    with pytest.raises(InvalidRequest, match="schema"):
        await running.events(json_schema=schema)
    assert await running.text()
    assert running.worker.restarts == 0


async def test_a_prompt_that_fills_the_window_is_refused_with_both_numbers(running: Running) -> None:
    word = (await running.engine.count_tokens([Message("user", "a" + " a" * 500)])).total
    with pytest.raises(ContextLengthExceeded) as refused:
        await running.events(prompt=" a" * (WINDOW * 10))
    assert refused.value.context_length == WINDOW
    assert refused.value.prompt_tokens > word
    assert await running.text()


async def test_a_prompt_of_the_window_less_one_gets_one_token(running: Running) -> None:
    events = await running.events(prompt="a" + " a" * (WINDOW - 2), max_tokens=None)
    usage = finished(events).usage
    low, high = usage.prompt_tokens, WINDOW
    assert low < high
    with pytest.raises(ContextLengthExceeded):
        await running.events(prompt="a" + " a" * (2 * WINDOW), max_tokens=None)


async def test_control_tokens_in_messages_are_characters(running: Running) -> None:
    plain = (await running.engine.count_tokens([Message("user", "ab")])).total
    typed = (await running.engine.count_tokens([Message("user", "a<|eot_id|>b")])).total
    raw = finished(await running.events(prompt="a<|eot_id|>b", max_tokens=1)).usage.prompt_tokens
    assert typed - plain >= 4
    assert raw >= 6


@pytest.mark.parametrize("text", ["日本語 テキスト", "👩‍👩‍👧 🎉", "ďábel ñandú"])
async def test_text_never_ends_inside_a_character(running: Running, text: str) -> None:
    schema = f'{{"const": "{text}"}}'
    events = await running.events(json_schema=schema, max_tokens=200)
    assert text_of(events) == f'"{text}"'
    for event in events:
        assert not isinstance(event, Delta) or "\ufffd" not in event.text


@pytest.mark.parametrize(
    "stop", [["cde"], ["fgh", "ghij"], ["xyz", "abcdefghijk"], ["j"], ['"'], ["hijk\n", "ijkl\n"], ['p"zz']]
)
async def test_stop_strings_end_the_text_and_never_show(running: Running, stop: list[str]) -> None:
    whole = '"abcdefghijklmnop"'
    events = await running.events(json_schema='{"const": "abcdefghijklmnop"}', stop=stop, max_tokens=100)
    ends = [at for text in stop if (at := whole.find(text)) >= 0]
    assert text_of(events) == whole[: min(ends, default=len(whole))]
    assert finished(events).reason == "stop"


async def test_more_requests_than_slots_wait_and_more_than_the_queue_are_refused(running: Running) -> None:
    results = await asyncio.gather(
        *(running.events(prompt=f"Number {n}", max_tokens=30) for n in range(9)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(refused) == 3
    assert all(error.retry_after for error in refused)
    assert len([result for result in results if isinstance(result, list)]) == 6
    assert running.engine.active_requests == 0


async def test_leaving_a_stream_frees_its_slot(running: Running) -> None:
    request = GenerationRequest(prompt="Once", sampling=ENDLESS)
    for _ in range(12):
        async with aclosing(running.engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
    await running.idle()
    assert await running.text()


async def test_leaving_while_the_prompt_is_processed_stops_the_processing(running: Running) -> None:
    # How far the engine gets before the news arrives is chance, so one of several attempts has to show that it did
    # not get to the prompt's end, which leaves all but the last of its tokens in the cache.
    shares = []
    for attempt in range(5):
        prompt = "".join(f" {attempt}{number}" for number in range(100, 500))
        async with aclosing(running.engine.generate(GenerationRequest(prompt=prompt))) as events:
            assert isinstance(await anext(events), Started)
        await running.idle()
        usage = finished(await running.events(prompt=prompt, max_tokens=1)).usage
        assert usage.prompt_tokens > 1500
        shares.append(usage.cached_tokens / usage.prompt_tokens)
    assert min(shares) < 0.9


async def test_a_killed_worker_fails_its_streams_and_serves_again(running: Running) -> None:
    with pytest.raises(EngineFailed, match="try again"):
        await strike(running, signal.SIGKILL)
    assert await running.text()
    assert running.worker.restarts == 1


async def test_a_hung_worker_fails_its_streams_and_is_replaced(running: Running) -> None:
    with pytest.raises(EngineFailed, match="try again"):
        await strike(running, signal.SIGSTOP)
    assert await running.text()
    assert running.worker.restarts == 1


async def strike(running: Running, blow: signal.Signals) -> None:
    """Sends the worker a signal at the first text of a stream, and reads on."""
    victim = running.worker.pid
    assert victim is not None
    struck = False
    async for event in running.engine.generate(GenerationRequest(prompt="Once", sampling=ENDLESS)):
        if isinstance(event, Delta) and not struck:
            struck = True
            os.kill(victim, blow)
