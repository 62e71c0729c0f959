"""SystemService: what the server is and whether it works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from llamastead.v1 import system_pb2 as pb
from llamastead.v1 import system_pb2_grpc as pb_grpc
from llamastead_server.domain.health import Health, HealthCheck, HealthStatus, ask
from llamastead_server.services import plain


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
        checks: The parts beside the server itself.
        seeds: The default models; details are `provider`, `model` and `host`.
    """

    def __init__(
        self, version: str, data_directory: str, checks: Sequence[HealthCheck], seeds: Sequence[HealthCheck] = ()
    ) -> None:
        self._version = version
        self._data_directory = data_directory
        self._checks = tuple(checks)
        self._seeds = tuple(seeds)

    async def GetRoot(  # noqa: N802
        self, request: pb.GetRootRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetRootResponse:
        """Greets."""
        return pb.GetRootResponse(message="Hello, World!")

    async def GetInfo(  # noqa: N802
        self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetInfoResponse:
        """Gives the version and the data folder."""
        return pb.GetInfoResponse(version=self._version, data_directory=self._data_directory)

    async def GetHealth(  # noqa: N802
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

    async def GetLiveness(  # noqa: N802
        self, request: pb.GetLivenessRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetLivenessResponse:
        """Says that the process lives."""
        return pb.GetLivenessResponse(status="alive")


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
