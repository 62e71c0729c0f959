"""Scores of a search: absolute, in [0, 1], and how the two sides of a hybrid search become one.

A score depends on the query and the chunk only, never on the other results, so it can be compared between
queries and held against a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_HALF_WAY = 10.0
_BYTES_PER_TOKEN = 3


def vector_score(cosine: float) -> float:
    """Brings a cosine into [0, 1]."""
    return min(1.0, max(0.0, (1.0 + cosine) / 2.0))


def keyword_score(bm25: float) -> float:
    """Brings a BM25 score into [0, 1): 10 becomes 0.5."""
    positive = max(0.0, bm25)
    return positive / (positive + _HALF_WAY)


def weighted(first: Mapping[str, float], second: Mapping[str, float], weight: float) -> dict[str, float]:
    """`weight` times the first score plus the rest of the second, over all ids of both; a missing one is 0."""
    return {
        chunk_id: weight * first.get(chunk_id, 0.0) + (1.0 - weight) * second.get(chunk_id, 0.0)
        for chunk_id in {**first, **second}
    }


def greater(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The greater of both scores, over all ids of both."""
    return {chunk_id: max(first.get(chunk_id, 0.0), second.get(chunk_id, 0.0)) for chunk_id in {**first, **second}}


def ranked(scores: Mapping[str, float], threshold: float) -> Sequence[tuple[str, float]]:
    """Ids with scores of at least the threshold, best first; equal scores in order of their ids."""
    kept = [(chunk_id, score) for chunk_id, score in scores.items() if score >= threshold]
    return sorted(kept, key=lambda entry: (-entry[1], entry[0]))


def estimated_tokens(text: str) -> int:
    """A cautious estimate of a text's tokens: one per three bytes of UTF-8, rounded up.

    English takes about four bytes per token in a Llama's tokenizer and Chinese about three.
    """
    return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)
