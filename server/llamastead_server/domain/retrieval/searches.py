"""What a retrieval strategy comes to: a tree of searches, each of which gives chunks their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llamastead_server.domain.config.retrieval_settings import Factors, Metric

Kind = Literal["vector", "keyword", "hybrid"]
Aggregation = Literal["max", "mean", "weighted", "reciprocal_rank"]
Combination = Literal["weighted_average", "rank_fusion", "score_fusion"]


@dataclass(frozen=True, slots=True)
class PlainSearch:
    """One search of one text.

    Attributes:
        kind: Its sides.
        candidates: Length of each side's list.
        alpha: Weight of the vector side of a hybrid search.
        metric: How the vector side scores.
        filters: Metadata that results must have.
        filtered_after: Candidates that the filters choose from, when they apply after the search.
        expand: Whether the keyword side is expanded.
    """

    kind: Kind
    candidates: int = 100
    alpha: float = 0.5
    metric: Metric = "cosine"
    filters: Mapping[str, Any] = field(default_factory=dict)
    filtered_after: int | None = None
    expand: bool = False


@dataclass(frozen=True, slots=True)
class Variants:
    """Several wordings of the text, searched and aggregated.

    Attributes:
        of: The search.
        most: Most wordings, the text itself included.
        method: How a chunk's scores become one.
        weights: What each wording counts in `weighted`.
    """

    of: PlainSearch
    most: int
    method: Aggregation
    weights: Sequence[float]


@dataclass(frozen=True, slots=True)
class Blend:
    """Several searches of one text, fused.

    Attributes:
        parts: Weights and searches.
        method: How a chunk's scores become one.
    """

    parts: Sequence[tuple[float, Search]]
    method: Combination


@dataclass(frozen=True, slots=True)
class CrossEncoded:
    """The best of a search, scored anew by a cross-encoder.

    Attributes:
        of: The search.
        model: The cross-encoder.
        candidates: How many it scores.
        timeout: Seconds it may take.
    """

    of: Search
    model: str
    candidates: int
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Factored:
    """The best of a search, scored anew by similarity, recency, length and metadata.

    Attributes:
        of: The search.
        candidates: How many are scored.
        factors: What each counts.
        normalized: Whether similarities are stretched to [0, 1] first.
    """

    of: Search
    candidates: int
    factors: Factors
    normalized: bool


@dataclass(frozen=True, slots=True)
class Divided:
    """A long text, divided into questions that are searched one by one.

    Attributes:
        of: The search.
        most: Most questions.
        longer_than: Characters up to which a text is one question.
        shortest: Fewest characters of a question.
        top_k: Results of each question.
        duplicates: Share of common words from which two results count as one.
        at_once: Questions searched at once.
    """

    of: Search
    most: int
    longer_than: int
    shortest: int
    top_k: int
    duplicates: float
    at_once: int


Search = PlainSearch | Variants | Blend | CrossEncoded | Factored | Divided
