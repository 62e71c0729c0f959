"""The paged attention against one that is written down in full, sequence by sequence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from llamastead_server.workers import paged_attention
from llamastead_server.workers.paged_attention import flash_attn_with_kvcache

PAGE = 256
TABLE = torch.tensor([[3, 7, 1], [0, 2, 9], [5, 0, 0]], dtype=torch.int32)
LENGTHS = torch.tensor([600, 256, 17], dtype=torch.int32)


def reference(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int = -1, softcap: float = 0.0
) -> torch.Tensor:
    """One sequence: q [tokens, heads, width], keys and values [all tokens, key heads, width]."""
    group = q.shape[1] // keys.shape[1]
    rows = []
    for index in range(q.shape[0]):
        position = keys.shape[0] - q.shape[0] + index
        first = max(0, position - window) if window >= 0 else 0
        heads = []
        for head in range(q.shape[1]):
            scores = keys[first : position + 1, head // group] @ q[index, head] * scale
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            heads.append(scores.softmax(0) @ values[first : position + 1, head // group])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def pages(key_heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(10, PAGE, key_heads, width), torch.randn(10, PAGE, key_heads, width)


def rows(cache: torch.Tensor, sequence: int, count: int) -> torch.Tensor:
    return torch.cat([cache[page] for page in TABLE[sequence].tolist()])[:count]


@pytest.mark.parametrize(("heads", "key_heads"), [(8, 2), (4, 4), (6, 1)])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("rules", [{}, {"window_size": (100, 100)}, {"softcap": 5.0}])
def test_scattered_pages_of_several_sequences(heads: int, key_heads: int, tokens: int, rules: dict[str, Any]) -> None:
    k_cache, v_cache = pages(key_heads, 32)
    q = torch.randn(3, tokens, heads, 32)
    k, v = torch.randn(2, 3, tokens, key_heads, 32)
    before = k_cache.clone()
    result = flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=LENGTHS, block_table=TABLE, softmax_scale=0.3, **rules
    )
    assert result.shape == q.shape
    assert result.is_contiguous()
    for index, length in enumerate(LENGTHS.tolist()):
        keys, values = (rows(cache, index, length + tokens) for cache in (k_cache, v_cache))
        assert torch.equal(keys[length:], k[index])
        assert torch.equal(values[length:], v[index])
        expected = reference(q[index], keys, values, 0.3, rules.get("window_size", (-1,))[0], rules.get("softcap", 0.0))
        assert torch.allclose(result[index], expected, atol=1e-5)
    changed = (k_cache != before).flatten(1).any(1).sum()
    assert changed <= 6


def test_a_long_sequence_among_short_ones_is_gathered_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    k_cache, v_cache = pages(2, 32)
    q, k, v = torch.randn(3, 1, 4, 32), *torch.randn(2, 3, 1, 2, 32)
    options: dict[str, Any] = {"cache_seqlens": LENGTHS, "block_table": TABLE, "softmax_scale": 0.3}
    whole = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **options)
    gathered = paged_attention._gathered
    sizes: list[int] = []

    def noting(q: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(q))
        return gathered(q, *rest)

    monkeypatch.setattr(paged_attention, "_gathered", noting)
    for most, parts in ((6 * PAGE, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(paged_attention, "MOST_GATHERED", most)
        sizes.clear()
        assert torch.allclose(flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **options), whole, atol=1e-6)
        assert sizes == parts


def test_keys_that_are_in_the_cache_already_are_not_written_again() -> None:
    k_cache, v_cache = pages(2, 32)
    q = torch.randn(1, 30, 4, 32)
    before = k_cache.clone()
    result = flash_attn_with_kvcache(
        q=q, k=None, v=None, k_cache=k_cache, v_cache=v_cache, cache_seqlens=LENGTHS[:1], block_table=TABLE[:1],
        causal=True, softmax_scale=0.2,
    )  # fmt: skip
    assert torch.equal(k_cache, before)
    expected = reference(q[0], rows(k_cache, 0, 600), rows(v_cache, 0, 600), 0.2)
    assert torch.allclose(result[0], expected, atol=1e-5)


def test_what_is_not_causal_is_refused() -> None:
    k_cache, v_cache = pages(2, 32)
    with pytest.raises(ValueError, match="causal"):
        flash_attn_with_kvcache(
            torch.randn(1, 1, 4, 32), k_cache, v_cache, cache_seqlens=LENGTHS[:1], block_table=TABLE[:1],
            softmax_scale=1.0, causal=False,
        )  # fmt: skip


def test_an_installed_flash_attn_is_left_alone() -> None:
    own: Callable[..., None] = lambda: None  # noqa: E731
    attention = SimpleNamespace(has_flash_attn_with_paged=True, flash_attn_with_kvcache=own)
    assert paged_attention.install(attention) == "flash-attn"
    assert attention.flash_attn_with_kvcache is own


def test_the_missing_function_is_supplied_with_all_that_is_asked_of_it() -> None:
    attention = SimpleNamespace(has_flash_attn_with_paged=False)
    for _ in range(2):
        assert paged_attention.install(attention) == "torch gather"
    assert attention.flash_attn_with_kvcache is flash_attn_with_kvcache
    assert attention.has_flash_attn_with_window
    assert attention.has_flash_attn_with_softcap


def test_on_a_gpu_no_attention_that_plans_anew_for_each_shape_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", allowed.append)
    monkeypatch.setattr(paged_attention, "_choose_kernel", lambda device: None)
    paged_attention.install(SimpleNamespace(has_flash_attn_with_paged=False))
    assert allowed == [False]


def test_a_kernel_that_disagrees_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernel(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        calls.append(rest[1])
        if rest[1] is None:
            raise RuntimeError("cu_seq_k is needed")
        return torch.zeros_like(q)

    monkeypatch.setattr(paged_attention, "_find_kernel", lambda: kernel)
    paged_attention._choose_kernel(torch.device("cpu"))
    assert paged_attention._Kernel.call is None
    assert [call is None for call in calls] == [True, False]


def test_a_kernel_that_agrees_is_used_as_it_wants_to_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(
        q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor | None,
        most_q: int, most_k: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
        seqused_k: torch.Tensor, block_table: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        if ends is None:
            raise RuntimeError("cu_seq_k is needed")
        assert window_size == (-1, 0)
        assert enable_gqa
        assert ends.tolist() == [0, *seqused_k.cumsum(0).tolist()]
        assert most_k == block_table.shape[1] * PAGE
        batch = len(starts) - 1
        grouped = q.view(batch, most_q, *q.shape[1:])
        return paged_attention._gathered(grouped, keys, values, seqused_k, block_table, scale, -1, 0.0).flatten(0, 1)

    monkeypatch.setattr(paged_attention, "_find_kernel", lambda: kernel)
    monkeypatch.setattr(paged_attention._Kernel, "call", None)
    monkeypatch.setattr(paged_attention._Kernel, "wants_key_starts", False)
    paged_attention._choose_kernel(torch.device("cpu"))
    assert paged_attention._Kernel.call is kernel
    assert paged_attention._Kernel.wants_key_starts


def test_the_way_without_a_causal_mask_and_a_broken_flash_attn_are_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("EXLLAMA_NO_SDPA", "EXLLAMA_NO_FLASH_ATTN"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    paged_attention.prepare_environment()
    assert os.environ["EXLLAMA_NO_SDPA"]
    assert "EXLLAMA_NO_FLASH_ATTN" not in os.environ

    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "flash_attn":
                raise ImportError("undefined symbol")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    paged_attention.prepare_environment()
    assert os.environ["EXLLAMA_NO_FLASH_ATTN"]
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.delenv("EXLLAMA_NO_FLASH_ATTN")
    paged_attention.prepare_environment()
    assert "EXLLAMA_NO_FLASH_ATTN" not in os.environ
