"""SystemService: what the server is and whether it works."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.api import httpbody_pb2

from llamastead.v1 import system_pb2 as pb
from llamastead.v1 import system_pb2_grpc as pb_grpc
from llamastead_server.domain.operations.health import Health, HealthCheck, HealthStatus, ask
from llamastead_server.services import plain
from llamastead_server.services.openapi_document import OpenApiDocument


@dataclass(frozen=True, slots=True)
class _Finding:
    check: HealthCheck
    health: Health
    latency_ms: int


class SystemServicer(pb_grpc.SystemServiceServicer):
    """The system over gRPC and, through the gateway, REST.

    Args:
        version: Version of the server.
        data_directory: Folder of the data.
        models_directory: Folder of the models; it need not exist.
        document: The OpenAPI document.
        checks: The parts beside the server itself.
        seeds: The default models; details are `provider`, `model` and `host`.
    """

    def __init__(
        self,
        version: str,
        data_directory: Path,
        models_directory: Path,
        document: OpenApiDocument,
        checks: Sequence[HealthCheck],
        seeds: Sequence[HealthCheck] = (),
    ) -> None:
        self._version = version
        self._data_directory = data_directory
        self._models_directory = models_directory
        self._document = document
        self._checks = tuple(checks)
        self._seeds = tuple(seeds)

    async def GetRoot(
        self, request: pb.GetRootRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetRootResponse:
        """Greets."""
        return pb.GetRootResponse(message="Hello, World!")

    async def GetInfo(
        self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetInfoResponse:
        """Gives the version, the data folder and where the OpenAPI document is."""
        return pb.GetInfoResponse(
            version=self._version, data_directory=str(self._data_directory), openapi_url="/openapi.json"
        )

    async def GetHealth(
        self, request: pb.SystemServiceGetHealthRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.SystemServiceGetHealthResponse:
        """Asks all parts at once; one that takes longer than a second counts as unhealthy."""
        findings = await asyncio.gather(*(_ask(check) for check in (*self._checks, *self._seeds)))
        parts, seeds = findings[: len(self._checks)], findings[len(self._checks) :]
        services: dict[str, str] = {"api": "healthy"}
        for found in parts:
            services.update(dict.fromkeys(found.check.services, found.health.status))
        own = pb.HealthComponent(name="server", status="healthy", message="The API answers.")
        return pb.SystemServiceGetHealthResponse(
            status=_overall(findings),
            services=services,
            summary=_summary(findings),
            components=[own, *(_component(found) for found in parts)],
            seeds=[_seed(found) for found in seeds],
            timestamp=int(time.time()),
        )

    async def GetLiveness(
        self, request: pb.GetLivenessRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetLivenessResponse:
        """Says that the process lives."""
        return pb.GetLivenessResponse(status="alive")

    async def GetOpenApi(
        self, request: pb.GetOpenApiRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> httpbody_pb2.HttpBody:
        """Gives the OpenAPI document as JSON."""
        return httpbody_pb2.HttpBody(content_type="application/json", data=await self._document.json())

    async def GetOpenApiYaml(
        self, request: pb.GetOpenApiYamlRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> httpbody_pb2.HttpBody:
        """Gives the OpenAPI document as YAML."""
        return httpbody_pb2.HttpBody(content_type="application/yaml", data=await self._document.yaml())

    async def CheckVersion(
        self, request: pb.CheckVersionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.CheckVersionResponse:
        """Gives the version, without asking anybody for a newer one."""
        return pb.CheckVersionResponse(
            current_version=self._version,
            latest_version=self._version,
            message="This server makes no calls to the internet, so it does not look for updates.",
        )

    async def GetDisk(
        self, request: pb.GetDiskRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetDiskResponse:
        """Measures the disks of the models and of the data."""
        models, data = await asyncio.gather(
            *(asyncio.to_thread(_disk, folder) for folder in (self._models_directory, self._data_directory))
        )
        return pb.GetDiskResponse(cache=models, system=data)


def _disk(folder: Path) -> pb.DiskSpace:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    usage = shutil.disk_usage(there)
    return pb.DiskSpace(
        path=str(folder),
        total_bytes=usage.total,
        used_bytes=usage.used,
        free_bytes=usage.free,
        percent_free=round(100 * usage.free / usage.total, 2) if usage.total else 0,
    )


async def _ask(check: HealthCheck) -> _Finding:
    began = time.monotonic()
    health = await ask(check)
    return _Finding(check, health, round((time.monotonic() - began) * 1000))


def _overall(findings: Sequence[_Finding]) -> HealthStatus:
    broken = [found for found in findings if found.health.status != "healthy"]
    if not broken:
        return "healthy"
    return "unhealthy" if all(found.health.status == "unhealthy" for found in findings) else "degraded"


def _summary(findings: Sequence[_Finding]) -> str:
    broken = [f"{found.check.name} is {found.health.status}" for found in findings if found.health.status != "healthy"]
    return "; ".join(broken) + "." if broken else "All parts work."


def _component(found: _Finding) -> pb.HealthComponent:
    details = found.health.details
    return pb.HealthComponent(
        name=found.check.name,
        status=found.health.status,
        message=found.health.message,
        latency_ms=found.latency_ms,
        details=plain.to_struct(details) if details else None,
    )


def _seed(found: _Finding) -> pb.HealthSeed:
    return pb.HealthSeed(
        name=found.check.name,
        status=found.health.status,
        message=found.health.message,
        latency_ms=found.latency_ms,
        runtime=plain.to_struct(found.health.details),
    )
