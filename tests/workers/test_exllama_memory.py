"""Windows and caches that fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers.exllama_memory import NoRoom, Plan, Shape, plan, smaller, weight_bytes

GIGABYTE = 1 << 30
LLAMA_8B = Shape.of({
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
})  # fmt: skip
WEIGHTS = 16 * GIGABYTE


def settings(**given: Any) -> GpuSettings:
    return GpuSettings(**given)


def test_bytes_of_a_cached_token() -> None:
    assert LLAMA_8B.bytes_per_token("fp16") == 2 * 32 * 1024 * 2
    kinds = [LLAMA_8B.bytes_per_token(kind) for kind in ("fp16", "q8", "q6", "q4")]
    assert kinds == sorted(kinds, reverse=True)


def test_packed_weights_and_caches_are_unpacked_on_every_gpu() -> None:
    packed = replace(LLAMA_8B, quantised=True)
    # The widest matrix is the one behind the logits.
    assert packed.scratch == 2 * 4096 * 128256
    assert (LLAMA_8B.scratch, replace(packed, vocabulary=10**6).scratch) == (0, GIGABYTE)
    assert packed.workspace(2048, 8192, 8, 0) - LLAMA_8B.workspace(2048, 8192, 8, 0) == packed.scratch
    assert LLAMA_8B.bytes_per_token("fp16", 2) == LLAMA_8B.bytes_per_token("fp16")
    assert LLAMA_8B.bytes_per_token("q4", 2) - LLAMA_8B.bytes_per_token("q4") == 2 * 1024 * 2
    assert Shape.of({"num_attention_heads": 4, "hidden_size": 256, "num_hidden_layers": 1,
                     "quantization_config": {"quant_method": "exl2"}}).quantised  # fmt: skip


def test_what_many_slots_gather_is_bounded() -> None:
    chunk = 256
    few, many, more = (LLAMA_8B.workspace(chunk, 8192, slots, 0) for slots in (1, 16, 256))
    logits = 6 * LLAMA_8B.vocabulary
    assert few < many - 15 * logits
    assert more - many == 240 * logits


def test_with_plenty_of_memory_every_slot_gets_a_full_window() -> None:
    chosen = plan(settings(slots=8), LLAMA_8B, WEIGHTS, [80 * GIGABYTE])
    assert (chosen.window, chosen.cache_tokens, chosen.chunk) == (8192, 8 * 8192, 2048)


def test_with_less_the_slots_share_what_there_is_in_whole_pages() -> None:
    chosen = plan(settings(slots=32), LLAMA_8B, WEIGHTS, [24 * GIGABYTE])
    assert chosen.window == 8192
    assert 8192 <= chosen.cache_tokens < 32 * 8192
    assert chosen.cache_tokens % 256 == 0
    smaller = plan(settings(slots=32, margin=3.0), LLAMA_8B, WEIGHTS, [24 * GIGABYTE])
    assert smaller.cache_tokens < chosen.cache_tokens
    denser = plan(settings(slots=32, cache="q4"), LLAMA_8B, WEIGHTS, [24 * GIGABYTE])
    assert denser.cache_tokens > 3 * chosen.cache_tokens


def test_with_little_the_window_shrinks_unless_it_was_asked_for() -> None:
    free = [WEIGHTS + int(2.5 * GIGABYTE)]
    chosen = plan(settings(slots=1), LLAMA_8B, WEIGHTS, free)
    assert 512 <= chosen.window < 8192
    assert chosen.window == chosen.cache_tokens
    with pytest.raises(NoRoom, match="8192 tokens it needs about"):
        plan(settings(slots=1, context_length=8192), LLAMA_8B, WEIGHTS, free)
    with pytest.raises(NoRoom, match="MiB of GPU memory are free") as refusal:
        plan(settings(), LLAMA_8B, WEIGHTS, [WEIGHTS + GIGABYTE])
    needed, there = map(int, re.findall(r"(\d+) MiB", str(refusal.value)))
    assert needed > there


def test_several_gpus_add_up_each_with_its_margin() -> None:
    one = plan(settings(slots=64), LLAMA_8B, WEIGHTS, [24 * GIGABYTE])
    two = plan(settings(slots=64), LLAMA_8B, WEIGHTS, [12 * GIGABYTE, 14 * GIGABYTE])
    assert two.cache_tokens <= one.cache_tokens


def test_the_windows_are_never_longer_than_the_models() -> None:
    short = replace(LLAMA_8B, window=1024)
    chosen = plan(settings(context_length=4096, slots=2), short, WEIGHTS, [80 * GIGABYTE])
    assert (chosen.window, chosen.chunk) == (1024, 1024)


def test_a_draft_takes_its_own_share_and_room_to_propose() -> None:
    plain = plan(settings(slots=64), LLAMA_8B, WEIGHTS, [30 * GIGABYTE])
    small = replace(LLAMA_8B, layers=16, key_width=512)
    drafted = plan(settings(slots=64, draft_model="small"), LLAMA_8B, WEIGHTS, [30 * GIGABYTE], (small, 2 * GIGABYTE))
    assert drafted.cache_tokens < plain.cache_tokens
    tight = plan(settings(slots=1, ngram_draft=True), LLAMA_8B, WEIGHTS, [80 * GIGABYTE])
    assert tight.cache_tokens >= tight.window + 4


def test_a_chosen_cache_is_kept_or_refused() -> None:
    chosen = plan(settings(cache_tokens=16384), LLAMA_8B, WEIGHTS, [80 * GIGABYTE])
    assert chosen.cache_tokens == 16384
    with pytest.raises(NoRoom, match="smaller than one window"):
        plan(settings(cache_tokens=4096), LLAMA_8B, WEIGHTS, [80 * GIGABYTE])
    with pytest.raises(NoRoom, match="are free"):
        plan(settings(cache_tokens=1 << 20), LLAMA_8B, WEIGHTS, [24 * GIGABYTE])


def test_a_chunk_fits_the_cache_it_is_loaded_with() -> None:
    for spare in range(900, 3000, 100):
        chosen = plan(settings(slots=1), LLAMA_8B, 2 * GIGABYTE, [4 * GIGABYTE + (spare << 20)])
        assert chosen.chunk <= chosen.cache_tokens
        assert chosen.chunk < 256 + chosen.window


def test_an_estimate_that_was_wrong_costs_half_the_cache_but_never_what_was_asked_for() -> None:
    assert smaller(Plan(8192, 32768, 2048), settings()) == Plan(8192, 16384, 2048)
    assert smaller(Plan(8192, 8192, 2048), settings()) == Plan(4096, 4096, 2048)
    assert smaller(Plan(2048, 2048, 2048), settings()) == Plan(1024, 1024, 1024)
    assert smaller(Plan(512, 1024, 512), settings()) is None
    assert smaller(Plan(8192, 16384, 2048), settings(context_length=8192)) == Plan(8192, 8192, 2048)
    assert smaller(Plan(8192, 8192, 2048), settings(context_length=8192)) is None
    assert smaller(Plan(8192, 65536, 2048), settings(cache_tokens=65536)) is None


def test_only_weights_count_as_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"0" * 10)
    (tmp_path / "b.safetensors").write_bytes(b"0" * 5)
    (tmp_path / "pytorch_model.bin").write_bytes(b"0" * 100)
    assert weight_bytes(tmp_path) == 15
