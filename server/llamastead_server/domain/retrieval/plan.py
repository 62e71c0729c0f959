"""What a retrieval query asks for, and the search it comes to with the project's configuration and the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llamastead_server.domain.config.rag import BUILT_IN_RETRIEVAL, Database
from llamastead_server.domain.config.retrieval_settings import (
    LARGEST_TOP_K,
    METRICS,
    CombinedSettings,
    CrossEncoderSettings,
    FilteredSettings,
    HybridSettings,
    KeywordSettings,
    MultiQuerySettings,
    MultiTurnSettings,
    RerankedSettings,
    Settings,
    VectorSettings,
    WithMetric,
    settings,
)
from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.retrieval.searches import (
    Blend,
    CrossEncoded,
    Divided,
    Factored,
    Kind,
    PlainSearch,
    Search,
    Variants,
)
from llamastead_server.domain.validation import summary

DEFAULT_TOP_K = 5
DEFAULT_ALPHA = 0.5
DEFAULT_STRATEGY = "hybrid"

_LARGEST_MAX_TOKENS = 8192
_RERANKED = 30


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
        distance_metric: How the vector side scores: `cosine`, `l2` or `ip`, or another name of these.
        hybrid_alpha: Weight of the vector side of a hybrid search, 0 to 1; default 0.5.
        rerank_model: Cross-encoder that rescores the best candidates; default none.
        query_expansion: Whether words that the best keyword hits share are searched too.
        data_processing_strategy: Searches only datasets processed by this strategy.
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
    query_expansion: bool | None = None
    data_processing_strategy: str | None = None
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
        if self.distance_metric and self.distance_metric.lower() not in METRICS:
            wrong["distance_metric"] = f"must be one of {', '.join(METRICS)}"
        if wrong:
            raise ValidationFailed(f"Invalid query: {summary(wrong)}.", details=wrong)


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A query with nothing left open.

    Attributes:
        strategy: Name of the strategy, as results report it.
        search: What is searched, and how.
        top_k: Number of results.
        score_threshold: Smallest score of a result.
    """

    strategy: str
    search: Search
    top_k: int
    score_threshold: float

    @property
    def embeds(self) -> bool:
        """Whether any part of it needs the query's vector."""
        return _embeds(self.search)


def plan(query: RetrievalQuery, database: Database) -> SearchPlan:
    """Joins the query, the strategy it means and the defaults.

    Raises:
        InvalidRequest: The strategy is unknown, or the query sets what the strategy has no use for.
    """
    name, own = _chosen(query.retrieval_strategy, database)
    top_k = query.top_k or own.results or DEFAULT_TOP_K
    threshold = query.score_threshold
    if threshold is None:
        relevance = getattr(own, "relevance_threshold", None)
        threshold = own.score_threshold if relevance is None else relevance
    search = _Builder(query, name, top_k, database).build(own)
    return SearchPlan(name, search, top_k, threshold or 0.0)


def _chosen(name: str | None, database: Database) -> tuple[str, Settings]:
    configured = database.retrieval_strategy(name or None)
    if configured is not None:
        return configured.name, configured.settings
    wanted = name or database.default_retrieval_strategy or DEFAULT_STRATEGY
    if wanted in BUILT_IN_RETRIEVAL:
        return wanted, settings(wanted, {})
    known = dict.fromkeys([*BUILT_IN_RETRIEVAL, *(entry.name for entry in database.retrieval_strategies)])
    raise InvalidRequest(
        f"Unknown retrieval strategy {wanted[:100]!r} for database {database.name!r}. Available: {', '.join(known)}.",
        details={"field": "retrieval_strategy"},
    )


