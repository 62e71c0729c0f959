"""Which passages a chat turn is given: the request's wishes, then the model's, then the project's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.config.runtime import RuntimeModel
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.retrieval.sources import Source


class SourceFinder(Protocol):
    """Finds the passages for a question."""

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
        """Passages, best first; `None` leaves a setting to the project. A database never filled has none.

        Raises:
            NotFound: The project configures no such database or strategy.
        """
        ...


async def find_sources(
    finder: SourceFinder, ref: ProjectRef, config: ProjectConfig, model: RuntimeModel, request: ChatRequest
) -> Sequence[Source]:
    """The passages for a turn, best first; none when retrieval is off or the project has no database.

    Raises:
        NotFound: A database or strategy that the request or the model names does not exist.
    """
    if request.database:
        # A database that was named must exist, whether it is searched or not.
        config.rag.database(request.database)
    enabled = model.rag_enabled if request.rag_enabled is None else request.rag_enabled
    named = request.database or model.target_database
    # Without databases there is nothing to find, also for LlamaFarm's command line, which always sends
    # `rag_enabled`.
    if enabled is False or not (config.rag.databases or named):
        return []
    question = next((message.content for message in reversed(request.turns) if message.role == "user"), "")
    queries = list(dict.fromkeys(request.rag_queries or ([question] if question.strip() else [])))
    database = config.rag.database(named)
    searches = [
        asyncio.create_task(
            finder.find(
                ref,
                query,
                database=database.name,
                strategy=request.rag_retrieval_strategy or None,
                top_k=request.rag_top_k,
                score_threshold=request.rag_score_threshold,
            )
        )
        for query in queries
    ]
    try:
        found = await asyncio.gather(*searches)
    finally:
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)
    return found[0] if len(found) == 1 else _merged(found)


def _merged(found: Sequence[Sequence[Source]]) -> Sequence[Source]:
    """The results of several queries as one list, as long as the longest: each passage once, with its best score."""
    best: dict[str, Source] = {}
    for source in (source for sources in found for source in sources):
        known = best.get(source.chunk.id)
        if known is None or source.score > known.score:
            best[source.chunk.id] = source
    ranked = sorted(best.values(), key=lambda source: source.score, reverse=True)
    return ranked[: max(map(len, found), default=0)]
