"""The health of the parts that `app` joins, by the names that LlamaFarm's clients look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.envoy import EnvoyGateway
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.adapters.model_registry import LocalModelRegistry
from llamastead_server.adapters.redis_link import RedisLink
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import LlamasteadError
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.operations.health import Health, HealthCheck, HealthStatus

_NO_PROJECT = ProjectRef("llamastead", "health")


def parts(
    models: LocalModelRegistry,
    embedder: WorkerEmbedder,
    store: MilvusStore,
    database: Database,
    gateway: EnvoyGateway,
    redis: RedisLink | None,
) -> Sequence[HealthCheck]:
    """What a healthy server is made of."""

    async def engine() -> Health:
        card = models.resolve(None)
        loaded = models.engines.get(card.name)
        return Health(_of(card), f"The model {card.name} is {card.state}.", _process(loaded.worker if loaded else None))

    async def retrieval() -> Health:
        details = _process(embedder.worker)
        try:
            dimension = await embedder.dimension()
        except LlamasteadError as error:
            return Health("unhealthy", f"{error.message} Searches by keyword work meanwhile.", details)
        return Health(message=f"{embedder.model} answers with {dimension} dimensions.", details=details)

    async def vectors() -> Health:
        await store.count(_NO_PROJECT, "none")
        return Health(message="The vector store answers.")

    async def sql() -> Health:
        await database.read(lambda connection: connection.execute(select(1)).scalar())
        return Health(message="The database answers.")

    async def reachable() -> Health:
        healthy = await gateway.is_healthy()
        return Health() if healthy else Health("unhealthy", "Envoy does not answer; it is being started again.")

    async def shared_limits() -> Health:
        if redis is None or await redis.answers():
            return Health(message="Redis answers.")
        return Health("degraded", "Redis can't be reached: this server counts requests and streams alone meanwhile.")

    # What the documented names stand for here: the task runner's queue is in the database.
    queue = ("celery", "redis") if redis is None else ("celery",)
    return (
        HealthCheck("universal-runtime", engine),
        HealthCheck("rag-service", retrieval),
        HealthCheck("vector-store", vectors),
        HealthCheck("gateway", reachable),
        HealthCheck("database", sql, services=queue),
        *(() if redis is None else (HealthCheck("limits", shared_limits, services=("redis",)),)),
    )


def seeds(models: LocalModelRegistry, host: str) -> Sequence[HealthCheck]:
    """The model that answers requests which name none; `host` is where it is asked."""

    async def default_model() -> Health:
        runtime = {"provider": "llamastead", "model": models.default_model, "host": host}
        try:
            card = models.resolve(None)
        except LlamasteadError as error:
            return Health("unhealthy", error.message, runtime)
        return Health(_of(card), f"The model {card.name} is {card.state}.", runtime)

    return (HealthCheck("default-model", default_model),)


def _of(card: ModelCard) -> HealthStatus:
    # A model that nobody asked for yet is loaded by the first request.
    known: Mapping[str, HealthStatus] = {"failed": "unhealthy", "loading": "degraded"}
    return known.get(card.state, "healthy")


def _process(worker: WorkerProcess | None) -> Mapping[str, object]:
    """Facts for operators; LlamaFarm's command line reads `pid` as a number and would fail on an `uptime`."""
    return {} if worker is None or worker.pid is None else {"pid": worker.pid, "restarts": worker.restarts}
