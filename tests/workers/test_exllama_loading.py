"""The real loading and the layers of ExLlamaV2, on tensors that pretend to be on a GPU, by the GPU's own tests."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_loading
from llamastead_server.workers.exllama import ExLlama
from llamastead_server.workers.exllama_loading import CannotLoad, Source, load
from tests.gpu.test_exllama import (  # noqa: F401  # the same promises, kept by the fixtures below
    SHAPE,
    GpuLoader,
    ready,
    test_an_adapter_changes_the_model_as_merged_weights_do,
    test_logits_are_those_of_transformers,
    test_speculation_answers_to_the_limit,
    test_staggered_batched_requests_equal_their_single_runs,
)
from tests.workers.exllama_cpu import make_model
from tests.workers.pretend_gpu import pretended
from tests.workers.test_exllama import (  # noqa: F401
    Running,
    Start,
    test_a_cancelled_request_leaves_in_every_state,
    test_a_schema_binds_the_answer,
    test_a_second_turn_reuses_the_pages_of_the_first,
    test_every_end_token_ends_and_is_no_text,
    test_logits_wider_than_the_tokenizer_are_biased_and_bound_alike,
    test_stop_strings_end_the_text_and_free_the_slot_at_once,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model")
    make_model(folder, **SHAPE)
    return folder


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        pretended(patch)
        # A CPU takes seconds for what a GPU is quick at.
        patch.setattr(exllama_loading, "_LONGEST_WARM_UP", 300)
        yield patch


@pytest.fixture
async def start(folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    engines: list[ExLlama] = []

    def start(source: Path = folder, draft: Path | None = None, **given: Any) -> Running:
        loader: Any = GpuLoader()
        settings = GpuSettings(**{"context_length": 2048, "slots": 8, "chunk": 256, "margin": 0.01, **given})
        engines.append(ExLlama(Source(source, draft, tmp_path, tmp_path / f"private-{len(engines)}"), settings, loader))
        return Running(engines[-1], loader)

    yield start
    for engine in engines:
        engine.stop()
    await asyncio.sleep(0.2)


@pytest.fixture
async def running(start: Start) -> Running:
    return await ready(start())


def test_memory_that_was_overestimated_costs_half_the_cache(
    folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    warm_up = exllama_loading._warm_up
    tried: list[int] = []
    models: list[weakref.ref[Any]] = []

    def short(parts: Any, *rest: Any) -> None:
        tried.append(parts.plan.cache_tokens)
        # What did not fit is gone before it is tried again.
        assert all(model() is None for model in models)
        models.append(weakref.ref(parts.model))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        warm_up(parts, *rest)

    patch.setattr(exllama_loading, "_warm_up", short)
    settings = GpuSettings(slots=2, chunk=256, margin=0.01)
    loaded = load(Source(folder, None, tmp_path, tmp_path / "private"), settings, lambda *_: None)
    assert tried == [4096, 2048]
    assert loaded.window == 2048
    patch.setattr(exllama_loading, "_warm_up", lambda *_: short(*_) or tried.clear())
    tried.clear()
    models.clear()
    with pytest.raises(CannotLoad, match="a cache of 2048 tokens leaves too little GPU memory"):
        load(
            Source(folder, None, tmp_path, tmp_path / "other"),
            settings.model_copy(update={"cache_tokens": 2048}),
            lambda *_: None,
        )


def test_a_packed_cache_that_the_kernels_could_not_move_is_refused(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "narrow", **{**SHAPE, "hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 3})
    source = Source(tmp_path / "narrow", None, tmp_path, tmp_path / "private")
    settings = GpuSettings(context_length=512, slots=2, chunk=256, margin=0.01)
    with pytest.raises(CannotLoad, match="192 wide: set `cache: fp16`"):
        load(source, settings.model_copy(update={"cache": "q8"}), lambda *_: None)
    assert load(source, settings, lambda *_: None).window == 512


def test_a_fault_of_the_gpu_is_no_lack_of_memory(folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    patch.setattr(exllama_loading, "_warm_up", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        load(
            Source(folder, None, tmp_path, tmp_path / "private"),
            GpuSettings(slots=2, chunk=256, margin=0.01),
            lambda *_: None,
        )


@pytest.mark.parametrize(("split", "reason"), [((1e-6,), "split of 1e-06 GB is too small"), ((1, 1), "names 2 GPUs")])
def test_a_split_that_cannot_be_says_so(
    folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch, split: tuple[float, ...], reason: str
) -> None:
    settings = GpuSettings(context_length=2048, slots=2, chunk=256, margin=0.01, split=split)
    with pytest.raises(CannotLoad, match=reason):
        load(Source(folder, None, tmp_path, tmp_path / "private"), settings, lambda *_: None)


def test_a_split_loads_with_a_cache_of_its_own(folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    settings = GpuSettings(context_length=512, slots=2, chunk=256, margin=0.01, split=(1.0,))
    told: list[float] = []
    source = Source(folder, None, tmp_path, tmp_path / "private")
    assert load(source, settings, lambda share, _: told.append(share)).window == 512
    assert told == sorted(told)
    assert told[-1] == 1.0
