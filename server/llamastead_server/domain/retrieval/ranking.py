"""Hits: chunks with scores, each text of a file once, and what scores them beside the searches themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Protocol

from llamastead_server.domain.config.retrieval_settings import Factors
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval.fusion import estimated_tokens
from llamastead_server.domain.retrieval.query_expansion import content_words

_SPARE = 3
_WHOLE_LENGTH = 1000
_HALF_LIFE_DAYS = 365.0
_DATES = ("date", "modified", "modified_at", "last_modified", "updated_at", "created", "created_at", "creation_date")


class ChunkTexts(Protocol):
    """The chunks' text."""

    async def get_chunks(self, ref: ProjectRef, ids: Sequence[str]) -> Mapping[str, Chunk]:
        """The chunks with these ids; unknown ids are left out."""
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


async def distinct(texts: ChunkTexts, ref: ProjectRef, ranking: Sequence[tuple[str, float]], wanted: int) -> list[Hit]:
    """The best `wanted` chunks of a ranking, each text of a file once: the same file may be in two datasets."""
    hits: list[Hit] = []
    seen: set[tuple[str, str]] = set()
    # A few more than wanted, so that a duplicate rarely costs a second round.
    step = wanted + max(_SPARE, wanted // 4)
    for start in range(0, len(ranking), step):
        part = ranking[start : start + step]
        # A chunk that is in the vector store only is being deleted.
        found = await texts.get_chunks(ref, [chunk_id for chunk_id, _ in part])
        for chunk_id, score in part:
            chunk = found.get(chunk_id)
            if chunk is not None and (chunk.file_hash, chunk.text) not in seen:
                seen.add((chunk.file_hash, chunk.text))
                hits.append(Hit(chunk, score))
                if len(hits) == wanted:
                    return hits
    return hits


def without_duplicates(hits: Sequence[Hit], similarity: float) -> Sequence[Hit]:
    """The hits, best first, without those that share so much of their words with a better one.

    Args:
        hits: In any order; the same chunk may come twice.
        similarity: Words in both, as a share of the words in either, from which two hits are the same.
    """
    kept: list[tuple[Hit, frozenset[str]]] = []
    for hit in sorted(hits, key=lambda hit: (-hit.score, hit.chunk.id)):
        words = frozenset(hit.chunk.text.lower().split())
        if not any(_alike(words, other) >= similarity or hit.chunk.id == better.chunk.id for better, other in kept):
            kept.append((hit, words))
    return [hit for hit, _ in kept]


def cut(hits: Sequence[Hit], max_tokens: int) -> Sequence[Hit]:
    """The first hits that fit into a number of tokens together, estimated."""
    kept: list[Hit] = []
    for hit in hits:
        max_tokens -= estimated_tokens(hit.chunk.text)
        if max_tokens < 0:
            break
        kept.append(hit)
    return kept


def factored(
    hits: Sequence[Hit], query: str, factors: Factors, *, normalized: bool, today: date | None = None
) -> dict[str, float]:
    """Scores hits anew: the mean of four factors by their weights, each in [0, 1].

    Similarity is the score they have, stretched so that the best is 1 and the least 0 if `normalized`. Recency
    halves with each year of the document's age; without a date in the metadata it is 0. Length is 1 from 1000
    characters on. Metadata is the share of the query's words that the file name or the metadata hold.
    """
    now = today or datetime.now(UTC).date()
    least = min((hit.score for hit in hits), default=0.0)
    spread = max((hit.score for hit in hits), default=0.0) - least
    asked = {word.lower() for word in content_words(query)}
    weights = (
        factors.similarity_weight, factors.recency_weight, factors.length_weight, factors.metadata_weight,
    )  # fmt: skip
    scores = {}
    for hit in hits:
        similarity = (hit.score - least) / spread if normalized and spread else hit.score
        values = (
            similarity,
            _recency(hit.chunk.metadata, now),
            min(1.0, len(hit.chunk.text) / _WHOLE_LENGTH),
            _named(hit.chunk, asked),
        )
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        scores[hit.chunk.id] = total / sum(weights)
    return scores


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _recency(metadata: Mapping[str, Any], now: date) -> float:
    for key in _DATES:
        try:
            made = datetime.fromisoformat(str(metadata.get(key, ""))).date()
        except ValueError:
            continue
        return float(0.5 ** (max(0, (now - made).days) / _HALF_LIFE_DAYS))
    return 0.0


def _named(chunk: Chunk, asked: set[str]) -> float:
    if not asked:
        return 0.0
    known = " ".join([chunk.filename.replace("_", " ").replace("-", " "), *map(str, chunk.metadata.values())]).lower()
    words = {word.lower() for word in content_words(known)}
    return len(asked & words) / len(asked)
