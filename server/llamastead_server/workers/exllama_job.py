"""A request as a job of ExLlamaV2's dynamic generator; importing this imports ExLlamaV2."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

from llamastead_server.workers.exllama_sampling import Adjustments, Cut, log_probabilities


@dataclass(frozen=True, slots=True)
class Chosen:
    """A generated token with its log probability, and the likeliest tokens with theirs."""

    token: int
    logprob: float
    likeliest: list[tuple[int, float]]


class Job(ExLlamaV2DynamicJob):  # type: ignore[misc]
    """A job whose penalties count only what it generated, and which tells the model's own log probabilities.

    The engine's are those after temperature and truncation, by which a greedy token always has probability 1.

    Args:
        prompt: Token ids.
        max_tokens: Most tokens to generate.
        settings: Arguments of the engine's sampler settings.
        adjustments: To the logits before a token is drawn.
        cut: Which tokens may be drawn; a filter has to apply it itself, after its own.
        ends: Tokens that end the answer.
        seed: Of the random draw; `None` is a fresh one.
        alternatives: Likeliest tokens to tell with each log probability; `None` tells no log probabilities.
        vocabulary: Number of tokens.
        filters: What binds the text to a form.
        identifier: Given back with every result.
    """

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        settings: dict[str, Any],
        adjustments: Adjustments,
        cut: Cut,
        ends: list[int],
        seed: int | None,
        alternatives: int | None,
        vocabulary: int,
        filters: list[Any],
        identifier: object,
    ) -> None:
        super().__init__(
            input_ids=torch.tensor([prompt], dtype=torch.long),
            max_new_tokens=max_tokens,
            gen_settings=ExLlamaV2Sampler.Settings(**settings),
            seed=seed,
            stop_conditions=ends,
            filters=filters,
            identifier=identifier,
        )
        self._prompt_length = len(prompt)
        self._adjustments = adjustments
        self._cut = cut
        self._alternatives = alternatives
        self._vocabulary = vocabulary
        # Most are, and looking at each would be a third of the work in Python with a token.
        self._as_it_is = alternatives is None and adjustments == Adjustments() and (bool(filters) or cut == Cut())
        self._now: tuple[torch.Tensor, list[tuple[int, float]]] | None = None
        self.chosen: deque[Chosen] = deque()

    def prefill(self, results: list[dict[str, Any]]) -> None:
        """Processes a chunk of the prompt, or waits while others' have the step; called by the generator."""
        if self.generator.prefilled >= self.generator.max_chunk_size and not self.is_prefill_done():
            return
        before = self._processed
        super().prefill(results)
        self.generator.prefilled += self._processed - before

    @property
    def _processed(self) -> int:
        """Tokens that were not found in the cache."""
        found = self.cached_pages * self.generator.page_size + self.cached_tokens
        return int(self.sequences[0].kv_position - found)

    def receive_logits(self, logits: torch.Tensor) -> Any:
        """Samples; called by the generator, for several jobs at once."""
        if self._as_it_is:
            return super().receive_logits(logits)
        row = logits[0, 0, : self._vocabulary]
        if self._alternatives is not None:
            self._now = log_probabilities(row, self._alternatives)
        self._adjustments.apply(row, self.sequences[0].sequence_ids.torch_slice(self._prompt_length, None)[0])
        if not self.filters:
            self._cut.apply(row)
        return super().receive_logits(logits)

    def receive_sample(self, logits: torch.Tensor, next_token: torch.Tensor, *rest: Any) -> Any:
        """Notes the token that was drawn; called by the generator."""
        if self._now is not None:
            every, likeliest = self._now
            token = int(next_token.item())
            self.chosen.append(Chosen(token, float(every[token]), likeliest))
        return super().receive_sample(logits, next_token, *rest)
