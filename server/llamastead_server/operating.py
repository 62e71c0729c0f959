"""Puts together what changes, watches and operates the running server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from llamastead_server import checks, logs
from llamastead_server.adapters.blob_store import FileBlobStore
from llamastead_server.adapters.configuration_file import ConfigurationFile
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.meter_reader import PrometheusReader
from llamastead_server.adapters.model_catalog import ModelCatalog
from llamastead_server.adapters.model_registry import LocalModelRegistry
from llamastead_server.adapters.prometheus_meters import PrometheusMeters
from llamastead_server.domain.access.limits import LimitRules, Limits
from llamastead_server.domain.models.runtime_settings import Configuration, RuntimeSettings, SystemSettings
from llamastead_server.domain.operations.caches import Caches
from llamastead_server.domain.operations.health import HealthCheck
from llamastead_server.domain.operations.log_book import LogBook
from llamastead_server.domain.operations.shutdown import Shutdown
from llamastead_server.services.operations import Operations
from llamastead_server.services.telemetry import Telemetry
from llamastead_server.settings import Settings


def runtime_settings(settings: Settings, catalog: ModelCatalog, limits: Limits) -> RuntimeSettings:
    """What can be changed while the server runs, with the environment's settings as defaults."""

    def apply(configuration: Configuration) -> None:
        catalog.choose_default(configuration.model_settings.default_model or settings.default_model)
        system = configuration.system_settings
        logs.set_level(system.log_level)
        limits.rules = LimitRules(
            system.max_requests_per_minute, system.max_concurrent_streams, system.max_batch_operations_per_minute
        )

    defaults = SystemSettings(
        max_requests_per_minute=settings.rate_limit_requests,
        max_concurrent_streams=settings.rate_limit_streams,
        max_batch_operations_per_minute=settings.rate_limit_batch,
        request_timeout_seconds=settings.request_timeout,
        log_level=settings.log_level,
    )
    return RuntimeSettings(
        Configuration(system_settings=defaults),
        ConfigurationFile(settings.data_dir),
        lambda name: catalog.find(name).card.name,
        apply,
    )


def operations(
    settings: Settings,
    models: LocalModelRegistry,
    embedder: WorkerEmbedder,
    blobs: FileBlobStore,
    meters: PrometheusMeters,
    health: Sequence[HealthCheck],
    log: LogBook,
    shutdown: Shutdown,
) -> Operations:
    """What `OperationsServicer` works with."""
    caches = Caches(
        {"prompt": models.clear_prompt_caches, "embedding": embedder.clear_cache, "uploads": blobs.clear_abandoned}
    )
    reader = PrometheusReader(meters, lambda: models.engines, lambda: embedder.worker.pid, settings.data_dir)
    diagnosis = checks.diagnosis(models, settings.data_dir, health)
    return Operations(models, health, log, reader, caches, diagnosis, shutdown)


def brief_metrics(models: LocalModelRegistry, telemetry: Telemetry) -> Callable[[], Mapping[str, float]]:
    """What the WebSocket's metrics frames tell."""
    began = time.monotonic()
    process = psutil.Process()

    def present() -> Mapping[str, float]:
        return {
            "uptime": time.monotonic() - began,
            "active_requests": telemetry.active,
            "loaded_models": len(models.engines),
            "memory_bytes": process.memory_info().rss,
        }

    return present
