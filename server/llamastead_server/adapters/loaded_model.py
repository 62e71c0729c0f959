"""A model that a worker holds, and who uses it."""

from __future__ import annotations

import asyncio
import time

import grpc

from llamastead.internal.v1 import engine_pb2, engine_pb2_grpc
from llamastead_server.adapters.engine import WorkerEngine
from llamastead_server.adapters.supervision import WorkerStatus
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import LlamasteadError


class EngineProbe:
    """A worker's status call that remembers what it was told."""

    def __init__(self) -> None:
        self.memory_bytes = 0
        self.context_length = 0
        self.load_progress: float | None = None

    async def __call__(self, channel: grpc.aio.Channel) -> WorkerStatus:
        """Asks the worker."""
        status = await engine_pb2_grpc.EngineServiceStub(channel).GetStatus(engine_pb2.GetStatusRequest())
        self.memory_bytes = status.memory_bytes + status.gpu_memory_bytes
        self.context_length = status.context_length
        self.load_progress = status.load_progress if status.state == "loading" else None
        return WorkerStatus(status.state, status.error)


class LoadedModel:
    """A loaded model.

    Attributes:
        engine: What answers.
        worker: Its process.
        probe: Its memory, as the last heartbeat told.
        used: When it was used last, as a number that grows.
        since: When it was loaded, on the monotonic clock.

    Args:
        engine: What answers.
        worker: Its process.
        probe: Its status call.
    """

    def __init__(self, engine: WorkerEngine, worker: WorkerProcess, probe: EngineProbe) -> None:
        self.engine = engine
        self.worker = worker
        self.probe = probe
        self.used = 0
        self.since = time.monotonic()
        self._leases = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_use(self) -> bool:
        """Whether requests hold it."""
        return self._leases > 0

    def take(self) -> None:
        """Begins to use it."""
        self._leases += 1
        self._idle.clear()

    def give_back(self) -> None:
        """Ends one use."""
        self._leases -= 1
        if not self._leases:
            self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Waits until nobody uses it; tells whether that came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def memory_bytes(self) -> int:
        """What the worker holds now; 0 if it does not say."""
        try:
            status = await self.engine.status()
            return int(status.memory_bytes + status.gpu_memory_bytes)
        except LlamasteadError:
            return 0
