"""What a retrieval query asks for, and the search it comes to with the project's configuration and the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.rag_config import Database, Strategy

Kind = Literal["vector", "keyword", "hybrid"]
DEFAULT_TOP_K = 5
LARGEST_TOP_K = 100
DEFAULT_ALPHA = 0.5
DEFAULT_STRATEGY = "hybrid"

_BUILT_IN: Mapping[str, Kind] = {"vector": "vector", "keyword": "keyword", "hybrid": "hybrid"}
_TYPES: Mapping[str, Kind] = {
    "BasicSimilarityStrategy": "vector",
    "VectorRetriever": "vector",
    "MetadataFilteredStrategy": "vector",
    "BM25Retriever": "keyword",
    "HybridUniversalStrategy": "hybrid",
    "HybridRetriever": "hybrid",
    "CrossEncoderRerankedStrategy": "hybrid",
    **_BUILT_IN,
}
_LARGEST_MAX_TOKENS = 8192
_FEWEST_RERANKED = 30


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """A question to a database; what is `None` is taken from the strategy's configuration, then the default.

    Attributes:
        query: Text to search for; not empty.
        database: Database to search; the project's default if `None`.
        top_k: Number of results, 1 to 100; default 5.
        score_threshold: Smallest score of a result, 0 to 1; default 0.
        retrieval_strategy: `vector`, `keyword`, `hybrid` or a configured name; default the database's, else `hybrid`.
        metadata_filters: Metadata that results must have, by equality; a list means any of its values.
        distance_metric: `cosine`, the only one built.
        hybrid_alpha: Weight of the vector side of a hybrid search, 0 to 1; default 0.5.
        rerank_model: Cross-encoder that rescores the best candidates; default none.
        query_expansion: Whether words that the best keyword hits share are searched too.
        max_tokens: Most tokens of all results together by `fusion.estimated_tokens`, 1 to 8192; default no limit.

    Raises:
        ValidationFailed: A value is out of its range; `details` names each.
    """

    query: str
    database: str | None = None
    top_k: int | None = None
    score_threshold: float | None = None
    retrieval_strategy: str | None = None
    metadata_filters: Mapping[str, Any] = field(default_factory=dict)
    distance_metric: str | None = None
    hybrid_alpha: float | None = None
    rerank_model: str | None = None
    query_expansion: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        wrong: dict[str, str] = {}
        if not self.query.strip():
            wrong["query"] = "must not be empty"
        for name, least, most in (("top_k", 1, LARGEST_TOP_K), ("max_tokens", 1, _LARGEST_MAX_TOKENS),
                                  ("score_threshold", 0, 1), ("hybrid_alpha", 0, 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                wrong[name] = f"must be between {least} and {most}"
        if wrong:
            reasons = "; ".join(f"{name} {reason}" for name, reason in wrong.items())
            raise ValidationFailed(f"Invalid query: {reasons}.", details=wrong)


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A query with nothing left open.

    Attributes:
        strategy: Name of the strategy, as results report it.
        kind: The search it is.
        top_k: Number of results.
        score_threshold: Smallest score of a result.
        filters: Metadata that results must have.
        alpha: Weight of the vector side of a hybrid search.
        rerank_model: Cross-encoder that rescores, if any.
        reranked: Candidates it rescores.
        expand: Whether the keyword side is expanded.
    """

    strategy: str
    kind: Kind
    top_k: int
    score_threshold: float
    filters: Mapping[str, Any]
    alpha: float
    rerank_model: str | None
    reranked: int
    expand: bool

    @property
    def candidates(self) -> int:
        """Length of each side's candidate list."""
        return max(100, 10 * self.top_k, self.reranked)


