"""The models installed here and the workers that hold some of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llamastead_server.adapters.departures import Departures
from llamastead_server.adapters.engine import WorkerEngine
from llamastead_server.adapters.gguf_conversion import GgufConversion
from llamastead_server.adapters.gpu import GpuHost
from llamastead_server.adapters.gpu_models import GpuModels
from llamastead_server.adapters.kept_models import KeptModels
from llamastead_server.adapters.loaded_model import EngineProbe, LoadedModel
from llamastead_server.adapters.machine import available_memory_bytes
from llamastead_server.adapters.model_catalog import CatalogEntry, ModelCatalog
from llamastead_server.adapters.model_room import ModelRoom
from llamastead_server.adapters.supervision import Supervision
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import Overloaded, Unavailable
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.models.gguf_header import BadGguf, read_header
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.operations.meters import Meters

CONVERTED = ".converted"
"""Folder in the models folder that holds the GGUF form of safetensors models."""

_WORKER = "llamastead_server.workers.engine"
_LONGEST_DEFAULT_CONTEXT = 8192
_LONGEST_GPU_START = 3600.0
_DRAIN_SECONDS = 30.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How models are loaded.

    Attributes:
        context_length: Tokens in each request's window; `None` is the model's own, at most 8192.
        slots: Requests one engine decodes at once.
        queue: Requests that may wait per engine.
        threads: Threads of the CPU engine; `None` is all cores but one.
        supervision: How closely workers are watched.
        prompt_cache_bytes: Gives the memory an engine may keep for prompts it has seen.
    """

    context_length: int | None = None
    slots: int = 4
    queue: int = 32
    threads: int | None = None
    supervision: Supervision | None = None
    prompt_cache_bytes: Callable[[], int] = lambda: 256 * _MIB


