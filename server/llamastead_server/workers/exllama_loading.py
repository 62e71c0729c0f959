"""Loads a model onto GPUs with ExLlamaV2."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamastead.internal.v1 import engine_pb2
from llamastead_server.domain.models.gpu_settings import PAGE, GpuSettings
from llamastead_server.workers import exllama_build, exllama_config, exllama_memory, paged_attention
from llamastead_server.workers.exllama_build import Report
from llamastead_server.workers.exllama_memory import NoRoom, Plan, Shape
from llamastead_server.workers.hf_tokenizer import HfTokenizer

_log = logging.getLogger(__name__)
_CACHES = {"fp16": "ExLlamaV2Cache", "q8": "ExLlamaV2Cache_Q8", "q6": "ExLlamaV2Cache_Q6", "q4": "ExLlamaV2Cache_Q4"}
_QUERIES_PER_SLOT = 8
"""The generator reserves that many tokens for each request that is decoded."""
_LEAST_OUTPUT = 16
_LONGEST_WARM_UP = 16384
"""Tokens; a step's memory grows with what came before it."""
_PACKED_WIDTH = 128
"""Widths of keys whose packed pages the engine's kernel moves; of others it would read numbers out of line."""
_ATTEMPTS = 3
_SHORT_OF_MEMORY = ("out of memory", "Insufficient VRAM", "ALLOC_FAILED")
"""What PyTorch, ExLlamaV2 and CUDA's libraries say; an illegal memory access is another matter."""


class CannotLoad(Exception):
    """The model cannot be loaded; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from.

    Attributes:
        folder: The model's folder.
        draft: The draft model's folder.
        extensions: Holds compiled CUDA extensions.
        private: A folder of this process's own.
    """

    folder: Path
    draft: Path | None
    extensions: Path
    private: Path


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its GPUs.

    Attributes:
        make_generator: Makes a generator over it; the one before must be gone.
        tokenizer: Its tokenizer.
        window: Tokens in each request's window.
        vocabulary: Number of its tokens.
        ends: Tokens that end an answer.
    """

    make_generator: Callable[[], Any]
    tokenizer: HfTokenizer
    window: int
    vocabulary: int
    ends: list[int]


def load(source: Source, settings: GpuSettings, report: Report) -> Loaded:
    """Loads a model; takes seconds to minutes.

    Raises:
        CannotLoad: It cannot be loaded.
    """
    try:
        return _load(source, settings, report)
    except exllama_config.Unsupported as error:
        raise CannotLoad(f"The model {source.folder.name!r} cannot be loaded: {error}") from None
    except NoRoom as error:
        raise CannotLoad(f"The model {source.folder.name!r} does not fit: {error}") from None
    except exllama_build.BuildFailed as error:
        raise CannotLoad(str(error)) from None


def _load(source: Source, settings: GpuSettings, report: Report) -> Loaded:
    import torch

    if not torch.cuda.is_available():
        raise CannotLoad("PyTorch sees no NVIDIA GPU in this process.")
    if settings.split is not None and len(settings.split) > torch.cuda.device_count():
        raise CannotLoad(f"The split names {len(settings.split)} GPUs, and there are {torch.cuda.device_count()}.")
    config = exllama_config.staged(source.folder, source.private / "model")
    tokenizer = HfTokenizer(source.folder, config)
    ends = end_tokens(source.folder, tokenizer)
    draft = None
    if source.draft is not None:
        draft_config = exllama_config.staged(source.draft, source.private / "draft")
        if draft_config.get("vocab_size") != config.get("vocab_size"):
            raise CannotLoad(f"The draft model {source.draft.name!r} has another vocabulary than the model.")
        draft = (Shape.of(draft_config), exllama_memory.weight_bytes(source.draft))
    report(0.0, "preparing the GPU kernels")
    paged_attention.prepare_environment()
    exllama_build.load_extension(source.extensions, lambda share, step: report(0.0, step))
    kind = paged_attention.install(importlib.import_module("exllamav2.attn"))
    free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    shape = Shape.of(config)
    for each in (shape, *(draft[:1] if draft else ())):
        if settings.cache != "fp16" and each.key_width % _PACKED_WIDTH:
            raise CannotLoad(
                f"A {settings.cache} cache takes keys whose width is a multiple of {_PACKED_WIDTH}, and those of "
                f"{source.folder.name!r} or its draft are {each.key_width} wide: set `cache: fp16`."
            )
    chosen = exllama_memory.plan(settings, shape, exllama_memory.weight_bytes(source.folder), free, draft)
    vocabulary = min(tokenizer.size, shape.vocabulary)
    parts = _on_gpus(source, settings, chosen, vocabulary, report)
    _log.info(
        "loaded with windows of %d tokens, a %s cache of %d tokens, attention by %s",
        parts.plan.window, settings.cache, parts.plan.cache_tokens, kind,
    )  # fmt: skip
    return Loaded(lambda: _generator(parts, settings), tokenizer, parts.plan.window, vocabulary, ends)


def end_tokens(folder: Path, tokenizer: HfTokenizer) -> list[int]:
    """Every token that ends an answer: what the configs name, and what the tokenizer calls its end."""
    config, generation = (exllama_config.read_json(folder / name) for name in ("config.json", "generation_config.json"))
    named = [*exllama_config.end_tokens(config, generation), *tokenizer.end_tokens]
    return list(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a generator is made of."""

    plan: Plan
    model: Any
    cache: Any
    tokenizer: Any
    draft_model: Any
    draft_cache: Any
    loras: list[Any]


