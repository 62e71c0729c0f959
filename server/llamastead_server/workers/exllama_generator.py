"""ExLlamaV2's dynamic generator where it must be mended; importing this imports ExLlamaV2."""

from __future__ import annotations

from typing import Any

import torch
from exllamav2.generator import ExLlamaV2DynamicGenerator


class Generator(ExLlamaV2DynamicGenerator):  # type: ignore[misc]
    """Shares a chunk of each step among all prompts, and proposes tokens from repetitions in texts of any length.

    The engine itself takes a chunk of every prompt that came, before anyone gets another token, and fails every
    request beside one that is too short for its proposals.

    Attributes:
        prefilled: Prompt tokens processed in this step; its jobs count them.
    """

    prefilled = 0

    def iterate_start_jobs(self, results: list[dict[str, Any]]) -> None:
        """Begins a step; called by the generator."""
        self.prefilled = 0
        super().iterate_start_jobs(results)

    def iterate_ngram_gen(self, results: list[dict[str, Any]]) -> torch.Tensor | None:
        """Proposes tokens for each job that decodes; called by the generator."""
        sequences = [job.sequences[0].sequence_ids for job in self.active_jobs if job.is_prefill_done()]
        if all(len(sequence) >= self.max_ngram - 1 for sequence in sequences):
            proposed: torch.Tensor | None = super().iterate_ngram_gen(results)
            return proposed
        # For a step or two: whatever is proposed is checked.
        return torch.cat([sequence.torch()[:, -1:].repeat(1, self.num_draft_tokens) for sequence in sequences])
