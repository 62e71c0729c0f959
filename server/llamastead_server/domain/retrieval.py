"""Retrieval: from a question to the chunks that answer it best."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llamastead_server.domain.errors import Conflict, InvalidRequest
from llamastead_server.domain.fusion import estimated_tokens, greater, keyword_score, ranked, vector_score, weighted
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import (
    Chunk,
    Clock,
    Collection,
    Embedder,
    Match,
    ProjectStore,
    VectorStore,
)
from llamastead_server.domain.query_expansion import ADDED_WEIGHT, FEEDBACK_CHUNKS, expansion_terms
from llamastead_server.domain.retrieval_plan import RetrievalQuery, SearchPlan, plan
from llamastead_server.domain.sources import Source

_SPARE = 3


class ChunkStore(Protocol):
    """The chunks' text and what databases were made with: the truth that vectors can be rebuilt from."""

    async def get_chunks(self, ref: ProjectRef, ids: Sequence[str]) -> Mapping[str, Chunk]:
        """The chunks with these ids; unknown ids are left out."""
        ...

    async def document_count(self, ref: ProjectRef, database: str) -> int:
        """How many files have chunks in the database."""
        ...

    async def embedding_of(self, ref: ProjectRef, database: str) -> tuple[str, int] | None:
        """Embedding model and dimension of a database; `None` for one never written to."""
        ...

    async def remember_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records the embedding model and dimension of a database."""
        ...


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        chunk: The chunk.
        score: How well it answers the query, in [0, 1].
    """

    chunk: Chunk
    score: float

    @property
    def document_id(self) -> str:
        """Id of the document the chunk is from: the SHA-256 of its file."""
        return self.chunk.file_hash


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

    async def query(self, ref: ProjectRef, query: RetrievalQuery) -> RetrievalResult:
        """Finds the chunks that answer the query best.

        Raises:
            NotFound: The project, the database or the reranking model does not exist.
            InvalidRequest: The project has no database, or the query asks for what is not built.
            Conflict: The database was made with another embedding model.
            Unavailable: The embedder or the vector store is down.
        """
        started = self._clock()
        config = await self._projects.config(ref)
        if not config.rag.databases:
            raise InvalidRequest(f"Project {ref} has no database: add one under rag.databases.")
        database = config.rag.database(query.database)
        wanted = plan(query, database)
        made_with = await self._chunks.embedding_of(ref, database.name)
        hits: Sequence[Hit] = []
        if made_with is not None:
            if wanted.kind != "keyword":
                await check_embedding(self._embedder, database.name, made_with)
            hits = await self._hits(Collection(ref, database.name, made_with[1]), query, wanted)
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

    async def _hits(self, collection: Collection, query: RetrievalQuery, wanted: SearchPlan) -> Sequence[Hit]:
        scores = await self._scores(collection, query.query, wanted)
        if wanted.rerank_model is None:
            ranking = ranked(scores, wanted.score_threshold)
            best: Sequence[Hit] = await self._distinct(collection.project, ranking, wanted.top_k)
        else:
            candidates = await self._distinct(collection.project, ranked(scores, 0.0), wanted.reranked)
            best = await self._reranked(wanted, query.query, candidates)
        return best if query.max_tokens is None else _cut(best, query.max_tokens)

    async def _scores(self, collection: Collection, text: str, wanted: SearchPlan) -> Mapping[str, float]:
        if wanted.kind == "keyword":
            return await self._keyword_side(collection, text, wanted)
        if wanted.kind == "vector":
            vector = await self._embedder.embed_query(text)
            return await self._nearest(collection, vector, wanted)
        # The keyword search runs while the query is embedded; then both requests of the vector side at once.
        keyword_search = asyncio.create_task(self._keyword_side(collection, text, wanted))
        running: list[asyncio.Task[Any]] = [keyword_search]
        try:
            vector = await self._embedder.embed_query(text)
            vector_search = asyncio.create_task(self._nearest(collection, vector, wanted))
            running.append(vector_search)
            by_keyword = await keyword_search
            # Keyword hits that the vector search did not reach still have a cosine.
            completed = await self._store.vector_scores(collection, vector, list(by_keyword))
            by_vector = {**_vector_scores(completed), **await vector_search}
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return weighted(by_vector, by_keyword, wanted.alpha)

    async def _nearest(
        self, collection: Collection, vector: Sequence[float], wanted: SearchPlan
    ) -> Mapping[str, float]:
        matches = await self._store.search_vector(collection, vector, wanted.candidates, wanted.filters)
        return _vector_scores({match.chunk_id: match.score for match in matches})

    async def _keyword_side(self, collection: Collection, text: str, wanted: SearchPlan) -> Mapping[str, float]:
        matches = await self._store.search_keyword(collection, text, wanted.candidates, wanted.filters)
        scores = _keyword_scores(matches)
        if not wanted.expand:
            return scores
        ids = [match.chunk_id for match in matches[:FEEDBACK_CHUNKS]]
        feedback = await self._chunks.get_chunks(collection.project, ids)
        terms = expansion_terms(text, [feedback[chunk_id].text for chunk_id in ids if chunk_id in feedback])
        if not terms:
            return scores
        added = await self._store.search_keyword(collection, " ".join(terms), wanted.candidates, wanted.filters)
        # The greater one, not the sum: a chunk that has the query's own words keeps its place.
        return greater(scores, {chunk_id: ADDED_WEIGHT * score for chunk_id, score in _keyword_scores(added).items()})

    async def _distinct(self, ref: ProjectRef, ranking: Sequence[tuple[str, float]], wanted: int) -> list[Hit]:
        """The best `wanted` chunks, each text of a file once: the same file may be in two datasets."""
        hits: list[Hit] = []
        seen: set[tuple[str, str]] = set()
        # A few more than wanted, so that a duplicate rarely costs a second round.
        step = wanted + max(_SPARE, wanted // 4)
        for start in range(0, len(ranking), step):
            part = ranking[start : start + step]
            # A chunk that is in the vector store only is being deleted.
            found = await self._chunks.get_chunks(ref, [chunk_id for chunk_id, _ in part])
            for chunk_id, score in part:
                chunk = found.get(chunk_id)
                if chunk is not None and (chunk.file_hash, chunk.text) not in seen:
                    seen.add((chunk.file_hash, chunk.text))
                    hits.append(Hit(chunk, score))
                    if len(hits) == wanted:
                        return hits
        return hits

    async def _reranked(self, wanted: SearchPlan, text: str, candidates: Sequence[Hit]) -> Sequence[Hit]:
        assert wanted.rerank_model is not None
        scores = await self._embedder.rerank(wanted.rerank_model, text, [hit.chunk.text for hit in candidates])
        chunks = {hit.chunk.id: hit.chunk for hit in candidates}
        rescored = dict(zip(chunks, scores, strict=True))
        order = ranked(rescored, wanted.score_threshold)[: wanted.top_k]
        return [Hit(chunks[chunk_id], score) for chunk_id, score in order]


async def check_embedding(embedder: Embedder, database: str, made_with: tuple[str, int]) -> None:
    """Raises `Conflict` unless the database was made with the embedder's present model."""
    now = (embedder.model, await embedder.dimension())
    if now != made_with:
        raise Conflict(
            f"Database {database!r} was made with the embedding model {made_with[0]!r} ({made_with[1]} dimensions), "
            f"but the server now embeds with {now[0]!r} ({now[1]} dimensions). Start the server with "
            f"LLAMASTEAD_EMBEDDING_MODEL={made_with[0]}, or delete the database's datasets and process their files "
            "again.",
            details={"database": database, "embedding_model": made_with[0]},
        )


def _vector_scores(cosines: Mapping[str, float]) -> dict[str, float]:
    return {chunk_id: vector_score(cosine) for chunk_id, cosine in cosines.items()}


def _keyword_scores(matches: Sequence[Match]) -> dict[str, float]:
    return {match.chunk_id: keyword_score(match.score) for match in matches}


def _cut(hits: Sequence[Hit], max_tokens: int) -> Sequence[Hit]:
    kept: list[Hit] = []
    for hit in hits:
        max_tokens -= estimated_tokens(hit.chunk.text)
        if max_tokens < 0:
            break
        kept.append(hit)
    return kept