def _on_gpus(source: Source, settings: GpuSettings, plan: Plan, vocabulary: int, report: Report) -> _Parts:
    """Loads with the planned cache, or with less if the estimate was wrong and the size is ours to choose."""
    for attempt in range(_ATTEMPTS):
        parts = None
        try:
            parts = _attempt(source, settings, plan, report)
            report(1.0, "warming up")
            _warm_up(parts, settings, vocabulary)
            return parts
        except RuntimeError as error:
            if not any(each in str(error) for each in _SHORT_OF_MEMORY):
                raise
            # What did not fit would take the next attempt's place.
            parts = None
            smaller = exllama_memory.smaller(plan, settings)
            if smaller is None or attempt == _ATTEMPTS - 1:
                raise NoRoom(f"a cache of {plan.cache_tokens} tokens leaves too little GPU memory: {error}") from None
            plan = smaller
        # Here the error is gone, and with it the last references to what was loaded.
        _free_memory()
    raise AssertionError("the last attempt returns or raises")


def _attempt(source: Source, settings: GpuSettings, plan: Plan, report: Report) -> _Parts:
    import exllamav2

    def put(folder: Path, share: tuple[float, float]) -> tuple[Any, Any, Any]:
        config = exllamav2.ExLlamaV2Config()
        config.model_dir = str(folder)
        config.prepare()
        configure(config, settings, plan)
        model = exllamav2.ExLlamaV2(config)
        make_cache = getattr(exllamav2, _CACHES[settings.cache])

        def progress(done: int, total: int) -> None:
            report(share[0] + (share[1] - share[0]) * done / max(total, 1), "loading")

        if settings.split is not None:
            try:
                model.load(list(settings.split), callback=progress)
            except AssertionError:
                raise NoRoom(
                    f"a split of {', '.join(f'{each:g} GB' for each in settings.split)} is too small."
                ) from None
            return config, model, make_cache(model, max_seq_len=plan.cache_tokens)
        cache = make_cache(model, max_seq_len=plan.cache_tokens, lazy=True)
        model.load_autosplit(cache, reserve_vram=int(settings.margin * (1 << 30)), callback=progress)
        return config, model, cache

    draft_model = draft_cache = None
    if source.draft is not None:
        _, draft_model, draft_cache = put(source.private / "draft", (0.0, 0.2))
    config, model, cache = put(source.private / "model", (0.2 if source.draft else 0.0, 1.0))
    loras = [
        exllamav2.ExLlamaV2Lora.from_directory(model, str(source.folder / each.path), each.scale)
        for each in settings.loras
    ]
    return _Parts(plan, model, cache, exllamav2.ExLlamaV2Tokenizer(config), draft_model, draft_cache, loras)


def configure(config: Any, settings: GpuSettings, plan: Plan) -> None:
    """Sets the sizes of an `ExLlamaV2Config` that has read its files."""
    config.arch_compat_overrides(quiet=True)
    # Paged attention is supplied where flash-attn is not; the SDPA path has no causal mask.
    config.no_flash_attn = False
    config.no_sdpa = True
    slots = _slots(settings, plan)
    queries = -(-slots * _QUERIES_PER_SLOT // PAGE) * PAGE
    config.max_input_len = max(plan.chunk, queries)
    config.max_attention_size = config.max_input_len**2
    ahead = plan.window + settings.proposed_tokens
    config.max_seq_len = max(-(-ahead // PAGE) * PAGE, config.max_input_len)
    config.max_output_len = max(_LEAST_OUTPUT, slots * (1 + settings.proposed_tokens))


def generator_options(settings: GpuSettings, plan: Plan) -> Mapping[str, Any]:
    """Arguments of `ExLlamaV2DynamicGenerator` beside the model's parts."""
    options: dict[str, Any] = {
        "max_batch_size": _slots(settings, plan),
        "max_chunk_size": plan.chunk,
        "max_q_size": _QUERIES_PER_SLOT,
        "paged": True,
    }
    if settings.proposed_tokens:
        options |= {"num_draft_tokens": settings.draft_tokens, "use_ngram_draft": settings.ngram_draft}
    return options


def _slots(settings: GpuSettings, plan: Plan) -> int:
    """Requests that can be decoded at once: each holds a page at least."""
    return min(settings.slots, plan.cache_tokens // PAGE)


def _generator(parts: _Parts, settings: GpuSettings) -> Any:
    from llamastead_server.workers.exllama_generator import Generator

    _free_memory()
    generator = Generator(
        model=parts.model,
        cache=parts.cache,
        tokenizer=parts.tokenizer,
        draft_model=parts.draft_model,
        draft_cache=parts.draft_cache,
        **generator_options(settings, parts.plan),
    )
    if parts.loras:
        generator.set_loras(parts.loras)
    return generator


def _warm_up(parts: _Parts, settings: GpuSettings, vocabulary: int) -> None:
    """Proves that the longest step fits the memory, and lets the kernels tune themselves."""
    from llamastead_server.workers.exllama_job import Job
    from llamastead_server.workers.exllama_sampling import Adjustments, Cut, sampler_settings

    generator = _generator(parts, settings)
    length = max(1, min(parts.plan.window - _QUERIES_PER_SLOT - 1, _LONGEST_WARM_UP))
    generator.enqueue(
        Job(
            [index % vocabulary for index in range(length)],
            _QUERIES_PER_SLOT,
            settings=sampler_settings(engine_pb2.Sampling(temperature=0)),
            adjustments=Adjustments(),
            cut=Cut(),
            ends=[],
            seed=0,
            alternatives=None,
            vocabulary=vocabulary,
            filters=[],
            identifier=None,
        )
    )
    while generator.num_remaining_jobs():
        generator.iterate()


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
