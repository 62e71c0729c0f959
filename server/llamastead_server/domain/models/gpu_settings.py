"""How a model is loaded onto GPUs: the server's settings, and what a model's own `llamastead.yaml` changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CacheKind = Literal["fp16", "q8", "q6", "q4"]
Gigabytes = Annotated[float, Field(ge=0)]
PAGE = 256
"""Tokens in one page of the engine's cache; sizes are whole pages."""


class Adapter(BaseModel):
    """A LoRA applied to every request of the model.

    Attributes:
        path: Folder with `adapter_config.json`, relative to the model's folder.
        scale: Factor on its effect; 1 is as trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, max_length=500)
    scale: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)


class GpuSettings(BaseModel):
    """How to load a model onto GPUs; a file `llamastead.yaml` in the model's folder may set any of these.

    Attributes:
        context_length: Tokens in each request's window; `None` is the model's own, at most 8192, less when
            memory is short.
        slots: Requests decoded at once.
        cache: Precision of cached keys and values; fewer bits hold more tokens and cost accuracy.
        cache_tokens: Tokens the cache holds for all requests together, a multiple of 256; `None` is what
            memory allows, at most a full window for each slot.
        chunk: Prompt tokens processed between two decoding steps, a multiple of 256.
        margin: Memory left free on each GPU, in gigabytes.
        split: Most memory for weights on each GPU, in gigabytes, in the GPUs' order; `None` fills them in turn.
        draft_model: Name of a small model of the same vocabulary that proposes tokens for this one to check.
        ngram_draft: Propose tokens by looking for repetitions in the text instead.
        draft_tokens: Tokens proposed at a time.
        loras: LoRA adapters, applied together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    context_length: int | None = Field(None, ge=PAGE, le=1 << 24)
    slots: int = Field(32, ge=1, le=256)
    cache: CacheKind = "fp16"
    cache_tokens: int | None = Field(None, ge=2 * PAGE, multiple_of=PAGE)
    chunk: int = Field(2048, ge=PAGE, le=1 << 16, multiple_of=PAGE)
    margin: Gigabytes = 1.0
    split: tuple[Gigabytes, ...] | None = Field(None, min_length=1, max_length=64)
    draft_model: str | None = Field(None, min_length=1, max_length=500)
    ngram_draft: bool = False
    draft_tokens: int = Field(4, ge=1, le=7)
    loras: tuple[Adapter, ...] = Field((), max_length=16)

    @model_validator(mode="after")
    def _one_kind_of_draft(self) -> GpuSettings:
        if self.draft_model and self.ngram_draft:
            raise ValueError("give either draft_model or ngram_draft, not both")
        return self

    @property
    def proposed_tokens(self) -> int:
        """Tokens proposed at a time; 0 without a draft."""
        return self.draft_tokens if self.draft_model or self.ngram_draft else 0
