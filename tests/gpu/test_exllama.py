"""ExLlamaV2 on a GPU: its numbers against transformers, and the promises that the CPU's tests make, kept there too."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import exl2
from llamastead_server.adapters.gpu import GpuHost
from llamastead_server.adapters.gpu_models import GpuModels
from llamastead_server.adapters.model_catalog import ModelCatalog
from llamastead_server.adapters.model_registry import EngineOptions, LocalModelRegistry
from llamastead_server.adapters.supervision import Supervision
from llamastead_server.domain.errors import EngineFailed
from llamastead_server.domain.models.generation import Delta, GenerationRequest, Sampling
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_loading
from llamastead_server.workers.exllama import ExLlama
from llamastead_server.workers.exllama_loading import Loaded, Source
from tests.workers.exllama_cpu import make_model, transformers_model
from tests.workers.test_exllama import (  # noqa: F401  # the same promises, kept by the fixtures below
    GREEDY,
    PROMPTS,
    Running,
    Start,
    last,
    test_a_biased_token_that_does_not_exist_is_refused,
    test_a_cancelled_request_leaves_in_every_state,
    test_a_schema_binds_the_answer,
    test_a_second_turn_reuses_the_pages_of_the_first,
    test_a_seed_makes_the_draw_repeatable_and_its_absence_does_not,
    test_a_slow_reader_misses_nothing,
    test_conversations_are_encoded_as_transformers_does,
    test_every_end_token_ends_and_is_no_text,
    test_logits_wider_than_the_tokenizer_are_biased_and_bound_alike,
    test_no_limit_runs_to_the_end_of_the_window,
    test_stop_strings_end_the_text_and_free_the_slot_at_once,
    text_of,
)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]
EXTENSIONS = Path(os.environ.get("LLAMASTEAD_TEST_EXTENSIONS", "build/cuda-extensions")).absolute()
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "initializer_range": 0.08,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
    },
}  # fmt: skip
HALF_PRECISION = 0.05
"""Most that a log probability may differ from that in single precision."""


class GpuLoader:
    """The real loading, with its generators noted."""

    def __init__(self) -> None:
        self.generators: list[Any] = []

    def __call__(self, source: Source, settings: GpuSettings, report: Callable[[float, str], None]) -> Loaded:
        loaded = exllama_loading.load(source, settings, report)

        def make_generator() -> Any:
            self.generators.append(loaded.make_generator())
            return self.generators[-1]

        return Loaded(make_generator, loaded.tokenizer, loaded.window, loaded.vocabulary, loaded.ends)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model")
    make_model(folder, **SHAPE)
    return folder


@pytest.fixture
async def start(folder: Path, tmp_path: Path) -> AsyncIterator[Start]:
    engines: list[ExLlama] = []

    def start(source: Path = folder, draft: Path | None = None, **given: Any) -> Running:
        loader: Any = GpuLoader()
        settings = GpuSettings(**{"context_length": 2048, "slots": 8, "chunk": 256, "margin": 0.2, **given})
        private = tmp_path / f"private-{len(engines)}"
        engines.append(ExLlama(Source(source, draft, EXTENSIONS, private), settings, loader))
        return Running(engines[-1], loader)

    yield start
    for engine in engines:
        engine.stop()
    engines.clear()
    await asyncio.sleep(0.2)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
async def running(start: Start) -> Running:
    return await ready(start())


async def ready(running: Running) -> Running:
    async with asyncio.timeout(120):
        while (status := await running.model.status()).state == "loading":
            await asyncio.sleep(0.2)
    assert status.state == "ready", status.error
    return running


async def distribution(running: Running, prompt: Sequence[int]) -> torch.Tensor:
    """Log probabilities of every token after a prompt."""
    from llamastead_server.workers import exllama_job

    seen: list[torch.Tensor] = []
    original = exllama_job.log_probabilities

    def noting(logits: torch.Tensor, alternatives: int) -> Any:
        seen.append(original(logits, alternatives)[0].clone())
        return original(logits, alternatives)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exllama_job, "log_probabilities", noting)
        await running.complete(prompt, max_tokens=1, top_logprobs=0)
    return seen[0]


def expected(folder: Path, prompt: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.Tensor(transformers_model(folder)(torch.tensor([prompt])).logits[0, -1].log_softmax(-1))


async def long_prompt(running: Running, count: int) -> list[int]:
    return (await running.model.encode_text("Once upon a time there was a model. " * 60))[:count]


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 300, 900])
async def test_logits_are_those_of_transformers(running: Running, folder: Path, length: int) -> None:
    prompt = await long_prompt(running, length)
    got, wanted = await distribution(running, prompt), expected(folder, prompt)
    assert float((got - wanted).abs().max()) < HALF_PRECISION


@pytest.mark.parametrize(("cache", "likeness"), [("q8", 0.999), ("q6", 0.99), ("q4", 0.95)])
async def test_a_quantised_cache_stays_close(start: Start, folder: Path, cache: str, likeness: float) -> None:
    # Of random weights, keys and values rounded to so many bits in groups of 32 gave 0.9999, 0.998 and 0.977.
    running = await ready(start(cache=cache))
    prompt = await long_prompt(running, 600)
    got, wanted = await distribution(running, prompt), expected(folder, prompt)
    assert float(torch.corrcoef(torch.stack([got, wanted]))[0, 1]) > likeness


async def test_staggered_batched_requests_equal_their_single_runs(running: Running) -> None:
    long = [f"{prompt} {'word ' * 90 * index}" for index, prompt in enumerate(PROMPTS)]
    asked = {"max_tokens": 40, "top_logprobs": 2}
    single = [await running.complete(prompt, **asked) for prompt in long]

    async def later(index: int) -> Any:
        await asyncio.sleep(0.02 * index)
        return await running.complete(long[index], **asked)

    for alone, together in zip(single, await asyncio.gather(*(later(index) for index in range(8))), strict=True):
        entries = [
            [e for event in events for e in event.get("completion_probabilities", ())] for events in (alone, together)
        ]
        for one, other in zip(*entries, strict=False):
            if one["bytes"] != other["bytes"]:
                # Sums in another order may turn two tokens that are as good as equal.
                assert one["top_logprobs"][0]["logprob"] - one["top_logprobs"][1]["logprob"] < HALF_PRECISION
                break
            assert one["logprob"] == pytest.approx(other["logprob"], abs=HALF_PRECISION)


@pytest.mark.parametrize("kind", ["ngram", "draft"])
async def test_speculation_answers_to_the_limit(start: Start, tmp_path: Path, kind: str) -> None:
    draft = None
    if kind == "draft":
        draft = tmp_path / "draft"
        make_model(draft, seed=1, **{**SHAPE, "num_hidden_layers": 1})
    given: dict[str, Any] = {"ngram_draft": True} if kind == "ngram" else {"draft_model": "draft"}
    running = await ready(start(draft=draft, **given))
    endless = {**GREEDY, "logit_bias": dict.fromkeys(running.model._ready().ends, -100.0)}
    for events in await asyncio.gather(*(running.complete(p, max_tokens=40, sampling=endless) for p in PROMPTS)):
        assert last(events)["tokens_predicted"] == 40
    await running.idle()


async def test_an_adapter_changes_the_model_as_merged_weights_do(start: Start, folder: Path, tmp_path: Path) -> None:
    adapted, merged = tmp_path / "adapted", tmp_path / "merged"
    for place in (adapted, merged):
        shutil.copytree(folder, place)
    weights = load_file(folder / "model.safetensors")
    draw, halves = torch.Generator().manual_seed(3), {}
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        for layer in range(SHAPE["num_hidden_layers"]):
            whole = weights[f"model.layers.{layer}.{name}.weight"].float()
            down, up = torch.randn(4, whole.shape[1], generator=draw), torch.randn(whole.shape[0], 4, generator=draw)
            key = f"base_model.model.model.layers.{layer}.{name}"
            halves[f"{key}.lora_A.weight"], halves[f"{key}.lora_B.weight"] = down * 0.05, up * 0.05
            # As trained, its effect counts alpha / r = 2; here it is halved.
            weights[f"model.layers.{layer}.{name}.weight"] = (whole + 0.5 * 2 * 0.05**2 * up @ down).half()
    (adapted / "adapter").mkdir()
    save_file(halves, adapted / "adapter" / "adapter_model.safetensors")
    (adapted / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    running = await ready(start(source=adapted, loras=[{"path": "adapter", "scale": 0.5}]))
    prompt = await long_prompt(running, 300)
    got, wanted = await distribution(running, prompt), expected(merged, prompt)
    assert float((got - wanted).abs().max()) < HALF_PRECISION
    assert float((got - expected(folder, prompt)).abs().max()) > 4 * HALF_PRECISION


def gptq(weight: torch.Tensor, group: int = 32) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A matrix [out, in] in 4 bits as GPTQ stores it, and what it means."""
    columns = weight.float().t().contiguous()
    rows, width = columns.shape
    grouped = columns.view(rows // group, group, width)
    scales = (grouped.abs().amax(1) / 7).half()
    steps = ((grouped / scales.float()[:, None]).round() + 8).clamp(0, 15).long()
    shifts = torch.arange(8) * 4
    packed = (steps.view(rows // 8, 8, width) << shifts[None, :, None]).sum(1)
    # Zero points are stored less 1.
    zeros = (torch.full((rows // group, width // 8, 8), 7) << shifts).sum(2)
    parts = {"qweight": packed, "qzeros": zeros, "g_idx": torch.arange(rows) // group}
    # Numbers of 32 bits with a sign, whatever their highest bit.
    stored = {name: (part & 0xFFFFFFFF).to(torch.uint32).view(torch.int32) for name, part in parts.items()}
    meant = ((steps - 8) * scales.float()[:, None]).view(rows, width).t()
    return {**stored, "scales": scales}, meant.half().contiguous()


async def test_gptq_weights_mean_what_they_say(start: Start, folder: Path, tmp_path: Path) -> None:
    quantised, meant = tmp_path / "quantised", tmp_path / "meant"
    for place in (quantised, meant):
        shutil.copytree(folder, place)
    stored, plain = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = plain[name] = weight
        if name.endswith("_proj.weight"):
            parts, plain[name] = gptq(stored.pop(name))
            stored |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, meant / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (quantised / "config.json").write_text(json.dumps(config))
    running = await ready(start(source=quantised))
    for length in (1, 300):
        prompt = await long_prompt(running, length)
        got, wanted = await distribution(running, prompt), expected(meant, prompt)
        # The kernel multiplies and adds in half precision.
        assert float((got - wanted).abs().max()) < 3 * HALF_PRECISION
    assert float((got - expected(folder, prompt)).abs().max()) > 4 * HALF_PRECISION


async def test_an_exl2_conversion_loads_and_resembles_the_model(start: Start, folder: Path, tmp_path: Path) -> None:
    plain = await ready(start())
    prompt = await long_prompt(plain, 300)
    try:
        await asyncio.to_thread(exl2.convert, folder, tmp_path / "exl2", 6.0, EXTENSIONS)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stdout[-4000:])
    config = json.loads((tmp_path / "exl2" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "exl2"
    quantised = await ready(start(source=tmp_path / "exl2"))
    assert text_of(await quantised.complete(prompt, max_tokens=10)) is not None
    got, wanted = await distribution(quantised, prompt), expected(folder, prompt)
    # Random weights bear less than trained ones: rounded to 4 bits they leave a correlation of 0.78, to 6 of 0.99.
    assert float(torch.corrcoef(torch.stack([got, wanted]))[0, 1]) > 0.9


@pytest.fixture
def models(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(folder)
    return tmp_path / "models"


@pytest.fixture
async def registry(models: Path) -> AsyncIterator[LocalModelRegistry]:
    host = GpuHost()
    assert host.missing() == ""
    catalog = ModelCatalog(models, gpu=True)
    gpu = GpuModels(catalog, host, GpuSettings(context_length=2048, slots=8, margin=0.5), EXTENSIONS)
    quick = Supervision(start_timeout=120, heartbeat_interval=0.5, first_backoff=0.1)
    registry = LocalModelRegistry(catalog, models, EngineOptions(supervision=quick), gpu=gpu)
    yield registry
    await registry.close()


async def test_unloading_gives_the_memory_back(registry: LocalModelRegistry) -> None:
    before = await GpuHost().free_bytes() or 0
    await registry.load("tiny")
    card = registry.resolve("tiny")
    assert (card.engine, card.state) == ("exllamav2", "ready")
    during = await GpuHost().free_bytes() or 0
    assert before - during > 100 << 20
    await registry.unload("tiny")
    # The driver may count a moment longer.
    async with asyncio.timeout(20):
        while before - (await GpuHost().free_bytes() or 0) >= 64 << 20:
            await asyncio.sleep(0.2)


async def test_a_worker_killed_in_a_stream_fails_it_and_serves_the_next(
    registry: LocalModelRegistry, folder: Path
) -> None:
    ends = json.loads((folder / "config.json").read_text())["eos_token_id"]
    sampling = Sampling(temperature=1.0, logit_bias=dict.fromkeys(ends, -100.0))
    endless = GenerationRequest(prompt="Once upon a time", sampling=sampling, max_tokens=1500)
    async with registry.lease("tiny") as engine:
        events = engine.generate(endless)
        while not isinstance(await anext(events), Delta):
            pass
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, 9)
        with pytest.raises(EngineFailed):
            [event async for event in events]
        short = GenerationRequest(prompt="Once", sampling=Sampling(temperature=0), max_tokens=8)
        async with asyncio.timeout(120):
            assert [event async for event in engine.generate(short)]
