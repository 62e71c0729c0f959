"""One model, held by ExLlamaV2 on this machine's GPUs; implements `model.Model`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from llamastead.internal.v1 import engine_pb2
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_loading
from llamastead_server.workers.exllama_answer import Answer
from llamastead_server.workers.exllama_loading import CannotLoad, Loaded, Source
from llamastead_server.workers.exllama_sampling import Adjustments, Cut, sampler_settings
from llamastead_server.workers.exllama_scheduler import Scheduler
from llamastead_server.workers.exllama_schema import ANY_OBJECT
from llamastead_server.workers.json_grammar import JsonGrammar, Vocabulary
from llamastead_server.workers.model import EngineError, Event, ModelStatus, Refused, parsed_schema

_log = logging.getLogger(__name__)
_WAITING_PER_SLOT = 4
"""Requests that may wait in here; the server in front bounds them closer."""

LoadModel = Callable[[Source, GpuSettings, Callable[[float, str], None]], Loaded]
MakeJob = Callable[..., Any]


class ExLlama:
    """Loads in a thread of its own, which then runs the generator. Make it on the event loop.

    Args:
        source: Where the model comes from.
        settings: How to load it.
        load: Loads it; `exllama_loading.load` but in tests.
        make_job: Makes the generator's jobs; `exllama_job.Job` but in tests.
    """

    def __init__(
        self,
        source: Source,
        settings: GpuSettings,
        load: LoadModel = exllama_loading.load,
        make_job: MakeJob | None = None,
    ) -> None:
        self._source = source
        self._settings = settings
        self._load = load
        self._make_job = make_job
        self._loaded: Loaded | None = None
        self._progress = 0.0
        self._step = "starting"
        self._error = ""
        self._vocabulary: Vocabulary | None = None
        self._vocabulary_making = threading.Lock()
        limit = settings.slots * (1 + _WAITING_PER_SLOT)
        self._scheduler = Scheduler(self._first_generator, asyncio.get_running_loop(), limit=limit)
        # A daemon: a call into the GPU cannot be interrupted, so it must not hold the process's exit.
        threading.Thread(target=self._scheduler.run, name="generator", daemon=True).start()

    @property
    def path(self) -> Path:
        """The model's folder."""
        return self._source.folder

    @property
    def context_length(self) -> int:
        """Tokens in each request's window; 0 until it is loaded."""
        return self._loaded.window if self._loaded is not None else 0

    @property
    def slots(self) -> int:
        """Requests decoded at once."""
        return self._settings.slots

    async def encode_conversation(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), thinking: bool | None = None
    ) -> list[int]:
        """Renders and encodes a conversation of (role, content); see `model.Model`."""
        return await self._ready().tokenizer.encode_conversation(messages, tools, thinking)

    async def encode_text(self, text: str) -> list[int]:
        """Encodes a raw prompt; see `model.Model`."""
        return await self._ready().tokenizer.encode_text(text)

    async def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return await self._ready().tokenizer.count(text)

    async def complete(
        self, prompt: Sequence[int], request: engine_pb2.GenerateRequest
    ) -> AsyncGenerator[list[Event], None]:
        """Runs one completion; see `model.Model`."""
        loaded = self._ready()
        sampling = request.sampling
        room = loaded.window - len(prompt)
        if not prompt or room <= 0:
            raise Refused(f"A prompt of {len(prompt)} tokens leaves no room in a window of {loaded.window}.")
        cut = Cut.of(sampling)
        options = {
            "settings": sampler_settings(sampling),
            "adjustments": Adjustments.of(sampling, loaded.vocabulary),
            "cut": cut,
            "ends": loaded.ends,
            "seed": sampling.seed if sampling.HasField("seed") else None,
            "alternatives": request.top_logprobs if request.HasField("top_logprobs") else None,
            "vocabulary": loaded.vocabulary,
        }
        # A generator with a draft stops that many tokens early.
        limit = min(request.max_tokens or room, room) + self._settings.proposed_tokens
        grammar = await asyncio.to_thread(self._grammar, request)

        def build(identifier: object) -> Any:
            return self._job(list(prompt), limit, filters=_filters(grammar, cut), identifier=identifier, **options)

        answer = Answer(loaded.tokenizer, len(prompt), list(request.stop))
        async with aclosing(self._scheduler.generate(build, answer)) as batches:
            async for events in batches:
                yield events

    async def status(self) -> ModelStatus:
        """Asks the generator's thread itself, so that a wedged one does not answer."""
        error = self._error or self._scheduler.broken
        if error:
            return ModelStatus("failed", error)
        if self._loaded is None:
            return ModelStatus("loading", progress=self._progress, step=self._step)
        await self._scheduler.ping()
        active = self._scheduler.active_requests
        return ModelStatus(step=self._step, active_requests=active, gpu_bytes=_gpu_bytes())

    def stop(self) -> None:
        """Ends the thread at its next step; ending the process does it at once."""
        self._scheduler.stop()

    def _first_generator(self) -> Any:
        """Loads the model when the scheduler makes its first generator, in the scheduler's thread."""
        if self._loaded is None:
            try:
                loaded = self._load(self._source, self._settings, self._report)
            except CannotLoad as error:
                self._error = str(error)
                raise
            except Exception as error:
                self._error = f"{type(error).__name__}: {error}"
                raise
            generator = loaded.make_generator()
            self._loaded, self._step = loaded, ""
            return generator
        return self._loaded.make_generator()

    def _report(self, progress: float, step: str) -> None:
        if step != self._step or int(progress * 10) > int(self._progress * 10):
            _log.info("%s: %s, %.0f %%", self.path.name, step, progress * 100)
        self._progress, self._step = progress, step

    def _ready(self) -> Loaded:
        if self._loaded is None:
            raise EngineError(f"The model is not loaded yet: {self._step}.")
        return self._loaded

    def _job(self, *arguments: Any, **options: Any) -> Any:
        if self._make_job is None:
            from llamastead_server.workers.exllama_job import Job

            self._make_job = Job
        return self._make_job(*arguments, **options)

    def _grammar(self, request: engine_pb2.GenerateRequest) -> JsonGrammar | None:
        if not request.json_schema and not request.json_object:
            return None
        schema = parsed_schema(request.json_schema) if request.json_schema else ANY_OBJECT
        loaded = self._ready()
        if not loaded.ends:
            raise Refused("JSON answers need a model whose config names a token that ends them.")
        with self._vocabulary_making:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(loaded.vocabulary, loaded.tokenizer.bytes_of, loaded.ends)
        return JsonGrammar(schema, self._vocabulary)


def _filters(grammar: JsonGrammar | None, cut: Cut) -> list[Any]:
    if grammar is None:
        return []
    from llamastead_server.workers.exllama_filter import GrammarFilter

    return [GrammarFilter(grammar, cut)]


def _gpu_bytes() -> int:
    import torch

    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))
