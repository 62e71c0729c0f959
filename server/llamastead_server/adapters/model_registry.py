"""The models installed here and the workers that hold some of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from llamastead.internal.v1 import engine_pb2, engine_pb2_grpc
from llamastead_server.adapters.engine import WorkerEngine
from llamastead_server.adapters.gguf_conversion import GgufConversion
from llamastead_server.adapters.gpu import GpuHost
from llamastead_server.adapters.gpu_models import GpuModels
from llamastead_server.adapters.model_catalog import CatalogEntry, ModelCatalog
from llamastead_server.adapters.worker_process import Supervision, WorkerProcess, WorkerStatus
from llamastead_server.domain.errors import Conflict, LlamasteadError, Overloaded, Unavailable
from llamastead_server.domain.generation import ModelCard
from llamastead_server.domain.gguf_header import BadGguf, read_header
from llamastead_server.domain.gpu_settings import GpuSettings

CONVERTED = ".converted"
"""Folder in the models folder that holds the GGUF form of safetensors models."""

_WORKER = "llamastead_server.workers.engine"
_LONGEST_DEFAULT_CONTEXT = 8192
_LONGEST_GPU_START = 3600.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How models are loaded.

    Attributes:
        context_length: Tokens in each request's window; `None` is the model's own, at most 8192.
        slots: Requests one engine decodes at once.
        queue: Requests that may wait per engine.
        threads: Threads of the CPU engine; `None` is all cores but one.
        supervision: How closely workers are watched.
    """

    context_length: int | None = None
    slots: int = 4
    queue: int = 32
    threads: int | None = None
    supervision: Supervision | None = None


class _Loaded:
    def __init__(self, engine: WorkerEngine, worker: WorkerProcess, probe: _Probe) -> None:
        self.engine = engine
        self.worker = worker
        self.probe = probe
        self.leases = 0
        self.used = 0
        self.since = time.monotonic()


