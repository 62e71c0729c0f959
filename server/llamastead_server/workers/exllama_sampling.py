"""What a request's sampling means to ExLlamaV2, whose own defaults are not neutral."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llamastead.internal.v1 import engine_pb2
from llamastead_server.workers.model import Refused

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
_LEAST_TEMPERATURE = 0.01
"""Below it the engine is greedy; only a temperature of 0 shall be."""
_LEAST_LAST_TEMPERATURE = 0.1
"""Below it the powers that the engine takes of probabilities may all be 0, and it draws the least likely token."""


def sampler_settings(sampling: engine_pb2.Sampling) -> dict[str, Any]:
    """The arguments of `ExLlamaV2Sampler.Settings`; penalties and biases are not among them, see `Adjustments`.

    Args:
        sampling: What the request asks for; absent fields are neutral.
    """
    settings = dict(_NEUTRAL)
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    min_p = sampling.min_p if sampling.HasField("min_p") else 0.0
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    settings["top_k"] = sampling.top_k if sampling.HasField("top_k") else 0
    settings["top_p"] = top_p
    settings["min_p"] = min_p
    # A nucleus of nothing and a least probability of all mean "the likeliest only", but "off" to the engine.
    if temperature == 0.0 or top_p <= 0.0 or min_p >= 1.0:
        settings["top_k"], settings["top_p"], settings["min_p"] = 1, 1.0, 0.0
    else:
        settings["temperature"] = max(temperature, _LEAST_TEMPERATURE)
        # As with llama.cpp, what is cut off is judged before the temperature changes it, unless that hardly matters.
        cuts = bool(settings["top_k"] or top_p < 1.0 or min_p > 0.0)
        settings["temperature_last"] = cuts and temperature >= _LEAST_LAST_TEMPERATURE
    return settings


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
        if unknown := [token for token in sampling.logit_bias if token >= vocabulary]:
            raise Refused(f"logit_bias names token {unknown[0]}, but this model has {vocabulary} tokens.")
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