class _Builder:
    """Turns a strategy's settings into searches; what the query says goes before what the strategy says."""

    def __init__(self, query: RetrievalQuery, strategy: str, top_k: int, database: Database) -> None:
        self._query = query
        self._strategy = strategy
        self._top_k = top_k
        self._metric = database.distance_metric
        self._unused = {key for key in ("distance_metric", "hybrid_alpha", "query_expansion") if getattr(query, key)}
        if query.hybrid_alpha is not None:
            self._unused.add("hybrid_alpha")
        self._one_sided = ""

    def build(self, own: Settings) -> Search:
        """The searches of a strategy, and the reranking that the query asks for."""
        search = self._search(own)
        model = self._query.rerank_model
        if model is not None:
            if isinstance(search, CrossEncoded):
                search = replace(search, model=model)
            else:
                search = CrossEncoded(search, model, max(self._top_k, getattr(own, "initial_k", _RERANKED)))
        for key, side in (("distance_metric", "vector"), ("hybrid_alpha", "hybrid"), ("query_expansion", "keyword")):
            if key in self._unused:
                other = "a hybrid_alpha between 0 and 1" if self._one_sided else "the strategy 'hybrid'"
                raise InvalidRequest(
                    f"{key} is of no use to the strategy {self._strategy!r}{self._one_sided}, which makes no {side} "
                    f"search. Leave it out, or use {other}.",
                    details={"field": key},
                )
        return search

    def _search(self, own: Settings) -> Search:
        match own:
            case KeywordSettings():
                return self._plain("keyword", own, expand=own.query_expansion)
            case HybridSettings():
                found = self._plain("hybrid", own, alpha=own.hybrid_alpha, expand=own.query_expansion)
                model = own.rerank_model or own.model_name
                return found if model is None else CrossEncoded(found, model, self._reranked(own.initial_k))
            case CombinedSettings(strategies=None):
                return self._plain("hybrid", own, alpha=own.hybrid_alpha)
            case CombinedSettings(strategies=parts) if parts is not None:
                shared = {"filters": own.filters, "distance_metric": own.distance_metric}
                return Blend(
                    [(part.weight, self._search(_inheriting(part.settings, shared))) for part in parts],
                    own.combination_method,
                )
            case MultiQuerySettings():
                weights = own.query_weights or [1 / (1 + position) for position in range(own.num_queries)]
                return Variants(self._plain("vector", own), own.num_queries, own.aggregation_method, weights)
            case RerankedSettings():
                found = self._plain("vector", own)
                return Factored(found, self._reranked(own.initial_k), own.rerank_factors, own.normalize_scores)
            case CrossEncoderSettings():
                return CrossEncoded(
                    self._based(own, own.base), own.model_name, self._reranked(own.initial_k), own.timeout
                )
            case MultiTurnSettings():
                return self._divided(own)
            case FilteredSettings():
                after = own.fallback_multiplier * self._top_k if own.filter_mode == "post" else None
                return self._plain("vector", own, filtered_after=after)
            case VectorSettings():
                return self._plain("vector", own)
        raise AssertionError(f"no search for {type(own).__name__}")

    def _divided(self, own: MultiTurnSettings) -> Search:
        found = self._based(own, own.base)
        reranker = own.reranker_config
        if own.enable_reranking and reranker is not None:
            found = CrossEncoded(found, reranker.model_name, self._reranked(reranker.initial_k), reranker.timeout)
        return Divided(
            found,
            own.max_sub_queries,
            own.complexity_threshold,
            own.min_query_length,
            own.sub_query_top_k,
            own.dedup_similarity_threshold,
            own.max_workers,
        )

    def _based(self, own: WithMetric, base: Settings) -> Search:
        return self._search(_inheriting(base, {"filters": own.filters, "distance_metric": own.distance_metric}))

    def _plain(
        self,
        kind: Kind,
        own: Settings,
        *,
        alpha: float | None = None,
        expand: bool = False,
        filtered_after: int | None = None,
    ) -> PlainSearch:
        if kind == "hybrid":
            self._unused.discard("hybrid_alpha")
            alpha = alpha if self._query.hybrid_alpha is None else self._query.hybrid_alpha
            if alpha in (0.0, 1.0):
                # A side that counts nothing must neither add results nor be able to fail.
                kind = "vector" if alpha else "keyword"
                self._one_sided = f" with the hybrid_alpha {alpha:g}"
        if kind != "keyword":
            self._unused.discard("distance_metric")
        if kind != "vector":
            self._unused.discard("query_expansion")
        configured = own.distance_metric if isinstance(own, WithMetric) else None
        asked, wished = self._query.distance_metric, self._query.query_expansion
        return PlainSearch(
            kind,
            candidates=max(100, 10 * self._top_k),
            alpha=DEFAULT_ALPHA if alpha is None else alpha,
            metric=METRICS[asked.lower()] if asked else configured or self._metric,
            filters={**own.filters, **self._query.metadata_filters},
            filtered_after=filtered_after,
            expand=kind != "vector" and (expand if wished is None else wished),
        )

    def _reranked(self, initial: int) -> int:
        return max(initial, self._top_k)


def _inheriting(own: Settings, shared: Mapping[str, Any]) -> Settings:
    """A part's settings, with what the whole says where the part says nothing."""
    changes: dict[str, Any] = {"filters": {**shared["filters"], **own.filters}}
    if isinstance(own, WithMetric) and own.distance_metric is None:
        changes["distance_metric"] = shared["distance_metric"]
    return own.model_copy(update=changes)


def _embeds(search: Search) -> bool:
    match search:
        case PlainSearch():
            return search.kind != "keyword"
        case Blend():
            return any(_embeds(part) for _, part in search.parts)
        case _:
            return _embeds(search.of)
