"""The health of a project's databases and of what retrieval depends on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from llamastead_server.domain.config.rag import Database
from llamastead_server.domain.errors import LlamasteadError
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Clock, Embedder, ProjectStore, VectorStore
from llamastead_server.domain.retrieval.embedding_choice import choose_embedder
from llamastead_server.domain.retrieval.hidden_datasets import HiddenDataset, hidden_datasets
from llamastead_server.domain.retrieval.retriever import ChunkStore, Counts, check_embedding

Status = Literal["healthy", "degraded", "unhealthy"]
_WORST_LAST: Sequence[Status] = ("healthy", "degraded", "unhealthy")


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """The health of a part retrieval depends on.

    Attributes:
        name: `vector_store` or `embedder`.
        status: Without the embedder, keyword searches still work, so it only degrades.
        seconds: Time the check took.
        message: One sentence for people.
    """

    name: str
    status: Status
    seconds: float
    message: str


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    """The health of a database.

    Attributes:
        name: Its name.
        status: `degraded` when only keyword searches work or chunks are missing.
        document_count: Files indexed.
        chunk_count: Chunks indexed.
        size_bytes: Estimated size on disk.
        embedding: Model and dimension it was made with; `None` before the first file.
        message: What is wrong; `None` when nothing is.
    """

    name: str
    status: Status
    document_count: int
    chunk_count: int
    size_bytes: int
    embedding: tuple[str, int] | None
    message: str | None


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The health of a project's retrieval.

    Attributes:
        status: The worst of what was checked.
        database: The database asked for, else the project's default; `None` when there is none.
        databases: The databases checked.
        components: The parts they depend on.
        checked_at: When.
        hidden: Datasets that hold files and are not configured any more.
    """

    status: Status
    database: str | None
    databases: Sequence[DatabaseHealth]
    components: Sequence[ComponentHealth]
    checked_at: datetime
    hidden: Sequence[HiddenDataset] = ()

    @property
    def issues(self) -> Sequence[str]:
        """What is wrong, one sentence each."""
        broken = [component.message for component in self.components if component.status != "healthy"]
        wrong = [database.message for database in self.databases if database.message is not None]
        return [*broken, *wrong, *(dataset.message for dataset in self.hidden)]


class RetrievalHealth:
    """Checks databases, the vector store and the embedder, each for a few seconds at most.

    Args:
        projects: The projects.
        embedder: The embedder.
        store: The vector store.
        chunks: The chunks' text.
        timeout: Seconds a check may take before it counts as failed.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        projects: ProjectStore,
        embedder: Embedder,
        store: VectorStore,
        chunks: ChunkStore,
        *,
        timeout: float = 5.0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._projects = projects
        self._embedder = embedder
        self._store = store
        self._chunks = chunks
        self._timeout = timeout
        self._clock = clock

    async def check(self, ref: ProjectRef, database: str | None = None) -> HealthReport:
        """Checks the named database, or all of the project's.

        Raises:
            NotFound: The project or the database does not exist.
        """
        config = await self._projects.config(ref)
        rag = config.rag
        chosen = rag.database(database).name if database or rag.databases else None
        names = [chosen] if database and chosen else [entry.name for entry in rag.databases]
        configs = [rag.database(name) for name in names]
        ask_store = self._component("vector_store", "unhealthy", lambda: self._store.count(ref, chosen or "none"))
        ask_embedder = self._component("embedder", "degraded", self._embedder.dimension)
        store, embedder = await asyncio.gather(ask_store, ask_embedder)
        hidden = await hidden_datasets(config, self._chunks, ref)
        counts, made_with = await self._chunks.counts(ref, hidden), await self._chunks.embeddings(ref)
        databases = [
            await self._database(ref, each, counts.get(each.name, Counts()), made_with.get(each.name), store, embedder)
            for each in configs
        ]
        statuses = [store.status, embedder.status, *(entry.status for entry in databases)]
        return HealthReport(
            max(statuses, key=_WORST_LAST.index),
            chosen,
            databases,
            [store, embedder],
            datetime.now(UTC),
            list(hidden.values()),
        )

    async def _component(self, name: str, when_down: Status, ask: Callable[[], Awaitable[object]]) -> ComponentHealth:
        started = self._clock()
        status, message = when_down, ""
        try:
            async with asyncio.timeout(self._timeout):
                await ask()
        except LlamasteadError as error:
            message = error.message
        except TimeoutError:
            message = f"The part {name} did not answer within {self._timeout:g} s."
        else:
            status, message = "healthy", f"The part {name} answers."
        return ComponentHealth(name, status, self._clock() - started, message)

    async def _database(
        self,
        ref: ProjectRef,
        database: Database,
        counts: Counts,
        made_with: tuple[str, int] | None,
        store: ComponentHealth,
        embedder: ComponentHealth,
    ) -> DatabaseHealth:
        name = database.name
        documents = counts.documents
        if store.status != "healthy":
            return DatabaseHealth(name, "unhealthy", documents, 0, 0, made_with, store.message)
        try:
            async with asyncio.timeout(self._timeout):
                count = await self._store.count(ref, name)
                size = await self._store.size_bytes(ref, name)
        except (LlamasteadError, TimeoutError) as error:
            reason = error.message if isinstance(error, LlamasteadError) else "it did not answer in time."
            return DatabaseHealth(
                name, "unhealthy", documents, 0, 0, made_with, f"Database {name!r} can't be read: {reason}"
            )
        message = await self._what_is_wrong(database, made_with, counts.chunks, count, embedder)
        status: Status = "healthy" if message is None else "degraded"
        shown = max(0, count - counts.hidden)
        return DatabaseHealth(name, status, documents, shown, size, made_with, message)

    async def _what_is_wrong(
        self,
        database: Database,
        made_with: tuple[str, int] | None,
        chunks: int,
        vectors: int,
        embedder: ComponentHealth,
    ) -> str | None:
        name = database.name
        if chunks > vectors:
            return (
                f"Database {name!r} has lost vectors: {vectors} of {chunks} are left. Make them again with POST "
                "rag/reindex, or process its datasets again."
            )
        if embedder.status != "healthy":
            return f"Database {name!r} answers keyword searches only, because the embedder is down."
        try:
            async with asyncio.timeout(self._timeout):
                choice = await choose_embedder(self._embedder, database)
                if made_with is not None:
                    await check_embedding(choice.embedder, name, made_with)
        except LlamasteadError as error:
            return error.message
        except TimeoutError:
            return f"Database {name!r} could not be checked: the embedder does not answer."
        return choice.note
