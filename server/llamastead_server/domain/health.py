"""The health of the server's parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

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
