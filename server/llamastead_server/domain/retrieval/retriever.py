"""Retrieval: from a question to the chunks that answer it best."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import Conflict, InvalidRequest, NotFound
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk, Clock, Embedder, ProjectStore, VectorStore
from llamastead_server.domain.ports import Collection as VectorCollection
from llamastead_server.domain.retrieval.embedding_choice import choose_embedder
from llamastead_server.domain.retrieval.hidden_datasets import HiddenDataset, hidden_datasets
from llamastead_server.domain.retrieval.plan import RetrievalQuery, plan
from llamastead_server.domain.retrieval.ranking import Hit, cut
from llamastead_server.domain.retrieval.search_runner import SearchRunner
from llamastead_server.domain.retrieval.sources import Source

_log = logging.getLogger("llamastead.retrieval")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a database holds.

    Attributes:
        documents: Different files, those of hidden datasets left out.
        chunks: Chunks.
        hidden: How many of them are of hidden datasets.
    """

    documents: int = 0
    chunks: int = 0
    hidden: int = 0


class ChunkStore(Protocol):
    """The chunks' text and what databases were made with: the truth that vectors can be rebuilt from."""

    async def get_chunks(self, ref: ProjectRef, ids: Sequence[str]) -> Mapping[str, Chunk]:
        """The chunks with these ids; unknown ids are left out."""
        ...

    async def file_counts(self, ref: ProjectRef) -> Mapping[str, int]:
        """The datasets of a project that hold files, configured or not, and how many files each holds."""
        ...

    async def counts(self, ref: ProjectRef, hidden: Collection[str]) -> Mapping[str, Counts]:
        """What each of a project's databases holds, by name; one that holds nothing is absent.

        Args:
            ref: The project.
            hidden: Datasets that are hidden.
        """
        ...

    async def chunk_count(self, ref: ProjectRef, database: str, *, of: Collection[str] | None = None) -> int:
        """How many chunks a database holds, or how many of these datasets."""
        ...

    async def embedding_of(self, ref: ProjectRef, database: str) -> tuple[str, int] | None:
        """Embedding model and dimension of a database; `None` for one never written to."""
        ...

    async def embeddings(self, ref: ProjectRef) -> Mapping[str, tuple[str, int]]:
        """Embedding models and dimensions of a project's databases, by name; only of those ever written to."""
        ...

    async def remember_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records the embedding model and dimension of a database."""
        ...


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """What a query found.

    Attributes:
        hits: The chunks, best first.
        database: The database that was searched.
        strategy: The strategy that was used.
        seconds: Time it took.
    """

    hits: Sequence[Hit]
    database: str
    strategy: str
    seconds: float


class Retriever:
    """Answers queries over the databases of projects."""

    def __init__(
        self,
        projects: ProjectStore,
        embedder: Embedder,
        store: VectorStore,
        chunks: ChunkStore,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._projects = projects
        self._embedder = embedder
        self._store = store
        self._chunks = chunks
        self._clock = clock
        self._told: set[tuple[ProjectRef, str]] = set()

    async def query(self, ref: ProjectRef, query: RetrievalQuery) -> RetrievalResult:
        """Finds the chunks that answer the query best.

        Raises:
            NotFound: The project, the database or the reranking model does not exist.
            InvalidRequest: The project has no database, or the query asks for what there is not.
            Conflict: The database was made with another embedding model.
            Unavailable: The embedder or the vector store is down.
        """
        started = self._clock()
        config = await self._projects.config(ref)
        if not config.rag.databases:
            raise InvalidRequest(f"Project {ref} has no database: add one under rag.databases.")
        database = config.rag.database(query.database)
        query = _within_datasets(query, config, database.name)
        wanted = plan(query, database)
        made_with = await self._chunks.embedding_of(ref, database.name)
        hits: Sequence[Hit] = []
        if made_with is not None:
            embedder = self._embedder
            if wanted.embeds:
                embedder = (await choose_embedder(self._embedder, database)).embedder
                await check_embedding(embedder, database.name, made_with)
            collection = VectorCollection(ref, database.name, made_with[1])
            hidden = await hidden_datasets(config, self._chunks, ref)
            self._tell(ref, hidden)
            runner = SearchRunner(collection, embedder, self._store, self._chunks, hidden)
            hits = await runner.best(wanted.search, query.query, wanted.top_k, wanted.score_threshold)
            if query.max_tokens is not None:
                hits = cut(hits, query.max_tokens)
        return RetrievalResult(hits, database.name, wanted.strategy, self._clock() - started)

    async def find(
        self,
        ref: ProjectRef,
        question: str,
        *,
        database: str | None,
        strategy: str | None,
        top_k: int | None,
        score_threshold: float | None,
    ) -> Sequence[Source]:
        """The passages for a chat turn, best first."""
        query = RetrievalQuery(
            question, database=database, retrieval_strategy=strategy, top_k=top_k, score_threshold=score_threshold
        )
        return [Source(hit.chunk, hit.score) for hit in (await self.query(ref, query)).hits]

    def _tell(self, ref: ProjectRef, hidden: Mapping[str, HiddenDataset]) -> None:
        """Logs each hidden dataset once: whoever misses its answers looks for the reason."""
        for name, dataset in hidden.items():
            if (ref, name) not in self._told:
                self._told.add((ref, name))
                _log.warning("%s: %s", ref, dataset.message)


async def check_embedding(embedder: Embedder, database: str, made_with: tuple[str, int]) -> None:
    """Raises `Conflict` unless the database was made with the embedder's present model."""
    now = (embedder.model, await embedder.dimension())
    if now != made_with:
        raise Conflict(
            f"Database {database!r} was made with the embedding model {made_with[0]!r} ({made_with[1]} dimensions), "
            f"but is now to be embedded with {now[0]!r} ({now[1]} dimensions). Start the server with "
            f"LLAMASTEAD_EMBEDDING_MODEL={made_with[0]}, name that model in the database's embedding strategy, or make "
            "the vectors anew with POST rag/reindex.",
            details={"database": database, "embedding_model": made_with[0]},
        )


def _within_datasets(query: RetrievalQuery, config: ProjectConfig, database: str) -> RetrievalQuery:
    """Turns the processing strategy that a query names into a filter on datasets."""
    strategy = query.data_processing_strategy
    if strategy is None:
        return query
    try:
        config.rag.processing_strategy(strategy)
    except NotFound as error:
        raise InvalidRequest(error.message, details={"field": "data_processing_strategy"}) from None
    datasets = [
        dataset.name
        for dataset in config.datasets
        if (dataset.data_processing_strategy, dataset.database) == (strategy, database)
    ]
    asked = query.metadata_filters.get("dataset")
    if asked is not None:
        datasets = [name for name in datasets if name in (asked if isinstance(asked, list) else [asked])]
    # No dataset is named by the empty string, so nothing is found when none is left.
    return replace(query, metadata_filters={**query.metadata_filters, "dataset": datasets or [""]})
