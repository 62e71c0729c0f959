"""The health of the server's parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from llamastead_server.domain.errors import LlamasteadError

_log = logging.getLogger("llamastead.health")
_SECONDS = 1.0

HealthStatus = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Health:
    """What a check found.

    Args:
        status: Whether the part does its work.
        message: One sentence for people.
        details: Further facts, as JSON data.
    """

    status: HealthStatus = "healthy"
    message: str = "ok"
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A named question about one part.

    Args:
        name: Name of the part, such as `rag-service`.
        run: Asks; any exception means unhealthy.
        services: Further names the part goes by in the documented `services` map, such as `celery`.
    """

    name: str
    run: Callable[[], Awaitable[Health]]
    services: tuple[str, ...] = ()


async def ask(check: HealthCheck) -> Health:
    """Asks one part; one that takes longer than a second counts as unhealthy."""
    try:
        async with asyncio.timeout(_SECONDS):
            return await check.run()
    except TimeoutError:
        return Health("unhealthy", f"No answer within {_SECONDS:g} s.")
    except LlamasteadError as error:
        return Health("unhealthy", error.message)
    except Exception as error:
        _log.error("the check of %s failed", check.name, exc_info=error)
        return Health("unhealthy", "The check failed; the server's log tells why.")
