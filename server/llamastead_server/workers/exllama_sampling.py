"""What a request's sampling means to ExLlamaV2, whose own defaults are not neutral."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llamastead.internal.v1 import engine_pb2
from llamastead_server.workers.model import check_bias

_NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0,
    "temperature_last": False,
    "top_k": 0,
    "top_p": 1.0,
    "top_a": 0.0,
    "min_p": 0.0,
    "tfs": 0.0,
    "typical": 0.0,
    "skew": 0.0,
    "smoothing_factor": 0.0,
    "min_temp": 0.0,
    "max_temp": 0.0,
    "token_repetition_penalty": 1.0,
    "token_frequency_penalty": 0.0,
    "token_presence_penalty": 0.0,
    "mirostat": False,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "cfg_scale": None,
}
_LEAST_TEMPERATURE = 0.0101
"""Below 0.01, which 0.01 itself is in 32 bits, the engine is greedy; only a temperature of 0 shall be."""
_MANY = 1024
"""Tokens among which a nucleus usually lies; sorting the whole vocabulary takes far longer."""


def sampler_settings(sampling: engine_pb2.Sampling) -> dict[str, Any]:
    """The arguments of `ExLlamaV2Sampler.Settings`; the rest of a request are its `Adjustments` and its `Cut`.

    Args:
        sampling: What the request asks for; absent fields are neutral.
    """
    settings = dict(_NEUTRAL)
    if _is_greedy(sampling):
        settings["top_k"] = 1
    elif sampling.HasField("temperature"):
        settings["temperature"] = max(sampling.temperature, _LEAST_TEMPERATURE)
    return settings


def _is_greedy(sampling: engine_pb2.Sampling) -> bool:
    """Whether only the likeliest token may be drawn; a nucleus of nothing and a least probability of all say so too."""
    return (
        (sampling.HasField("temperature") and sampling.temperature == 0.0)
        or (sampling.HasField("top_p") and sampling.top_p <= 0.0)
        or (sampling.HasField("min_p") and sampling.min_p >= 1.0)
        or sampling.top_k == 1
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """Which tokens may be drawn at all, judged before the temperature changes their probabilities, as with llama.cpp.

    The engine's own nucleus leaves out the token that completes it: of two tokens of 60 and 40 % and a `top_p` of 0.99
    it draws the first only. And where it applies the temperature last, the powers it takes of probabilities may all be
    0, whereupon it draws the least likely token.

    Attributes:
        top_k: So many of the likeliest; 0 is all.
        top_p: Of those, the likeliest that together have this probability at least; 1 is all.
        min_p: Of those, the ones with this share of the likeliest one's probability; 0 is all.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @classmethod
    def of(cls, sampling: engine_pb2.Sampling) -> Cut:
        """What a request asks for; absent fields are neutral."""
        if _is_greedy(sampling):
            return cls()
        return cls(sampling.top_k, sampling.top_p if sampling.HasField("top_p") else 1.0, sampling.min_p)

    def apply(self, logits: torch.Tensor) -> None:
        """Makes what may not be drawn impossible, in place.

        Args:
            logits: Of one position, [vocabulary].
        """
        if self.top_k or self.top_p < 1.0:
            values, tokens = self._likeliest(logits)
            logits.fill_(float("-inf"))
            logits[tokens] = values
        if self.min_p > 0.0:
            logits.masked_fill_(logits < logits.max() + math.log(self.min_p), float("-inf"))

    def _likeliest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, tokens = logits.topk(min(self.top_k or _MANY, logits.shape[0]))
        if self.top_p >= 1.0:
            return values, tokens
        whole = (values if self.top_k else logits).logsumexp(0)
        mass = (values - whole).exp().cumsum(0)
        if not self.top_k and mass[-1] < self.top_p:
            values, tokens = logits.sort(descending=True)
            mass = (values - whole).exp().cumsum(0)
        count = int((mass < self.top_p).sum()) + 1
        return values[:count], tokens[:count]


@dataclass(frozen=True, slots=True)
class Adjustments:
    """What a request changes in the model's logits.

    Penalties are as OpenAI defines them, over what was generated: the engine's own count the prompt too. The engine's
    own bias must be as wide as its logits, which may be wider than the tokenizer's vocabulary, and fails everyone's
    step if it is not.

    Attributes:
        repeat: Logits of generated tokens are divided by it, or multiplied where negative; 1 is off.
        presence: Subtracted from the logit of each token that was generated.
        frequency: Subtracted once for each time it was generated.
        bias: Added to the logits of these tokens.
    """

    repeat: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, sampling: engine_pb2.Sampling, vocabulary: int) -> Adjustments:
        """What a request asks for.

        Args:
            sampling: Of the request; absent fields are neutral.
            vocabulary: Number of tokens.

        Raises:
            Refused: A biased token does not exist.
        """
        check_bias(sampling, vocabulary)
        return cls(
            sampling.repeat_penalty if sampling.HasField("repeat_penalty") else 1.0,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            dict(sampling.logit_bias),
        )

    def apply(self, logits: torch.Tensor, generated: torch.Tensor) -> None:
        """Changes logits in place.

        Args:
            logits: Of one position, [vocabulary].
            generated: The tokens generated before it, [any number].
        """
        if generated.numel() and (self.repeat, self.presence, self.frequency) != (1.0, 0.0, 0.0):
            self._penalise(logits, generated)
        if self.bias:
            logits[list(self.bias)] += torch.tensor(list(self.bias.values()), dtype=logits.dtype)

    def _penalise(self, logits: torch.Tensor, generated: torch.Tensor) -> None:
        tokens, counts = torch.unique(generated, return_counts=True)
        values = logits[tokens]
        if self.repeat != 1.0:
            values = torch.where(values > 0, values / self.repeat, values * self.repeat)
        logits[tokens] = values - self.presence - self.frequency * counts.to(values.dtype)


def log_probabilities(logits: torch.Tensor, alternatives: int) -> tuple[torch.Tensor, list[tuple[int, float]]]:
    """The model's own log probabilities of one position, [vocabulary], and the likeliest tokens with theirs."""
    every = logits.float().log_softmax(-1)
    values, tokens = every.topk(min(alternatives, every.shape[0]))
    likeliest: Sequence[tuple[int, float]] = list(zip(tokens.tolist(), values.tolist(), strict=True))
    return every, list(likeliest)
