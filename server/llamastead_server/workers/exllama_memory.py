"""How large a window and a cache fit the GPUs' free memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamastead_server.domain.models.gpu_settings import PAGE, CacheKind, GpuSettings
from llamastead_server.workers.paged_attention import MOST_GATHERED

_LONGEST_DEFAULT_WINDOW = 8192
_LEAST_WINDOW = 512
_GIGABYTE = 1 << 30
_BYTES_PER_VALUE: Mapping[CacheKind, float] = {
    "fp16": 2.0, "q8": 1.0 + 1 / 16, "q6": 0.75 + 1 / 16, "q4": 0.5 + 1 / 16,
}  # fmt: skip
_WEIGHTS_OVERHEAD = 1.02
_MOST_UNPACKED = 512 << 20
"""Weights that the engine unpacks at a time."""


class NoRoom(Exception):
    """The model does not fit; the message completes "it does not fit: ..."."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a model that its memory depends on."""

    layers: int
    heads: int
    key_heads: int
    key_width: int
    hidden: int
    feed_forward: int
    vocabulary: int
    window: int
    quantised: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Reads a repaired config.json."""
        config = {**config, **(config.get("text_config") or {})}
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            key_width=(config.get("num_key_value_heads") or heads) * width,
            hidden=config["hidden_size"],
            feed_forward=config.get("intermediate_size") or 4 * config["hidden_size"],
            vocabulary=config.get("vocab_size") or 0,
            window=config.get("max_position_embeddings") or _LONGEST_DEFAULT_WINDOW,
            quantised="quantization_config" in config,
        )

    @property
    def scratch(self) -> int:
        """Memory on each GPU into which packed weights are unpacked, a matrix at a time."""
        widest = self.hidden * max(self.vocabulary, self.feed_forward)
        return 2 * min(widest, _MOST_UNPACKED) if self.quantised else 0

    def bytes_per_token(self, kind: CacheKind, gpus: int = 1) -> float:
        """Memory of one token's keys and values in all layers."""
        held = 2 * self.layers * self.key_width * _BYTES_PER_VALUE[kind]
        # A quantised cache is unpacked, one layer at a time, into a whole one in half precision on each GPU.
        return held + (0 if kind == "fp16" else 2 * self.key_width * 2 * gpus)

    def workspace(self, chunk: int, window: int, slots: int, ahead: int) -> int:
        """Memory of one step on one GPU: a chunk at the end of a window, or tokens for each slot and their logits."""
        activations = chunk * (8 * self.hidden + 6 * self.feed_forward)
        # Loading runs one chunk through attention that writes its scores down.
        scores = 6 * self.heads * chunk * chunk
        # Attention that gathers pages holds copies of them, and for each query which of them it sees.
        group = self.heads // max(1, self.key_heads)
        prompt = window * (4 * self.key_width + 3 * group * chunk)
        keys = min(slots * window, max(window, MOST_GATHERED))
        decoding = keys * (4 * self.key_width + 3 * group * (1 + ahead))
        logits = 6 * slots * (1 + ahead) * self.vocabulary
        return activations + max(scores, prompt, decoding) + logits + self.scratch


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up.

    Attributes:
        window: Tokens in each request's window.
        cache_tokens: Tokens the cache holds for all requests.
        chunk: Prompt tokens processed at a time.
    """

    window: int
    cache_tokens: int
    chunk: int


def plan(
    settings: GpuSettings, shape: Shape, weights: int, free: Sequence[int], draft: tuple[Shape, int] | None = None
) -> Plan:
    """Chooses the window and the cache.

    Args:
        settings: What the operator wants.
        shape: The model.
        weights: Bytes of its files.
        free: Free bytes of each GPU.
        draft: The draft model and the bytes of its files.

    Raises:
        NoRoom: It does not fit; the message has the numbers.
    """
    ahead = settings.proposed_tokens
    window = min(settings.context_length or _LONGEST_DEFAULT_WINDOW, shape.window)
    chunk = min(settings.chunk, _pages(window))
    per_token = shape.bytes_per_token(settings.cache, len(free))
    if draft is not None:
        per_token += draft[0].bytes_per_token(settings.cache, len(free))
        weights += draft[1] + draft[0].scratch
    taken = settings.margin * _GIGABYTE + shape.workspace(chunk, window, settings.slots, ahead)
    room = sum(max(0.0, each - taken) for each in free) - weights * _WEIGHTS_OVERHEAD
    affordable = max(0, int(room / per_token)) // PAGE * PAGE
    wanted = settings.cache_tokens or settings.slots * _pages(window + ahead)
    tokens = min(wanted, affordable)
    fixed = settings.cache_tokens is not None or settings.context_length is not None
    least = _pages(window + ahead) if fixed else _LEAST_WINDOW + PAGE
    if settings.cache_tokens is not None and settings.cache_tokens < least:
        raise NoRoom(f"a cache of {settings.cache_tokens} tokens is smaller than one window of {window} tokens.")
    if tokens < least or (settings.cache_tokens is not None and affordable < settings.cache_tokens):
        asked = max(least, settings.cache_tokens or 0)
        needed = int(asked * per_token + weights * _WEIGHTS_OVERHEAD + taken * len(free))
        raise NoRoom(
            f"with a cache of {asked} tokens it needs about {needed >> 20} MiB, and "
            f"{sum(free) >> 20} MiB of GPU memory are free."
        )
    return _fitted(window, tokens, chunk, ahead)


def smaller(plan: Plan, settings: GpuSettings) -> Plan | None:
    """The plan with half the cache, where the estimate was wrong; `None` if the operator wants more than that."""
    tokens = plan.cache_tokens // 2 // PAGE * PAGE
    if settings.cache_tokens is not None or tokens < _LEAST_WINDOW + PAGE:
        return None
    if settings.context_length is not None and tokens < _pages(plan.window + settings.proposed_tokens):
        return None
    return _fitted(plan.window, tokens, plan.chunk, settings.proposed_tokens)


def _fitted(window: int, tokens: int, chunk: int, ahead: int) -> Plan:
    window = min(window, tokens - ahead)
    # Loading runs one whole chunk into the cache.
    return Plan(window, tokens, min(chunk, _pages(window)))


def weight_bytes(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE
