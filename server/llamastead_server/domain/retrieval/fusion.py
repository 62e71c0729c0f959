"""Scores of a search: absolute, in [0, 1], and how the two sides of a hybrid search become one.

A score depends on the query and the chunk only, never on the other results, so it can be compared between
queries and held against a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llamastead_server.domain.config.retrieval_settings import Metric

_RANK_OFFSET = 60
_HALF_WAY = 10.0
_BYTES_PER_TOKEN = 3


def vector_score(cosine: float, metric: Metric = "cosine") -> float:
    """Brings a cosine into [0, 1], by the metric's formula.

    Vectors have length 1, so their inner product is their cosine c, and their Euclidean distance d is √(2 − 2c):
    `cosine` and `ip` give (1 + c) / 2, `l2` gives 1 / (1 + d). The order is the same for all.
    """
    bounded = min(1.0, max(-1.0, cosine))
    if metric == "l2":
        return 1.0 / (1.0 + math.sqrt(2.0 - 2.0 * bounded))
    return (1.0 + bounded) / 2.0


def keyword_score(bm25: float) -> float:
    """Brings a BM25 score into [0, 1): 10 becomes 0.5."""
    positive = max(0.0, bm25)
    return positive / (positive + _HALF_WAY)


def weighted(first: Mapping[str, float], second: Mapping[str, float], weight: float) -> dict[str, float]:
    """`weight` times the first score plus the rest of the second, over the ids of both; a missing one is 0.

    What no side that counts has found is left out.
    """
    return _supported(
        {
            chunk_id: weight * first.get(chunk_id, 0.0) + (1.0 - weight) * second.get(chunk_id, 0.0)
            for chunk_id in {**first, **second}
        }
    )


def averaged(scores: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """The mean by weight over the ids of all; a missing score is 0. What no list that counts has is left out."""
    total = sum(weights)
    return _supported(
        {
            chunk_id: sum(weight * each.get(chunk_id, 0.0) for weight, each in zip(weights, scores, strict=True))
            / total
            for chunk_id in _ids(scores)
        }
    )


def rank_fused(scores: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Reciprocal rank fusion: 1 / (60 + rank) by weight, as a share of what the first place in all would give.

    Unlike the others these scores tell a place among the results, not how well a chunk fits.
    """
    reciprocal = [
        {
            chunk_id: (1.0 + _RANK_OFFSET) / (rank + _RANK_OFFSET)
            for rank, (chunk_id, _) in enumerate(ranked(each, 0), 1)
        }
        for each in scores
    ]
    return averaged(reciprocal, weights)


def score_fused(scores: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """The mean by weight, after each list's best score was made 1."""
    relative = []
    for each in scores:
        best = max(each.values(), default=0.0) or 1.0
        relative.append({chunk_id: score / best for chunk_id, score in each.items()})
    return averaged(relative, weights)


def greatest(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The greatest score of each id."""
    return {chunk_id: max(each.get(chunk_id, 0.0) for each in scores) for chunk_id in _ids(scores)}


def greater(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The greater of both scores, over all ids of both."""
    return {chunk_id: max(first.get(chunk_id, 0.0), second.get(chunk_id, 0.0)) for chunk_id in {**first, **second}}


def ranked(scores: Mapping[str, float], threshold: float) -> Sequence[tuple[str, float]]:
    """Ids with scores of at least the threshold, best first; equal scores in order of their ids."""
    kept = [(chunk_id, score) for chunk_id, score in scores.items() if score >= threshold]
    return sorted(kept, key=lambda entry: (-entry[1], entry[0]))


def _supported(scores: dict[str, float]) -> dict[str, float]:
    return {chunk_id: score for chunk_id, score in scores.items() if score > 0.0}


def _ids(scores: Sequence[Mapping[str, float]]) -> Sequence[str]:
    return list(dict.fromkeys(chunk_id for each in scores for chunk_id in each))


def estimated_tokens(text: str) -> int:
    """A cautious estimate of a text's tokens: one per three bytes of UTF-8, rounded up.

    English takes about four bytes per token in a Llama's tokenizer and Chinese about three.
    """
    return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)
