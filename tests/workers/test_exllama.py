"""The GPU engine on the CPU: ExLlamaV2's real generator, page table, jobs and sampler over a tiny Llama."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from llamastead.internal.v1 import engine_pb2
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_scheduler
from llamastead_server.workers.exllama import ExLlama
from llamastead_server.workers.exllama_loading import CannotLoad, Source
from llamastead_server.workers.model import Busy, EngineError, Event, Refused
from tests.workers.exllama_cpu import CpuLoader, make_model, transformers_model

GREEDY = {"temperature": 0.0}
PROMPTS = ("Once upon a time", "def make_model(folder", "日本語", "12 cafés", "import torch", "a", "return", " the")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@dataclass
class Running:
    """One engine and what stands behind it."""

    model: ExLlama
    loader: CpuLoader
    order: list[int] = field(default_factory=list)

    async def ready(self) -> Running:
        async with asyncio.timeout(60):
            while (status := await self.model.status()).state == "loading":
                await asyncio.sleep(0.01)
        assert status.state == "ready", status.error
        return self

    def events(self, prompt: Sequence[int], **request: Any) -> Any:
        sampling = engine_pb2.Sampling(**request.pop("sampling", GREEDY))
        message = engine_pb2.GenerateRequest(sampling=sampling, **{"max_tokens": 24, **request})
        return self.model.complete(prompt, message)

    async def complete(self, prompt: str | Sequence[int], **request: Any) -> list[Event]:
        tokens = await self.model.encode_text(prompt) if isinstance(prompt, str) else prompt
        async with aclosing(self.events(tokens, **request)) as batches:
            return [event async for batch in batches for event in batch]

    async def text(self, prompt: str | Sequence[int], **request: Any) -> str:
        return text_of(await self.complete(prompt, **request))

    async def idle(self) -> Any:
        await self.model.status()
        generator = self.loader.generators[-1]
        assert not generator.num_remaining_jobs()
        assert not generator.referenced_pages
        assert (await self.model.status()).active_requests == 0
        return generator


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.get("content", "") for event in events)


def last(events: Sequence[Event]) -> Event:
    assert events[-1]["stop"]
    return events[-1]


Start = Callable[..., Running]


@pytest.fixture
async def start(folder: Path, tmp_path: Path) -> AsyncIterator[Start]:
    engines: list[ExLlama] = []

    def start(
        source: Path = folder, draft: Path | None = None, loader: CpuLoader | None = None, **given: Any
    ) -> Running:
        loader = loader or CpuLoader()
        settings = GpuSettings(**{"context_length": 2048, "slots": 8, "chunk": 256, **given})
        private = tmp_path / f"private-{len(engines)}"
        model = ExLlama(Source(source, draft, tmp_path, private), settings, loader)
        engines.append(model)
        return Running(model, loader)

    yield start
    for engine in engines:
        engine.stop()


@pytest.fixture
async def running(start: Start) -> Running:
    return await start().ready()


def greedy(folder: Path, prompt: Sequence[int], count: int) -> list[int]:
    model = transformers_model(folder)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def decode(running: Running, tokens: Sequence[int]) -> str:
    tokenizer = running.model._ready().tokenizer
    # Without its end: half a character there is not shown.
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(map(tokenizer.bytes_of, tokens)))


async def test_greedy_text_is_that_of_transformers(running: Running, folder: Path) -> None:
    prompt = await running.model.encode_text("Once upon a time " * 40)
    assert len(prompt) > 300
    events = await running.complete(prompt, max_tokens=40)
    assert text_of(events) == decode(running, greedy(folder, prompt, 40))
    assert events[0] == {"prompt_progress": {}}
    end = last(events)
    assert (end["stop_type"], end["tokens_evaluated"], end["tokens_predicted"]) == ("limit", len(prompt), 40)
    assert max(tokens for _, tokens in running.loader.models[0].chunks) <= 256


async def test_staggered_batched_requests_equal_their_single_runs(running: Running) -> None:
    long = [f"{prompt} {'word ' * 90 * index}" for index, prompt in enumerate(PROMPTS)]
    endless = {**GREEDY, "logit_bias": dict.fromkeys(running.model._ready().ends, -100.0)}
    single = [await running.text(prompt, max_tokens=50, sampling=endless) for prompt in long]
    running.loader.models[0].chunks.clear()
    begun = [asyncio.Event() for _ in range(len(long) + 1)]
    begun[0].set()

    async def after_the_one_before(index: int) -> str:
        await begun[index].wait()
        text = ""
        prompt = await running.model.encode_text(long[index])
        async with aclosing(running.events(prompt, max_tokens=50, sampling=endless)) as batches:
            async for batch in batches:
                text += text_of(batch)
                if any("content" in event for event in batch):
                    begun[index + 1].set()
        return text

    assert await asyncio.gather(*map(after_the_one_before, range(len(long)))) == single
    assert max(batch for batch, _ in running.loader.models[0].chunks) > 2
    await running.idle()


async def test_a_second_turn_reuses_the_pages_of_the_first(running: Running) -> None:
    prompt = await running.model.encode_text("Once upon a time " * 60)
    first = await running.complete(prompt)
    again = await running.complete([*prompt, *prompt[:20]])
    assert last(first)["timings"]["cache_n"] == 0
    assert last(again)["timings"]["cache_n"] >= len(prompt) // 256 * 256
    fresh = await running.complete([*prompt[1:], *prompt[:20]])
    assert last(fresh)["timings"]["cache_n"] < 16


async def test_requests_that_share_a_prompt_share_its_pages_while_they_run(running: Running) -> None:
    prompt = await running.model.encode_text("Once upon a time " * 60)
    alone = await running.text(prompt, max_tokens=40)
    assert await asyncio.gather(*(running.text(prompt, max_tokens=40) for _ in range(4))) == [alone] * 4


async def test_conversations_are_encoded_as_transformers_does(running: Running, folder: Path) -> None:
    from transformers import AutoTokenizer

    words: Any = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
    messages = [
        Message("system", "Be kind.\n"),
        Message("user", "  12 cafés?"),
        Message("assistant", "日本"),
        Message("user", "ok"),
    ]
    rendered = words.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert await running.model.encode_conversation(messages) == words.encode(rendered, add_special_tokens=False)


async def test_a_cancelled_request_leaves_in_every_state(start: Start) -> None:
    running = await start(slots=1, chunk=256).ready()
    prompt = await running.model.encode_text("Once upon a time " * 60)

    async def leave_after(kind: str) -> None:
        async with aclosing(running.events(prompt, max_tokens=300)) as batches:
            async for batch in batches:
                if kind == "prefilling" or any("content" in event for event in batch):
                    return

    await leave_after("prefilling")
    await running.idle()
    await leave_after("decoding")
    await running.idle()
    first = asyncio.create_task(leave_after("decoding"))
    queued = asyncio.create_task(running.complete(prompt))
    await asyncio.sleep(0)
    queued.cancel()
    await first
    with pytest.raises(asyncio.CancelledError):
        await queued
    await running.idle()
    assert await running.text("Once")


async def test_more_requests_than_slots_wait_their_turn(start: Start) -> None:
    running = await start(slots=2).ready()
    texts = await asyncio.gather(*(running.text(prompt) for prompt in PROMPTS))
    assert max(batch for batch, _ in running.loader.models[0].chunks) == 2
    assert texts == [await running.text(prompt) for prompt in PROMPTS]


async def test_many_prompts_share_one_chunk_of_each_step(running: Running) -> None:
    ends = dict.fromkeys(running.model._ready().ends, -100.0)
    first = asyncio.create_task(running.text("a", max_tokens=100, sampling={**GREEDY, "logit_bias": ends}))
    chunks = running.loader.models[0].chunks
    while not chunks:
        await asyncio.sleep(0)
    prompts = [await running.model.encode_text(f"{index} once upon a time " * 60) for index in range(7)]
    texts = await asyncio.gather(*(running.text(prompt, max_tokens=4) for prompt in prompts))
    await first
    assert sum(tokens for _, tokens in chunks if tokens > 1) > 7 * 256
    between, most = 0, 0
    for _, tokens in chunks:
        between = between + tokens if tokens > 1 else 0
        most = max(most, between)
    # The last to get some of a chunk may take a whole one.
    assert 256 <= most < 2 * 256
    assert texts == [await running.text(prompt, max_tokens=4) for prompt in prompts]


async def test_more_requests_than_it_takes_are_refused_before_they_start(start: Start) -> None:
    running = await start(slots=1).ready()
    results = await asyncio.gather(*(running.text("Once") for _ in range(8)), return_exceptions=True)
    assert [type(result) for result in results].count(Busy) == 3
    await running.idle()


async def test_a_failed_step_fails_what_ran_and_nothing_that_waited(start: Start) -> None:
    running = await start(slots=1).ready()
    expected = await running.text("def make", max_tokens=8)
    failing = asyncio.create_task(running.text("Once", max_tokens=500))
    while (await running.model.status()).active_requests == 0 or not running.loader.models[0].chunks:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(running.text("def make", max_tokens=8))
    await running.model.status()
    running.loader.models[0].fail = ValueError("a bad step")
    with pytest.raises(EngineError, match="a bad step"):
        await failing
    assert await waiting == expected
    assert len(running.loader.generators) == 2
    assert (await running.model.status()).state == "ready"


@pytest.mark.parametrize("times", [1, 3])
async def test_a_lost_gpu_or_failures_without_end_fail_the_engine(start: Start, times: int) -> None:
    running = await start().ready()
    message = "CUDA error: device-side assert triggered" if times == 1 else "again"
    for _ in range(times):
        running.loader.models[0].fail = RuntimeError(message)
        with pytest.raises(EngineError, match=message):
            await running.text("Once")
    status = await running.model.status()
    assert status.state == "failed"
    assert message in status.error
    with pytest.raises(EngineError):
        await running.text("Once")


async def test_a_slow_reader_misses_nothing(running: Running) -> None:
    expected = await running.text("Once", max_tokens=40)
    prompt = await running.model.encode_text("Once")
    for pause in (0.0, 0.001, 0.05, 0.5):
        events: list[Event] = []
        async with aclosing(running.events(prompt, max_tokens=40)) as batches:
            async for batch in batches:
                events.extend(batch)
                await asyncio.sleep(pause)
        assert text_of(events) == expected
        assert last(events)["tokens_predicted"] == 40


async def test_text_that_is_not_due_goes_with_what_follows_and_the_end_never_waits(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = await running.model.encode_text(PROMPTS[0])
    expected = await running.text(prompt)
    monkeypatch.setattr(exllama_scheduler, "_MESSAGE_SECONDS", 1000.0)
    async with aclosing(running.events(prompt)) as stream:
        batches = [batch async for batch in stream]
    assert len(batches) <= 2
    assert text_of([event for batch in batches for event in batch]) == expected
    assert last(batches[-1])["stop"]


async def test_stop_strings_end_the_text_and_free_the_slot_at_once(running: Running) -> None:
    whole = await running.text("Once", max_tokens=40)
    for length in (1, 3, 7):
        stop = whole[6 : 6 + length]
        events = await running.complete("Once", max_tokens=40, stop=["never this", stop])
        assert text_of(events) == whole[: whole.find(stop)]
        assert last(events)["stop_type"] == "word"
    await running.idle()


async def test_every_end_token_ends_and_is_no_text(running: Running, folder: Path) -> None:
    ends = running.model._ready().ends
    assert len(ends) == 2
    for end in ends:
        events = await running.complete("Once", sampling={**GREEDY, "logit_bias": {end: 100.0}})
        assert text_of(events) == ""
        assert last(events)["stop_type"] == "eos"


async def test_log_probabilities_are_the_models_own_for_every_token(running: Running, folder: Path) -> None:
    prompt = await running.model.encode_text("Once upon")
    events = await running.complete(prompt, max_tokens=12, top_logprobs=3)
    entries = [entry for event in events for entry in event.get("completion_probabilities", ())]
    assert len(entries) == 12
    chosen = greedy(folder, prompt, 12)
    with torch.inference_mode():
        logits = transformers_model(folder)(torch.tensor([[*prompt, *chosen]])).logits[0]
    expected = logits.log_softmax(-1)
    for index, (entry, token) in enumerate(zip(entries, chosen, strict=True)):
        row = expected[len(prompt) - 1 + index]
        assert entry["logprob"] == pytest.approx(float(row[token]), abs=1e-3)
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-3
        )
        assert bytes(entry["bytes"]) == running.model._ready().tokenizer.bytes_of(token)


async def test_a_seed_makes_the_draw_repeatable_and_its_absence_does_not(running: Running) -> None:
    seeded = [await running.text("Once", sampling={"temperature": 1.5, "seed": 7}) for _ in range(2)]
    fresh = {await running.text("Once", sampling={"temperature": 1.5}) for _ in range(4)}
    assert seeded[0] == seeded[1]
    assert len(fresh) > 1


async def test_penalties_count_what_was_generated_and_not_the_prompt(running: Running, folder: Path) -> None:
    prompt = await running.model.encode_text("Once upon a time")
    first = greedy(folder, prompt, 1)[0]
    for penalty in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repeat_penalty": 2.0}):
        model = transformers_model(folder)
        tokens: list[int] = []
        with torch.inference_mode():
            for _ in range(16):
                row = model(torch.tensor([[first] * 8 + prompt + tokens])).logits[0, -1].clone()
                for token in set(tokens):
                    if "repeat_penalty" in penalty:
                        row[token] = row[token] / 2 if row[token] > 0 else row[token] * 2
                    else:
                        row[token] -= 2.0 * (tokens.count(token) if "frequency_penalty" in penalty else 1)
                tokens.append(int(row.argmax()))
        # The prompt holds the likeliest token many times over.
        got = await running.text([first] * 8 + prompt, max_tokens=16, sampling={**GREEDY, **penalty})
        assert got == decode(running, tokens), penalty


def force(running: Running, steps: Sequence[int]) -> None:
    """Makes every answer these tokens."""
    from llamastead_server.workers.exllama_job import Job

    class Forced(Job):
        def receive_logits(self, logits: torch.Tensor) -> Any:
            logits.fill_(-100.0)
            logits[0, 0, steps[self.new_tokens]] = 100.0
            return super().receive_logits(logits)

    running.model._make_job = Forced


@pytest.mark.parametrize("text", ["👩🎉日 end", "👩‍👩‍👧", "ďábel ñandú", "a\ufffdb"])
async def test_characters_cut_by_tokens_come_whole(running: Running, text: str) -> None:
    loaded = running.model._ready()
    steps = loaded.tokenizer.encode(text)
    assert len(steps) > 3
    force(running, [*steps, loaded.ends[0]])
    for prompt in ("x", "x" * 600):
        events = await running.complete(prompt, max_tokens=99, top_logprobs=0)
        assert text_of(events) == text
        assert len([event for event in events if event.get("content")]) > 1
        entries = [entry for event in events for entry in event.get("completion_probabilities", ())]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == text
    # Half a character is all that the end may cost.
    half = loaded.tokenizer.encode("👩")[:2]
    force(running, [*steps, *half, loaded.ends[0]])
    assert await running.text("x", max_tokens=99) == text
    assert await running.text("x", max_tokens=len(steps) + 1) == text


async def test_what_might_have_become_a_stop_string_is_shown_when_the_answer_ends(running: Running) -> None:
    loaded = running.model._ready()
    for text, stop, shown in (("go ST", "STOP", "go ST"), ("go 日", "日本", "go 日"), ("go STOP on", "STOP", "go ")):
        force(running, [*loaded.tokenizer.encode(text), loaded.ends[0]])
        assert await running.text("x", max_tokens=99, stop=[stop]) == shown
    force(running, loaded.tokenizer.encode("go ST on and on"))
    assert await running.text("x", max_tokens=len(loaded.tokenizer.encode("go ST")), stop=["STOP"]) == "go ST"


async def test_a_schema_binds_the_answer(running: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["red", "blue"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    for seed in range(3):
        sampling = {"temperature": 1.0, "seed": seed}
        events = await running.complete("Once", max_tokens=200, sampling=sampling, json_schema=json.dumps(schema))
        answer = json.loads(text_of(events))
        assert set(answer) == {"ok", "kind"}
        assert answer["kind"] in ("red", "blue")
        assert last(events)["stop_type"] == "eos"
    assert (await running.text("Once", max_tokens=60, json_object=True)).startswith("{")
    many = [running.text("x", max_tokens=99, sampling=GREEDY, json_schema=json.dumps(schema)) for _ in range(4)]
    for text in await asyncio.gather(*many):
        assert set(json.loads(text)) == {"ok", "kind"}


@pytest.mark.parametrize(
    "schema", ["{", "[1]", '{"type":"nonsense"}', '{"$ref":"#/nowhere"}', '{"type":"integer","minimum":3}']
)
async def test_a_schema_that_would_not_bind_is_refused_and_the_engine_lives_on(running: Running, schema: str) -> None:
    with pytest.raises(Refused, match="schema"):
        await running.text("Once", json_schema=schema)
    assert await running.text("Once")


@pytest.mark.parametrize("kind", ["ngram", "draft"])
async def test_speculation_changes_no_greedy_text(start: Start, tmp_path: Path, kind: str) -> None:
    plain = await start().ready()
    prompts = ["Once upon a time " * 20, "def make", "日本", "a"]
    endless = {**GREEDY, "logit_bias": dict.fromkeys(plain.model._ready().ends, -100.0)}
    asked = {"max_tokens": 40, "top_logprobs": 1, "sampling": endless}
    expected = [await plain.complete(prompt, **asked) for prompt in prompts]
    draft = None
    if kind == "draft":
        draft = tmp_path / "draft"
        make_model(draft, seed=1, num_hidden_layers=1)
    given = {"ngram_draft": True} if kind == "ngram" else {"draft_model": "draft"}
    running = await start(draft=draft, **given).ready()
    got = await asyncio.gather(*(running.complete(prompt, **asked) for prompt in prompts))
    for wanted, events in zip(expected, got, strict=True):
        assert text_of(events) == text_of(wanted)
        assert last(events)["tokens_predicted"] == last(wanted)["tokens_predicted"]
        counted = [entry["token"] for event in events for entry in event.get("completion_probabilities", ())]
        assert len(counted) == last(events)["tokens_predicted"]
    await running.idle()


async def test_no_limit_runs_to_the_end_of_the_window(start: Start) -> None:
    running = await start(context_length=512, slots=2).ready()
    ends = dict.fromkeys(running.model._ready().ends, -100.0)
    prompt = await running.model.encode_text("Once upon a time " * 60)
    prompt = prompt[:500]
    events = await running.complete(prompt, max_tokens=0, sampling={**GREEDY, "logit_bias": ends})
    assert last(events)["tokens_predicted"] == 12


async def test_a_biased_token_that_does_not_exist_is_refused(running: Running) -> None:
    with pytest.raises(Refused, match="99999"):
        await running.text("Once", sampling={"logit_bias": {99999: 1.0}})


async def test_loading_tells_its_progress_and_a_failure_says_why(start: Start) -> None:
    import threading

    go = threading.Event()

    def before(report: Callable[[float, str], None]) -> None:
        report(0.25, "loading")
        go.wait(20)
        raise CannotLoad("the disk is on fire")

    running = start(loader=CpuLoader(before=before))
    async with asyncio.timeout(20):
        while (status := await running.model.status()).progress != 0.25:
            await asyncio.sleep(0.01)
        assert (status.state, status.step) == ("loading", "loading")
        go.set()
        while (status := await running.model.status()).state == "loading":
            await asyncio.sleep(0.01)
    assert (status.state, status.error) == ("failed", "the disk is on fire")


async def test_a_small_cache_serves_one_after_the_other(start: Start) -> None:
    running = await start(context_length=512, cache_tokens=768, slots=256).ready()
    # Loading runs a step as large as the largest into the cache.
    assert running.loader.generators[-1].model.config.max_input_len <= 768
    texts = await asyncio.gather(*(running.text(prompt, max_tokens=400) for prompt in PROMPTS))
    assert texts == [await running.text(prompt, max_tokens=400) for prompt in PROMPTS]
    await running.idle()


async def test_logits_wider_than_the_tokenizer_are_biased_and_bound_alike(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    make_model(folder, vocabulary=1024)
    running = await start(source=folder).ready()
    assert running.model._ready().vocabulary < 1024
    end = running.model._ready().ends[0]
    others = asyncio.create_task(running.text("Once", max_tokens=40))
    events = await running.complete("Once", sampling={**GREEDY, "logit_bias": {end: 100.0}})
    assert (text_of(events), last(events)["stop_type"]) == ("", "eos")
    assert (await running.text("Once", max_tokens=60, json_object=True)).startswith("{")
    assert await others