def plan(query: RetrievalQuery, database: Database) -> SearchPlan:
    """Joins the query, the strategy it means and the defaults.

    Raises:
        InvalidRequest: The strategy is unknown or of a kind that is not built, its configuration is out of
            range, or the query asks for another metric than cosine.
    """
    name, strategy = _chosen(query.retrieval_strategy, database)
    kind = _BUILT_IN[name] if strategy is None else _kind(strategy, database)
    settings = _Settings(name, {} if strategy is None else strategy.config)
    metric = query.distance_metric or settings.text("distance_metric") or "cosine"
    if metric.lower() != "cosine":
        raise InvalidRequest(
            f"distance_metric {metric!r} is not available: databases are made with 'cosine'. Their vectors have "
            "length 1, so 'ip' and 'l2' would give the same order.",
            details={"field": "distance_metric"},
        )
    if query.query_expansion and kind == "vector":
        raise InvalidRequest(
            "query_expansion adds words to the keyword side of a search, which the strategy "
            f"{name!r} does not have: use 'keyword' or 'hybrid'.",
            details={"field": "query_expansion"},
        )
    top_k = query.top_k or settings.number("final_k", 1, LARGEST_TOP_K) or settings.number("top_k", 1, LARGEST_TOP_K)
    threshold, alpha = query.score_threshold, query.hybrid_alpha
    if threshold is None:
        threshold = settings.number("score_threshold", 0, 1) or settings.number("relevance_threshold", 0, 1)
    if alpha is None:
        alpha = settings.number("hybrid_alpha", 0, 1)
    initial = settings.number("initial_k", 1, LARGEST_TOP_K) or _FEWEST_RERANKED
    whole_top_k = int(top_k or DEFAULT_TOP_K)
    return SearchPlan(
        strategy=name,
        kind=kind,
        top_k=whole_top_k,
        score_threshold=threshold or 0.0,
        filters={**settings.mapping("filters"), **query.metadata_filters},
        alpha=DEFAULT_ALPHA if alpha is None else alpha,
        rerank_model=query.rerank_model or settings.text("rerank_model") or settings.text("model_name") or None,
        reranked=max(whole_top_k, int(initial)),
        expand=query.query_expansion,
    )


def _chosen(name: str | None, database: Database) -> tuple[str, Strategy | None]:
    configured = database.retrieval_strategy(name or None)
    if configured is not None:
        return configured.name, configured
    wanted = name or database.default_retrieval_strategy or DEFAULT_STRATEGY
    if wanted in _BUILT_IN:
        return wanted, None
    known = dict.fromkeys([*_BUILT_IN, *(entry.name for entry in database.retrieval_strategies)])
    raise InvalidRequest(
        f"Unknown retrieval strategy {wanted[:100]!r} for database {database.name!r}. Available: {', '.join(known)}.",
        details={"field": "retrieval_strategy"},
    )


def _kind(strategy: Strategy, database: Database) -> Kind:
    kind = _TYPES.get(strategy.type or strategy.name)
    if kind is None:
        raise InvalidRequest(
            f"Retrieval strategy {strategy.name!r} of database {database.name!r} has the type {strategy.type!r}, which "
            f"is not built. Types: {', '.join(_TYPES)}. The strategies vector, keyword and hybrid always work.",
            details={"field": "retrieval_strategy"},
        )
    return kind


class _Settings:
    """A strategy's configuration, read with its types and ranges checked."""

    def __init__(self, strategy: str, values: Mapping[str, Any]) -> None:
        self._strategy = strategy
        self._values = values

    def number(self, key: str, least: float, most: float) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not right or not least <= value <= most:
            raise self._wrong(key, f"a number between {least} and {most}")
        return float(value)

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._values.get(key) or {}
        if not isinstance(value, Mapping):
            raise self._wrong(key, "a mapping")
        return value

    def _wrong(self, key: str, expected: str) -> InvalidRequest:
        return InvalidRequest(
            f"The project's retrieval strategy {self._strategy!r} has a wrong config.{key}: it must be {expected}.",
            details={"field": "retrieval_strategy"},
        )
