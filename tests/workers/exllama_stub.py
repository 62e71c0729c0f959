"""ExLlamaV2's compiled extension, as far as it runs on the CPU, in plain PyTorch.

With it in place `import exllamav2` works without a GPU, and its generator, page table, jobs and sampler are the real
ones. Call `install` before anything imports exllamav2, and never where there is a GPU to test.
"""

from __future__ import annotations

import itertools
import sys
from types import ModuleType
from typing import Any

import torch


class _Extension(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*_: Any) -> None:
            raise RuntimeError(f"the test's extension has no {name}")

        return call


def count_match(known: torch.Tensor, wanted: torch.Tensor, limit: int) -> int:
    length = min(limit, known.shape[-1], wanted.shape[-1])
    different = (known[0, :length] != wanted[0, :length]).nonzero()
    return int(different[0]) if len(different) else length


def cache_rotate(cache: torch.Tensor, order: torch.Tensor, _: torch.Tensor) -> None:
    places = order.tolist()
    first = cache[places[0]].clone()
    for target, source in itertools.pairwise(places):
        cache[target] = cache[source]
    cache[places[-1]] = first


def fast_fadd_cpu(logits: torch.Tensor, bias: torch.Tensor) -> None:
    assert logits.shape[-1] == bias.shape[-1]
    logits += bias


def sample_basic(
    logits: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    top_a: float,
    min_p: float,
    tfs: float,
    typical: float,
    random: float,
    tokens: torch.Tensor,
    probabilities: torch.Tensor,
    top_probabilities: torch.Tensor,
    top_tokens: torch.Tensor,
    allowed: torch.Tensor,
    mirostat: bool,
    mirostat_mu: list[float],
    mirostat_tau: float,
    mirostat_eta: float,
    post_temperature: float,
    *_: Any,
) -> list[float]:
    assert not mirostat
    # What the engine means by the others is not what we do.
    assert top_p in (0.0, 1.0)
    assert (top_a, min_p, tfs, typical, post_temperature) == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert top_k in (0, 1)
    # Compared there as a number of 32 bits with one of 64.
    if float(torch.tensor(temperature)) < 0.01:
        temperature, top_k = 1.0, 1
    row = logits[0, 0].clone()
    if not allowed.is_meta:
        row[~allowed[0]] = float("-inf")
    weights, order = (row / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_k:
        weights = torch.ones(1)
    # As there, weights that are no numbers draw the last.
    reached = ~(weights.cumsum(0) >= random * 0.9998)
    drawn = min(int(reached.sum()), len(weights) - 1)
    tokens[0, 0], probabilities[0, 0] = order[drawn], weights[drawn]
    return mirostat_mu


def install() -> None:
    if "exllamav2_ext" in sys.modules:
        return
    extension = _Extension("exllamav2_ext")
    for function in (count_match, cache_rotate, fast_fadd_cpu, sample_basic):
        setattr(extension, function.__name__, function)
    sys.modules["exllamav2_ext"] = extension
