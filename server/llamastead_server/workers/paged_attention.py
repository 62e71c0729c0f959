"""Attention over a paged cache in plain PyTorch, where flash-attn is not installed.

ExLlamaV2 batches requests only in its paged mode, which takes one function from flash-attn. This module supplies
it, and never touches an installed flash-attn. Where this PyTorch's own flash kernel reads pages
(`torch.nn.attention.varlen` with `block_table`), it is used; elsewhere the pages are gathered first.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

_log = logging.getLogger(__name__)
_MASKED = -1e30
_KERNEL_HEAD_WIDTHS = range(8, 257, 8)
MOST_GATHERED = 1 << 16
"""Keys that are gathered at a time, but for a longer sequence."""


def prepare_environment() -> None:
    """Sets what ExLlamaV2 reads while it is imported; call it before that.

    Its SDPA path has no causal mask in prefill, so it is never taken. A flash-attn that cannot be imported, or a GPU
    too old for it, would end the import or the first request.
    """
    os.environ["EXLLAMA_NO_SDPA"] = "1"
    try:
        importlib.import_module("flash_attn")
    except ModuleNotFoundError:
        return
    except Exception:
        os.environ["EXLLAMA_NO_FLASH_ATTN"] = "1"
        return
    devices = range(torch.cuda.device_count())
    if any(torch.cuda.get_device_properties(index).major < 8 for index in devices):
        os.environ["EXLLAMA_NO_FLASH_ATTN"] = "1"


def install(attention: Any) -> str:
    """Gives the module `exllamav2.attn` its paged attention unless it has one.

    Returns:
        What is used: `flash-attn`, `torch varlen` or `torch gather`.
    """
    supplied = getattr(attention, "flash_attn_with_kvcache", None) is flash_attn_with_kvcache
    if attention.has_flash_attn_with_paged and not supplied:
        return "flash-attn"
    attention.flash_attn_with_kvcache = flash_attn_with_kvcache
    attention.has_flash_attn_with_paged = True
    attention.has_flash_attn_with_window = True
    attention.has_flash_attn_with_softcap = True
    if torch.cuda.is_available():
        # Newer PyTorch prefers it on newer GPUs, but it plans anew for each shape, and here that changes all the time.
        torch.backends.cuda.enable_cudnn_sdp(False)
        _choose_kernel(torch.device("cuda"))
    return "torch gather" if _Kernel.call is None else "torch varlen"


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    *,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    softmax_scale: float,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> torch.Tensor:
    """Does what flash-attn's function of this name does, for the calls that ExLlamaV2 makes.

    Args:
        q: Queries, [batch, tokens, heads, width].
        k_cache: Pages of keys, [pages, page, key heads, width].
        v_cache: Pages of values, likewise.
        k: Keys of the new tokens, to be written behind `cache_seqlens`; `None` when they are in the cache already.
        v: Values of the new tokens.
        cache_seqlens: Tokens in the cache, [batch]; with `k` without the new ones.
        block_table: Pages of each sequence in order, [batch, most pages].
        softmax_scale: Factor on the scores.
        causal: Must be true: each token sees itself and what came before.
        window_size: Tokens before it that each token sees, in [0]; -1 is all.
        softcap: Scores are pressed into (-softcap, softcap) by tanh; 0 is off.

    Returns:
        The attention's result, shaped as `q`.
    """
    if not causal:
        raise ValueError("paged attention here is causal")
    if k is not None and v is not None:
        _write(k_cache, v_cache, k, v, cache_seqlens, block_table)
        cache_seqlens = cache_seqlens + q.shape[1]
    fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] in _KERNEL_HEAD_WIDTHS
    if _Kernel.call is not None and fits and not softcap:
        result = _paged_kernel(q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, window_size[0])
    else:
        # All are gathered as long as the longest: at once, a long one among many short ones would take much memory.
        rows = max(1, MOST_GATHERED // (block_table.shape[1] * k_cache.shape[1]))
        parts = [
            _gathered(part, k_cache, v_cache, lengths, table, softmax_scale, window_size[0], softcap)
            for part, lengths, table in zip(
                *(torch.split(each, rows) for each in (q, cache_seqlens, block_table)), strict=True
            )
        ]
        result = torch.cat(parts) if len(parts) > 1 else parts[0]
    # The kernels that take it next read it in one piece.
    return result.contiguous()


def _write(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
) -> None:
    page = k_cache.shape[1]
    positions = lengths.long()[:, None] + torch.arange(k.shape[1], device=k.device)
    pages = table.long().gather(1, positions // page)
    k_cache[pages, positions % page] = k
    v_cache[pages, positions % page] = v


def _gathered(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    batch, tokens, heads, width = q.shape
    key_heads = k_cache.shape[2]
    group = heads // key_heads
    # The table's width bounds the lengths; asking the GPU for the longest would make the CPU wait for it.
    keys = k_cache[table.long()].flatten(1, 2).transpose(1, 2)
    values = v_cache[table.long()].flatten(1, 2).transpose(1, 2)
    place = torch.arange(keys.shape[2], device=q.device)
    position = (lengths.long()[:, None] - tokens + torch.arange(tokens, device=q.device))[:, :, None]
    seen = place <= position
    if window >= 0:
        seen &= place >= position - window
    # The heads that share keys become further queries, so that keys are not copied for each.
    queries = q.view(batch, tokens, key_heads, group, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = seen[:, None].expand(batch, group, tokens, -1).flatten(1, 2)[:, None]
    if softcap:
        scores = torch.matmul(queries.float(), keys.float().transpose(2, 3)) * scale
        scores = torch.where(mask, softcap * torch.tanh(scores / softcap), _MASKED)
        result = torch.matmul(scores.softmax(-1).to(values.dtype), values)
    else:
        result = scaled_dot_product_attention(queries, keys, values, mask, scale=scale)
    return result.reshape(batch, key_heads, group, tokens, width).permute(0, 3, 1, 2, 4).reshape(q.shape)


def _paged_kernel(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    assert _Kernel.call is not None
    batch, tokens = q.shape[:2]
    starts = torch.arange(0, batch * tokens + 1, tokens, dtype=torch.int32, device=q.device)
    ends = pad(lengths.cumsum(0), (1, 0)).int() if _Kernel.wants_key_starts else None
    result: torch.Tensor = _Kernel.call(
        q.flatten(0, 1),
        k_cache,
        v_cache,
        starts,
        ends,
        tokens,
        table.shape[1] * k_cache.shape[1],
        scale=scale,
        window_size=(window, 0),
        enable_gqa=q.shape[2] != k_cache.shape[2],
        seqused_k=lengths.int(),
        block_table=table.int().contiguous(),
    )
    return result.reshape(q.shape)


class _Kernel:
    """This PyTorch's kernel that reads pages, once it has proved itself on this GPU."""

    call: ClassVar[Callable[..., Any] | None] = None
    wants_key_starts: ClassVar[bool] = False


def _choose_kernel(device: torch.device) -> None:
    """Uses the kernel only if it agrees with the plain way here: what it takes is new and thinly documented."""
    kernel = _find_kernel()
    for wants_key_starts in (False, True):
        _Kernel.call, _Kernel.wants_key_starts = kernel, wants_key_starts
        try:
            if kernel is not None and _agrees(device):
                return
        except (RuntimeError, ValueError, TypeError) as error:
            _log.info("torch's paged attention kernel is not used: %s", error)
    _Kernel.call = None


def _find_kernel() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"seqused_k", "block_table", "enable_gqa", "window_size", "scale"}
    return varlen_attn if needed <= set(inspect.signature(varlen_attn).parameters) else None


@torch.inference_mode()
def _agrees(device: torch.device) -> bool:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(device, torch.float16)

    pages = random(5, 256, 2, 64), random(5, 256, 2, 64)
    table = torch.tensor([[3, 1], [4, 0]], dtype=torch.int32, device=device)
    lengths = torch.tensor([300, 17], dtype=torch.int32, device=device)
    for tokens in (1, 5):
        q = random(2, tokens, 4, 64)
        kernel = _paged_kernel(q, *pages, lengths, table, 0.125, -1)
        plain = _gathered(q, *pages, lengths, table, 0.125, -1, 0.0)
        if not torch.allclose(kernel.float(), plain.float(), atol=1e-2):
            return False
    return True
