from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llamastead.v1 import system_pb2 as pb
from llamastead_server.domain.errors import Unavailable
from llamastead_server.domain.operations.health import Health, HealthCheck
from llamastead_server.services.openapi_document import OpenApiDocument
from llamastead_server.services.system import SystemServicer

CONTEXT: Any = None


async def healthy() -> Health:
    return Health(details={"pid": 7})


async def degraded() -> Health:
    return Health("degraded", "Slow.")


async def unavailable() -> Health:
    raise Unavailable("It is down.")


async def broken() -> Health:
    raise ZeroDivisionError("secret")


async def hanging() -> Health:
    await asyncio.sleep(60)
    raise AssertionError


async def health(*checks: HealthCheck, seeds: tuple[HealthCheck, ...] = ()) -> pb.SystemServiceGetHealthResponse:
    servicer = SystemServicer("0.1.0", Path("/data"), Path("/data/models"), OpenApiDocument(), checks, seeds)
    return await servicer.GetHealth(pb.SystemServiceGetHealthRequest(), CONTEXT)


async def test_a_healthy_server_names_its_parts() -> None:
    answer = await health(
        HealthCheck("rag-service", healthy), HealthCheck("tasks", healthy, services=("celery", "redis"))
    )
    assert answer.status == "healthy"
    assert dict(answer.services) == {"api": "healthy", "celery": "healthy", "redis": "healthy"}
    assert [part.name for part in answer.components] == ["server", "rag-service", "tasks"]
    assert answer.components[1].details["pid"] == 7
    assert answer.timestamp > 0


@pytest.mark.parametrize(
    ("check", "status", "message"),
    [
        (degraded, "degraded", "Slow."),
        (unavailable, "unhealthy", "It is down."),
        (broken, "unhealthy", "The check failed; the server's log tells why."),
        (hanging, "unhealthy", "No answer within 1 s."),
    ],
)
async def test_a_part_that_does_not_work_is_named_and_leaves_the_others_alone(
    check: Any, status: str, message: str
) -> None:
    async with asyncio.timeout(10):
        answer = await health(HealthCheck("good", healthy), HealthCheck("bad", check, services=("celery",)))
    assert answer.status == "degraded"
    assert answer.services["celery"] == status
    found = {part.name: (part.status, part.message) for part in answer.components}
    assert found["bad"] == (status, message)
    assert found["good"][0] == found["server"][0] == "healthy"
    assert "bad" in answer.summary
    assert "secret" not in str(answer)


async def test_a_server_none_of_whose_parts_works_is_unhealthy() -> None:
    assert (await health(HealthCheck("one", unavailable), HealthCheck("two", broken))).status == "unhealthy"


async def test_hanging_checks_are_waited_for_together() -> None:
    async with asyncio.timeout(10):
        await health(*(HealthCheck(f"part-{number}", hanging) for number in range(50)))


async def test_default_models_are_listed_apart() -> None:
    answer = await health(seeds=(HealthCheck("tiny", healthy),))
    assert [seed.name for seed in answer.seeds] == ["tiny"]
    assert [part.name for part in answer.components] == ["server"]