class LocalModelRegistry:
    """Implements `domain.ports.ModelRegistry` over a folder and worker processes, one per loaded model.

    Use it on the event loop of the main thread; `close` ends the workers.

    Args:
        catalog: What is installed.
        models_dir: Folder of the installed models, where converted copies are kept.
        options: How models are loaded.
        max_loaded: Models held in memory at once.
        available_memory: Bytes that may be used, or `None` when unknown; a model that is larger is not loaded.
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
        gpu: GpuModels | None = None,
    ) -> None:
        self._catalog = catalog
        self._conversion = GgufConversion(models_dir / CONVERTED)
        self._options = options or EngineOptions()
        self._max_loaded = max_loaded
        self._available_memory = available_memory or available_memory_bytes
        self._gpu = gpu or GpuModels(catalog, GpuHost(enabled=False), GpuSettings(), models_dir)
        self._loaded: dict[str, _Loaded] = {}
        self._probes: dict[str, _Probe] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, str] = {}
        self._making_room = asyncio.Lock()
        self._turns = itertools.count(1)
        self._closed = False

    @property
    def default_model(self) -> str:
        """Name of the model for requests that name none; empty when nothing is installed."""
        return self._catalog.default_model

    @property
    def engines(self) -> Mapping[str, WorkerEngine]:
        """The loaded engines by model name."""
        return {name: loaded.engine for name, loaded in self._loaded.items()}

    def list_models(self) -> Sequence[ModelCard]:
        """Every installed model with its present state, the default one first."""
        return [self._present(entry.card) for entry in self._catalog.entries()]

    def resolve(self, name: str | None) -> ModelCard:
        """Finds a model; see `domain.ports.ModelRegistry`."""
        return self._present(self._catalog.find(name).card)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[WorkerEngine]:
        """Holds a model loaded while the block runs, loading it first if needed.

        Raises:
            ModelNotFound: It is not installed.
            Overloaded: As many models as fit are loaded, and all of them are in use.
            Unavailable: It does not load; the message says why.
        """
        loaded = await self._acquire(self._catalog.find(name))
        try:
            yield loaded.engine
        finally:
            loaded.leases -= 1

    async def load(self, name: str) -> ModelCard:
        """Loads a model unless it is loaded."""
        async with self.lease(name) as engine:
            return self._present(engine.card)

    async def unload(self, name: str | None) -> Sequence[ModelCard]:
        """Unloads one model, or all; the memory is free when this returns. Returns what was unloaded.

        Raises:
            Conflict: A model is answering requests or being loaded.
        """
        names = list(self._loaded) if name is None else [self._catalog.find(name).card.name]
        for each in names:
            if each in self._loading or (each in self._loaded and self._loaded[each].leases):
                raise Conflict(
                    f"The model {each!r} is in use; try again when its requests have ended.", retry_after=5.0
                )
        cards = []
        for each in names:
            if (loaded := self._loaded.pop(each, None)) is not None:
                await loaded.worker.stop()
                cards.append(replace(loaded.engine.card, loaded=False, state="available", memory_bytes=None))
        return cards

    async def close(self) -> None:
        """Ends every worker, whoever uses it."""
        self._closed = True
        for task in list(self._loading.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, LlamasteadError):
                await asyncio.wait([task])
        loaded, self._loaded = list(self._loaded.values()), {}
        await asyncio.gather(*(each.worker.stop() for each in loaded))

    async def _acquire(self, entry: CatalogEntry) -> _Loaded:
        name = entry.card.name
        while (loaded := self._loaded.get(name)) is None:
            task = self._loading.get(name)
            if task is None:
                task = self._loading[name] = asyncio.create_task(self._load(entry), name=f"load-{name}")
                task.add_done_callback(lambda done: self._loaded_or_failed(name, done))
            # Whoever asked first may go away; the others still wait for this load.
            await asyncio.shield(task)
        loaded.leases += 1
        loaded.used = next(self._turns)
        return loaded

    def _loaded_or_failed(self, name: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed[name] = str(error)

    async def _load(self, entry: CatalogEntry) -> None:
        card = entry.card
        if self._closed:
            raise Unavailable("The server is stopping.")
        probe = self._probes[card.name] = _Probe()
        try:
            async with self._making_room:
                load = self._load_onto_gpu if card.engine == "exllamav2" else self._load_onto_cpu
                loaded = await load(entry, probe)
        finally:
            del self._probes[card.name]
        self._failed.pop(card.name, None)
        self._loaded[card.name] = loaded

    async def _load_onto_cpu(self, entry: CatalogEntry, probe: _Probe) -> _Loaded:
        card, file, slots = entry.card, entry.location, self._options.slots
        await self._make_room(card, card.size_bytes)
        if card.format == "safetensors":
            file = await self._conversion.converted(file)
        window = await asyncio.to_thread(self._window, file)
        arguments = ["--model", str(file), "--context-length", str(window), "--slots", str(slots)]
        if self._options.threads is not None:
            arguments += ["--threads", str(self._options.threads)]
        worker = WorkerProcess(card.name, _WORKER, arguments, probe, self._options.supervision)
        await worker.start()
        return self._engine(card, worker, probe, slots)

    async def _load_onto_gpu(self, entry: CatalogEntry, probe: _Probe) -> _Loaded:
        card = entry.card
        launch = await self._gpu.launch(entry)
        await self._make_room(card, launch.weight_bytes)
        # Its kernels may have to be compiled first; that it is at work, its progress shows.
        supervision = self._options.supervision or Supervision(start_timeout=_LONGEST_GPU_START)
        worker = WorkerProcess(card.name, _WORKER, launch.arguments, probe, supervision)
        await worker.start()
        return self._engine(card, worker, probe, launch.settings.slots)

    def _engine(self, card: ModelCard, worker: WorkerProcess, probe: _Probe, slots: int) -> _Loaded:
        window, queue = probe.context_length, self._options.queue
        engine = WorkerEngine(card, worker, context_length=window, slots=slots, queue=queue)
        return _Loaded(engine, worker, probe)

    async def _make_room(self, card: ModelCard, needed: int) -> None:
        on_gpu = card.engine == "exllamav2"
        while True:
            available = await self._gpu.free_bytes() if on_gpu else self._available_memory()
            crowded = len(self._loaded) >= self._max_loaded
            if not crowded and (available is None or needed <= available):
                return
            # What is too full is one memory: a model in the other one would go for nothing.
            rivals = {
                name: loaded
                for name, loaded in self._loaded.items()
                if crowded or loaded.engine.card.engine == card.engine
            }
            idle = [(loaded.used, name) for name, loaded in rivals.items() if not loaded.leases]
            if idle:
                await self._loaded.pop(min(idle)[1]).worker.stop()
            elif rivals:
                raise Overloaded(
                    f"The model {card.name!r} has to wait for room: {', '.join(rivals)} fill it and are in use.",
                    retry_after=5.0,
                )
            else:
                raise Unavailable(
                    f"The model {card.name!r} does not fit: it needs {needed >> 20} MiB, and "
                    f"{(available or 0) >> 20} MiB of {'GPU ' if on_gpu else ''}memory are free."
                )

    def _window(self, file: Path) -> int:
        try:
            own = read_header(file).context_length or _LONGEST_DEFAULT_CONTEXT
        except (BadGguf, OSError) as error:
            raise Unavailable(f"The model does not load: {error}") from None
        return min(own, self._options.context_length or _LONGEST_DEFAULT_CONTEXT)

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


class _Probe:
    """A worker's status call that remembers what it was told."""

    def __init__(self) -> None:
        self.memory_bytes = 0
        self.context_length = 0
        self.load_progress: float | None = None

    async def __call__(self, channel: grpc.aio.Channel) -> WorkerStatus:
        status = await engine_pb2_grpc.EngineServiceStub(channel).GetStatus(engine_pb2.GetStatusRequest())
        self.memory_bytes = status.memory_bytes + status.gpu_memory_bytes
        self.context_length = status.context_length
        self.load_progress = status.load_progress if status.state == "loading" else None
        return WorkerStatus(status.state, status.error)


def available_memory_bytes() -> int | None:
    """Memory that new processes may use without swapping; `None` where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
