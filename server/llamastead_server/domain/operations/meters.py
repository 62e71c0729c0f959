"""What is measured while the server works, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llamastead_server.domain.models.generation import Usage


class Meters(Protocol):
    """Takes measurements; every method is quick and never fails."""

    def call_began(self, method: str) -> None:
        """A public call came in."""
        ...

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A public call ended with a gRPC status."""
        ...

    def first_token(self, model: str, seconds: float) -> None:
        """An answer's first text came that long after its request had reached the engine's queue."""
        ...

    def more_tokens(self, model: str, tokens: int, seconds: float) -> None:
        """Further tokens came that long after those before them."""
        ...

    def answered(self, model: str, reason: str, usage: Usage | None) -> None:
        """A generation ended: `stop`, `length`, `cancelled` or `failed`; without usage when it was cut off."""
        ...

    def embedded(self, texts: int) -> None:
        """Passages were embedded for an index."""
        ...


class NoMeters:
    """Measures nothing."""

    def call_began(self, method: str) -> None:
        """Does nothing."""

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Does nothing."""

    def first_token(self, model: str, seconds: float) -> None:
        """Does nothing."""

    def more_tokens(self, model: str, tokens: int, seconds: float) -> None:
        """Does nothing."""

    def answered(self, model: str, reason: str, usage: Usage | None) -> None:
        """Does nothing."""

    def embedded(self, texts: int) -> None:
        """Does nothing."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One loaded model at one moment; counts are since the server started."""

    model: str
    request_count: int
    generated_tokens: int
    active: int
    queued: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Resources:
    """Use of the machine; shares in percent, memory in bytes; None where there is no accelerator."""

    cpu_usage: float
    memory_usage: float
    memory_bytes: int
    disk_usage: float
    gpu_usage: float | None = None
    gpu_memory: float | None = None
    network_io: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything at one moment; means and rates are over the last minute."""

    timestamp: float
    uptime: float
    resources: Resources
    request_count: int
    error_count: int
    average_response_time: float
    inference_latency: float
    token_throughput: float
    batch_throughput: float
    cache_hit_rate: float
    models: Sequence[ModelLoad]


class MeterReader(Protocol):
    """Reads the meters."""

    async def measurements(self) -> Measurements:
        """Everything at this moment."""
        ...

    async def exposition(self) -> tuple[str, bytes]:
        """The same for Prometheus: content type and text."""
        ...
