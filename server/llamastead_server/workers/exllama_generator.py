"""ExLlamaV2's dynamic generator where it must be mended; importing this imports ExLlamaV2."""

from __future__ import annotations

from typing import Any

import torch
from exllamav2.generator import ExLlamaV2DynamicGenerator


class Generator(ExLlamaV2DynamicGenerator):  # type: ignore[misc]
    """Proposes tokens from repetitions in texts of any length: the engine fails every request beside a short one."""

    def iterate_ngram_gen(self, results: list[dict[str, Any]]) -> torch.Tensor | None:
        """Proposes tokens for each job that decodes; called by the generator."""
        sequences = [job.sequences[0].sequence_ids for job in self.active_jobs if job.is_prefill_done()]
        if all(len(sequence) >= self.max_ngram - 1 for sequence in sequences):
            proposed: torch.Tensor | None = super().iterate_ngram_gen(results)
            return proposed
        # For a step or two: whatever is proposed is checked.
        return torch.cat([sequence.torch()[:, -1:].repeat(1, self.num_draft_tokens) for sequence in sequences])