class LocalModelRegistry:
    """Implements `domain.ports.ModelRegistry` over a folder and worker processes, one per loaded model.

    Use it on the event loop of the main thread; `close` ends the workers.

    Attributes:
        kept: The models that make room for no others.

    Args:
        catalog: What is installed.
        models_dir: Folder of the installed models, where converted copies are kept.
        options: How models are loaded.
        max_loaded: Models held in memory at once.
        available_memory: Bytes that may be used, or `None` when unknown; a model that is larger is not loaded.
        meters: Where generations are measured.
        gpu: How models are loaded onto GPUs; `None` refuses those that need one.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        models_dir: Path,
        options: EngineOptions | None = None,
        *,
        max_loaded: int = 2,
        available_memory: Callable[[], int | None] | None = None,
        meters: Meters | None = None,
        gpu: GpuModels | None = None,
    ) -> None:
        self._catalog = catalog
        self._conversion = GgufConversion(models_dir / CONVERTED)
        self._options = options or EngineOptions()
        self._available_memory = available_memory or available_memory_bytes
        self._meters = meters
        self._gpu = gpu or GpuModels(catalog, GpuHost(enabled=False), GpuSettings(), models_dir)
        self._loaded: dict[str, LoadedModel] = {}
        self._probes: dict[str, EngineProbe] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._departures = Departures(self._loaded)
        self.kept = KeptModels()
        self._room = ModelRoom(self._loaded, self._departures, self.kept, max_loaded)
        self._windows: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._making_room = asyncio.Lock()
        self._turns = itertools.count(1)
        self._closed = False

    @property
    def default_model(self) -> str:
        """Name of the model for requests that name none; empty when nothing is installed."""
        return self._catalog.default_model

    @property
    def active_model(self) -> str | None:
        """Name of the loaded model that was used last; None when none is loaded."""
        return max(self._loaded, key=lambda name: self._loaded[name].used, default=None)

    @property
    def engines(self) -> Mapping[str, WorkerEngine]:
        """The loaded engines by model name."""
        return {name: loaded.engine for name, loaded in self._loaded.items()}

    @property
    def has_room(self) -> bool:
        """Whether every loaded engine has a slot to spare, or is at rest, and nobody waits."""
        return all(engine.active_requests < max(1, engine.slots - 1) for engine in self.engines.values())

    def list_models(self) -> Sequence[ModelCard]:
        """Every installed model with its present state, the default one first."""
        return [self._present(entry.card) for entry in self._catalog.entries()]

    def resolve(self, name: str | None) -> ModelCard:
        """Finds a model; see `domain.ports.ModelRegistry`."""
        return self._present(self._catalog.find(name).card)

    @asynccontextmanager
    async def lease(self, name: str | None, *, keeper: Keeper | None = None) -> AsyncIterator[WorkerEngine]:
        """Holds a model loaded while the block runs, loading it first if needed.

        A model that `keeper` keeps makes room for no other from then on.

        Raises:
            ModelNotFound: It is not installed.
            Overloaded: As many models as fit are loaded, and all of them are in use or kept.
            Unavailable: It does not load; the message says why.
        """
        loaded = await self._acquire(self._catalog.find(name))
        if keeper is not None:
            self.kept.hear(keeper, loaded.engine.card.name)
        try:
            yield loaded.engine
        finally:
            loaded.give_back()

    async def load(self, name: str, *, context_length: int | None = None) -> ModelCard:
        """Loads a model unless it is loaded, with another window if one is given.

        Raises:
            Conflict: It is in use with another window.
        """
        card = self._catalog.find(name).card
        if context_length is not None and self._windows.get(card.name) != context_length:
            if (loading := self._loading.get(card.name)) is not None:
                await asyncio.wait([loading])  # It may have taken up another window already.
            if card.name in self._loaded:
                await self._departures.leave(card.name, seconds=0, force=False)
            self._windows[card.name] = context_length
        async with self.lease(card.name) as engine:
            return self._present(engine.card)

    async def unload(self, name: str | None, *, drain: float = _DRAIN_SECONDS) -> Sequence[ModelCard]:
        """Unloads one model, whose file may have gone, or all, and gives what it unloaded; the memory is free then.

        Requests that it is answering get `drain` seconds to end; those that are left then fail with `EngineFailed`.
        """
        names = list(self._loaded) if name is None else [name if name in self._loaded else self.resolve(name).name]
        cards = []
        for each in names:
            if (loading := self._loading.get(each)) is not None:
                await asyncio.wait([loading])
            if (loaded := self._loaded.get(each)) is not None:
                self._windows.pop(each, None)
                self.kept.forget(each)
                await self._departures.leave(each, seconds=drain, force=True)
                cards.append(replace(loaded.engine.card, loaded=False, state="available", memory_bytes=None))
        return cards

    async def clear_prompt_caches(self) -> int:
        """Loads every loaded model anew, which forgets all prompts, and returns the bytes this freed.

        Raises:
            Conflict: A model does not come to rest.
        """
        freed = 0
        for name, loaded in list(self._loaded.items()):
            before = await loaded.memory_bytes()
            # One that left meanwhile took its prompts along.
            if self._loaded.get(name) is loaded:
                await self._departures.leave(name, seconds=_DRAIN_SECONDS, force=False)
                async with self.lease(name):
                    freed += max(0, before - await self._loaded[name].memory_bytes())
        return freed

    async def close(self) -> None:
        """Ends every worker, whoever uses it."""
        self._closed = True
        for task in list(self._loading.values()):
            task.cancel()
            await asyncio.wait([task])
        loaded = list(self._loaded.values())
        self._loaded.clear()
        await asyncio.gather(*(each.worker.stop() for each in loaded), self._departures.close())

    async def _acquire(self, entry: CatalogEntry) -> LoadedModel:
        name = entry.card.name
        while (loaded := self._loaded.get(name)) is None:
            if await self._departures.wait(name):
                continue
            if (task := self._loading.get(name)) is None:
                task = self._loading[name] = asyncio.create_task(self._load(entry), name=f"load-{name}")
                task.add_done_callback(lambda done: self._loaded_or_failed(name, done))
            # Whoever asked first may go away; the others still wait for this load.
            with self._room.claim(name):
                await asyncio.shield(task)
        loaded.take()
        loaded.used = next(self._turns)
        return loaded

    def _loaded_or_failed(self, name: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Overloaded):
            self._failed[name] = str(error)

    async def _load(self, entry: CatalogEntry) -> None:
        card = entry.card
        if self._closed:
            raise Unavailable("The server is stopping.")
        probe = self._probes[card.name] = EngineProbe()
        try:
            async with self._making_room:
                load = self._load_onto_gpu if card.engine == "exllamav2" else self._load_onto_cpu
                loaded = await load(entry, probe)
        finally:
            del self._probes[card.name]
        self._failed.pop(card.name, None)
        self._loaded[card.name] = loaded

    async def _load_onto_cpu(self, entry: CatalogEntry, probe: EngineProbe) -> LoadedModel:
        card, file, slots = entry.card, entry.location, self._options.slots
        await self._room.make(card, card.size_bytes, self._free_memory)
        if card.format == "safetensors":
            file = await self._conversion.converted(file)
        window = await asyncio.to_thread(self._window, file, self._windows.get(card.name))
        arguments = ["--model", str(file), "--context-length", str(window), "--slots", str(slots)]
        arguments += ["--prompt-cache-mib", str(self._options.prompt_cache_bytes() // _MIB)]
        if self._options.threads is not None:
            arguments += ["--threads", str(self._options.threads)]
        worker = WorkerProcess(card.name, _WORKER, arguments, probe, self._options.supervision)
        await worker.start()
        return self._engine(card, worker, probe, slots)

    async def _load_onto_gpu(self, entry: CatalogEntry, probe: EngineProbe) -> LoadedModel:
        card = entry.card
        launch = await self._gpu.launch(entry, self._windows.get(card.name))
        await self._room.make(card, launch.weight_bytes, self._gpu.free_bytes)
        # Its kernels may have to be compiled first; that it is at work, its progress shows.
        supervision = self._options.supervision or Supervision(start_timeout=_LONGEST_GPU_START)
        worker = WorkerProcess(card.name, _WORKER, launch.arguments, probe, supervision)
        await worker.start()
        return self._engine(card, worker, probe, launch.settings.slots)

    def _engine(self, card: ModelCard, worker: WorkerProcess, probe: EngineProbe, slots: int) -> LoadedModel:
        window, queue = probe.context_length, self._options.queue
        engine = WorkerEngine(card, worker, context_length=window, slots=slots, queue=queue, meters=self._meters)
        return LoadedModel(engine, worker, probe)

    async def _free_memory(self) -> int | None:
        return self._available_memory()

    def _window(self, file: Path, wanted: int | None) -> int:
        try:
            own = read_header(file).context_length or _LONGEST_DEFAULT_CONTEXT
        except (BadGguf, OSError) as error:
            raise Unavailable(f"The model does not load: {error}") from None
        return min(own, wanted or self._options.context_length or _LONGEST_DEFAULT_CONTEXT)

    def _present(self, card: ModelCard) -> ModelCard:
        if (loaded := self._loaded.get(card.name)) is not None:
            state = {"starting": "loading", "ready": "ready"}.get(loaded.worker.state, "failed")
            return replace(
                card, loaded=True, state=state, context_length=loaded.engine.context_length,
                memory_bytes=loaded.probe.memory_bytes or None, loaded_seconds=time.monotonic() - loaded.since,
            )  # fmt: skip
        state = "loading" if card.name in self._loading else "failed" if card.name in self._failed else "available"
        probe = self._probes.get(card.name)
        return replace(card, state=state, load_progress=probe.load_progress if probe else None)
