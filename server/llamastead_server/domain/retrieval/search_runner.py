"""Runs the searches that a strategy comes to, over one collection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from llamastead_server.domain.errors import RequestTimeout
from llamastead_server.domain.ports import Chunk, Collection, Embedder, Match, VectorStore
from llamastead_server.domain.retrieval.fusion import (
    averaged,
    greater,
    greatest,
    keyword_score,
    rank_fused,
    ranked,
    score_fused,
    vector_score,
    weighted,
)
from llamastead_server.domain.retrieval.query_expansion import ADDED_WEIGHT, FEEDBACK_CHUNKS, expansion_terms
from llamastead_server.domain.retrieval.query_variants import questions, variants
from llamastead_server.domain.retrieval.ranking import ChunkTexts, Hit, distinct, factored, without_duplicates
from llamastead_server.domain.retrieval.searches import (
    Blend,
    CrossEncoded,
    Divided,
    Factored,
    PlainSearch,
    Search,
    Variants,
)

T = TypeVar("T")
Scores = Mapping[str, float]


class SearchRunner:
    """Gives chunks of one collection their scores.

    Args:
        collection: The collection.
        embedder: Embeds queries as the collection's chunks were.
        store: The vectors and the keyword index.
        texts: The chunks' text.
        hidden: Datasets that nothing is found of.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        store: VectorStore,
        texts: ChunkTexts,
        hidden: Iterable[str] = (),
    ) -> None:
        self._collection = collection
        self._embedder = embedder
        self._store = store
        self._texts = texts
        self._hidden = tuple(hidden)

    async def scores(self, search: Search, text: str) -> Scores:
        """Ids and scores, in [0, 1], of the chunks that a search finds for a text; in no order."""
        match search:
            case PlainSearch():
                return await self._plain(search, text)
            case Variants():
                return await self._variants(search, text)
            case Blend():
                return await self._blended(search, text)
            case CrossEncoded():
                return await self._cross_encoded(search, text)
            case Factored():
                hits = await self.best(search.of, text, search.candidates)
                return factored(hits, text, search.factors, normalized=search.normalized)
            case Divided():
                return await self._divided(search, text)

    async def best(self, search: Search, text: str, most: int, threshold: float = 0.0) -> list[Hit]:
        """The best chunks for a text, each text of a file once."""
        return await distinct(
            self._texts, self._collection.project, ranked(await self.scores(search, text), threshold), most
        )

    async def _plain(self, search: PlainSearch, text: str) -> Scores:
        if search.filtered_after is not None and search.filters:
            everything, passing = await _both(
                self._plain(replace(search, filters={}), text), self._plain(replace(search, filtered_after=None), text)
            )
            return {key: score for key, score in ranked(everything, 0)[: search.filtered_after] if key in passing}
        if search.kind == "keyword":
            return await self._by_keyword(search, text)
        if search.kind == "vector":
            return await self._nearest(search, await self._embedder.embed_query(text))
        # The keyword search runs while the query is embedded; then both requests of the vector side at once.
        keyword_search = asyncio.create_task(self._by_keyword(search, text))
        running: list[asyncio.Task[Any]] = [keyword_search]
        try:
            vector = await self._embedder.embed_query(text)
            vector_search = asyncio.create_task(self._nearest(search, vector))
            running.append(vector_search)
            by_keyword = await keyword_search
            # Keyword hits that the vector search did not reach still have a cosine.
            by_vector = {**await self._completed(search, vector, list(by_keyword)), **await vector_search}
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return weighted(by_vector, by_keyword, search.alpha)

    async def _nearest(self, search: PlainSearch, vector: Sequence[float]) -> Scores:
        found = await self._store.search_vector(
            self._collection, vector, search.candidates, search.filters, without=self._hidden
        )
        return {match.chunk_id: vector_score(match.score, search.metric) for match in found}

    async def _completed(self, search: PlainSearch, vector: Sequence[float], ids: Sequence[str]) -> Scores:
        cosines = await self._store.vector_scores(self._collection, vector, ids)
        return {chunk_id: vector_score(cosine, search.metric) for chunk_id, cosine in cosines.items()}

    async def _by_keyword(self, search: PlainSearch, text: str) -> Scores:
        found = await self._words(search, text)
        scores = _keyword_scores(found)
        if not search.expand:
            return scores
        ids = [match.chunk_id for match in found[:FEEDBACK_CHUNKS]]
        feedback: Mapping[str, Chunk] = await self._texts.get_chunks(self._collection.project, ids)
        terms = expansion_terms(text, [feedback[chunk_id].text for chunk_id in ids if chunk_id in feedback])
        if not terms:
            return scores
        added = await self._words(search, " ".join(terms))
        # The greater one, not the sum: a chunk that has the query's own words keeps its place.
        return greater(scores, {chunk_id: ADDED_WEIGHT * score for chunk_id, score in _keyword_scores(added).items()})

    async def _words(self, search: PlainSearch, text: str) -> Sequence[Match]:
        return await self._store.search_keyword(
            self._collection, text, search.candidates, search.filters, without=self._hidden
        )

    async def _variants(self, search: Variants, text: str) -> Scores:
        texts = variants(text, search.most)
        lists = await self._same_ids([search.of] * len(texts), texts)
        match search.method:
            case "max":
                return greatest(lists)
            case "mean":
                return averaged(lists, [1.0] * len(lists))
            case "weighted":
                weights = search.weights[: len(lists)]
                # What is left of the weights may be nothing when the text has fewer wordings.
                return averaged(lists, weights if sum(weights) else [1.0] * len(lists))
            case "reciprocal_rank":
                return rank_fused(lists, [1.0] * len(lists))

    async def _blended(self, search: Blend, text: str) -> Scores:
        weights = [weight for weight, _ in search.parts]
        lists = await self._same_ids([part for _, part in search.parts], [text] * len(search.parts))
        match search.method:
            case "weighted_average":
                return averaged(lists, weights)
            case "rank_fusion":
                return rank_fused(lists, weights)
            case "score_fusion":
                return score_fused(lists, weights)

    async def _same_ids(self, searches: Sequence[Search], texts: Sequence[str]) -> Sequence[Scores]:
        """Runs searches, and gives each the vector scores of what only others found: a mean must not punish a chunk
        for the length of a list. Filters decide what is found, so nothing is completed where they differ."""
        lists = await _all([self.scores(search, text) for search, text in zip(searches, texts, strict=True)])
        plain = [search for search in searches if isinstance(search, PlainSearch)]
        if any(search.filters != plain[0].filters or search.filtered_after is not None for search in plain):
            return lists
        found = dict.fromkeys(chunk_id for scores in lists for chunk_id in scores)
        completed = []
        for search, text, scores in zip(searches, texts, lists, strict=True):
            missing = [chunk_id for chunk_id in found if chunk_id not in scores]
            if not missing or not isinstance(search, PlainSearch) or search.kind == "keyword":
                completed.append(scores)
                continue
            added = await self._completed(search, await self._embedder.embed_query(text), missing)
            share = search.alpha if search.kind == "hybrid" else 1.0
            completed.append({**scores, **{chunk_id: share * score for chunk_id, score in added.items()}})
        return completed

    async def _cross_encoded(self, search: CrossEncoded, text: str) -> Scores:
        hits = await self.best(search.of, text, search.candidates)
        try:
            async with asyncio.timeout(search.timeout):
                scores = await self._embedder.rerank(search.model, text, [hit.chunk.text for hit in hits])
        except TimeoutError:
            raise RequestTimeout(
                f"The reranking model {search.model!r} took longer than {search.timeout:g} s for {len(hits)} chunks. "
                "Rerank fewer (initial_k), or raise the strategy's timeout."
            ) from None
        return {hit.chunk.id: score for hit, score in zip(hits, scores, strict=True)}

    async def _divided(self, search: Divided, text: str) -> Scores:
        parts = questions(text, most=search.most, longer_than=search.longer_than, shortest=search.shortest)
        places = asyncio.Semaphore(search.at_once)

        async def answers(part: str) -> Sequence[Hit]:
            async with places:
                return await self.best(search.of, part, search.top_k)

        hits = [hit for found in await _all([answers(part) for part in parts]) for hit in found]
        return {hit.chunk.id: hit.score for hit in without_duplicates(hits, search.duplicates)}


async def _all(calls: Sequence[Awaitable[T]]) -> Sequence[T]:
    """All results, in order; when one fails the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _both(first: Awaitable[T], second: Awaitable[T]) -> tuple[T, T]:
    one, other = await _all([first, second])
    return one, other


def _keyword_scores(matches: Sequence[Match]) -> dict[str, float]:
    return {match.chunk_id: keyword_score(match.score) for match in matches}
