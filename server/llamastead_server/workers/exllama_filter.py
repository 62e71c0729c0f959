"""A grammar as a filter of ExLlamaV2's sampler; importing this imports ExLlamaV2."""

from __future__ import annotations

import torch
from exllamav2.generator.filters import ExLlamaV2Filter

from llamastead_server.workers.exllama_sampling import Cut
from llamastead_server.workers.json_grammar import JsonGrammar


class GrammarFilter(ExLlamaV2Filter):  # type: ignore[misc]
    """Masks the logits of tokens that the grammar does not allow, worked out while the GPU computes.

    Args:
        grammar: Of this answer.
        cut: Which of those that it allows may be drawn.
    """

    def __init__(self, grammar: JsonGrammar, cut: Cut) -> None:
        super().__init__(None, None)
        self._grammar = grammar
        self._cut = cut
        self._mask = torch.zeros(0, dtype=torch.bool)

    @property
    def stuck(self) -> bool:
        """Whether the answer could not be brought to its end."""
        return self._grammar.stuck

    def begin(self, prefix_str: str) -> None:
        """Called before the first token."""

    def feed(self, token: torch.Tensor) -> None:
        """Called with each token."""
        self._grammar.feed(int(token[0, 0]))

    def use_background_worker(self) -> bool:
        """The mask is worked out in a thread."""
        return True

    def can_mask_logits(self) -> bool:
        """There is a mask instead of a list of tokens."""
        return True

    def prepare_logit_mask(self) -> bool:
        """Works the mask out."""
        self._mask = self._grammar.allowed()
        return True

    def mask_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Applies it; what lies behind the vocabulary is masked too."""
        width = self._mask.shape[0]
        logits[:width].masked_fill_(~self._mask[: logits.shape[0]], float("-inf"))
        logits[width:] = float("-inf")
        self._cut.apply(logits[:width])
        return logits
