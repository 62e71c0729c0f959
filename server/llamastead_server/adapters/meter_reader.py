"""Reads the meters, together with what is only known at the moment of asking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from llamastead_server.adapters import machine
from llamastead_server.adapters.engine import WorkerEngine
from llamastead_server.adapters.prometheus_meters import PrometheusMeters
from llamastead_server.domain.operations.diagnosis import Device
from llamastead_server.domain.operations.meters import Measurements, ModelLoad

Engines = Callable[[], Mapping[str, WorkerEngine]]


class PrometheusReader:
    """`domain.meters.MeterReader` over the meters and the running parts.

    Args:
        meters: What was measured.
        engines: Gives the loaded engines.
        embedder_pid: Gives the embedder's process id.
        folder: The data folder.
    """

    def __init__(
        self, meters: PrometheusMeters, engines: Engines, embedder_pid: Callable[[], int | None], folder: Path
    ) -> None:
        self._meters = meters
        self._engines = engines
        self._folder = folder
        self._began = time.monotonic()
        self._gauges = _Gauges(engines, embedder_pid)
        for make in (ProcessCollector, PlatformCollector, GCCollector):
            make(registry=meters.registry)
        meters.registry.register(self._gauges)

    async def measurements(self) -> Measurements:
        """Everything at this moment."""
        memory = dict(await asyncio.to_thread(machine.children_memory))
        resources = await machine.resources(self._folder, sum(memory.values()))
        meters = self._meters
        return Measurements(
            timestamp=time.time(),
            uptime=time.monotonic() - self._began,
            resources=resources,
            request_count=meters.requests,
            error_count=meters.errors,
            average_response_time=meters.response_time.mean,
            inference_latency=meters.latency.mean,
            token_throughput=meters.generated.rate,
            batch_throughput=meters.embeddings.rate,
            cache_hit_rate=meters.cached_tokens / meters.prompt_tokens if meters.prompt_tokens else 0.0,
            models=[self._load(name, engine, memory) for name, engine in sorted(self._engines().items())],
        )

    async def exposition(self) -> tuple[str, bytes]:
        """Prometheus' text format."""
        self._gauges.devices = await machine.accelerators()
        return CONTENT_TYPE_PLAIN_0_0_4, await asyncio.to_thread(generate_latest, self._meters.registry)

    def _load(self, name: str, engine: WorkerEngine, memory: Mapping[int, int]) -> ModelLoad:
        return ModelLoad(
            model=name,
            request_count=self._meters.answers[name],
            generated_tokens=self._meters.tokens[name],
            active=engine.running_requests,
            queued=engine.waiting_requests,
            memory_bytes=memory.get(engine.worker_pid or 0, 0),
        )


class _Gauges(Collector):
    """What is counted at the moment of asking."""

    def __init__(self, engines: Engines, embedder_pid: Callable[[], int | None]) -> None:
        self._engines = engines
        self._embedder_pid = embedder_pid
        self.devices: Sequence[Device] = ()

    def collect(self) -> Iterator[Metric]:
        engines = dict(self._engines())
        memory = dict(machine.children_memory())
        yield _gauge("requests_running", "Answers being generated.", "model",
                     {name: engine.running_requests for name, engine in engines.items()})  # fmt: skip
        yield _gauge("requests_waiting", "Answers waiting for a slot.", "model",
                     {name: engine.waiting_requests for name, engine in engines.items()})  # fmt: skip
        yield _gauge("model_loaded", "Loaded models.", "model", dict.fromkeys(engines, 1))
        workers = {f"engine:{name}": engine.worker_pid for name, engine in engines.items()}
        workers["embedder"] = self._embedder_pid()
        yield _gauge("worker_memory_bytes", "Resident memory of a worker.", "worker",
                     {name: memory.get(pid or 0, 0) for name, pid in workers.items()})  # fmt: skip
        yield _gauge("children_memory_bytes", "Resident memory of all child processes.", None,
                     {"": sum(memory.values())})  # fmt: skip
        named = {f"{index}:{device.name}": device for index, device in enumerate(self.devices)}
        if named:
            yield _gauge("gpu_memory_used_bytes", "Used memory of an accelerator.", "device",
                         {name: device.memory_total_bytes - device.memory_free_bytes
                          for name, device in named.items()})  # fmt: skip
            yield _gauge("gpu_memory_total_bytes", "Memory of an accelerator.", "device",
                         {name: device.memory_total_bytes for name, device in named.items()})  # fmt: skip
            yield _gauge("gpu_utilization_ratio", "How busy an accelerator is.", "device",
                         {name: (device.usage or 0.0) / 100 for name, device in named.items()})  # fmt: skip


def _gauge(name: str, text: str, label: str | None, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"llamastead_{name}", text, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([key] if label else [], value)
    return family
