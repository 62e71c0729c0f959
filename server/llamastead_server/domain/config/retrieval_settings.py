"""The settings of retrieval strategies: a model per type, so that a wrong one is refused when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

LARGEST_TOP_K = 100
DEFAULT_TYPE = "hybrid"
"""What a strategy is that says no type."""

Metric = Literal["cosine", "l2", "ip"]
METRICS: Mapping[str, Metric] = {
    "cosine": "cosine",
    "l2": "l2",
    "euclidean": "l2",
    "euclid": "l2",
    "ip": "ip",
    "dot": "ip",
    "inner_product": "ip",
}
"""Names of metrics, in lower case, and what they mean."""

REFUSED: Mapping[str, str] = {
    "GraphRetriever": "documents are kept as chunks, without a graph of what they are about",
    "ElasticRetriever": "there is no Elasticsearch: the type 'BM25Retriever' searches by keywords",
}
"""Types of LlamaFarm's that can't be had here, and why."""

_TopK = Annotated[int, Field(strict=True, ge=1, le=LARGEST_TOP_K)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_Weight = Annotated[float, Field(strict=True, ge=0, le=1000)]
_Seconds = Annotated[float, Field(strict=True, gt=0, le=600)]
_Text = Annotated[str, Field(strict=True, min_length=1, max_length=200)]
_Flag = Annotated[bool, Field(strict=True)]


class Settings(BaseModel):
    """What every strategy may say.

    Attributes:
        top_k: Number of results.
        score_threshold: Smallest score of a result.
        filters: Metadata that results must have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True)

    top_k: _TopK | None = None
    score_threshold: _Share | None = None
    filters: dict[str, Any] = {}

    @field_validator("filters", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value

    @property
    def results(self) -> int | None:
        """Number of results, under whichever name the type has for it."""
        return getattr(self, "final_k", None) or getattr(self, "final_top_k", None) or self.top_k


class WithMetric(Settings):
    """A strategy with a vector side.

    Attributes:
        distance_metric: How vectors are compared.
    """

    distance_metric: Metric | None = None

    @field_validator("distance_metric", mode="before")
    @classmethod
    def _by_any_name(cls, value: object) -> object:
        return METRICS.get(value.lower(), value) if isinstance(value, str) else value


class VectorSettings(WithMetric):
    """A search by meaning."""


class KeywordSettings(Settings):
    """A search by words."""

    query_expansion: _Flag = False


class HybridSettings(WithMetric):
    """Both, weighted, and reranked if a model is named."""

    hybrid_alpha: _Share | None = None
    query_expansion: _Flag = False
    rerank_model: _Text | None = None
    model_name: _Text | None = None
    initial_k: _TopK = 30
    final_k: _TopK | None = None
    relevance_threshold: _Share | None = None


class FilteredSettings(WithMetric):
    """A search by meaning whose filters apply before it, or to its best candidates after it."""

    filter_mode: Literal["pre", "post"] = "pre"
    fallback_multiplier: Annotated[int, Field(strict=True, ge=1, le=20)] = 3


class MultiQuerySettings(WithMetric):
    """Several wordings of the query, searched by meaning."""

    num_queries: Annotated[int, Field(strict=True, ge=1, le=5)] = 3
    aggregation_method: Literal["max", "mean", "weighted", "reciprocal_rank"] = "weighted"
    query_weights: Annotated[list[_Weight], Field(min_length=1, max_length=5)] | None = None

    @model_validator(mode="after")
    def _weights_fit(self) -> MultiQuerySettings:
        if self.query_weights is not None:
            if len(self.query_weights) != self.num_queries:
                raise ValueError(f"query_weights must hold one weight for each of the {self.num_queries} queries")
            if not sum(self.query_weights):
                raise ValueError("query_weights must not all be 0")
        return self


class Factors(BaseModel):
    """What the score of a reranked chunk is made of; the weights count relative to their sum."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    similarity_weight: _Weight = 0.7
    recency_weight: _Weight = 0.1
    length_weight: _Weight = 0.1
    metadata_weight: _Weight = 0.1

    @model_validator(mode="after")
    def _something_counts(self) -> Factors:
        if not self.similarity_weight + self.recency_weight + self.length_weight + self.metadata_weight:
            raise ValueError("the weights must not all be 0")
        return self


class RerankedSettings(WithMetric):
    """A search by meaning whose best candidates are scored anew by several factors."""

    initial_k: _TopK = 30
    final_k: _TopK | None = None
    rerank_factors: Factors = Factors()
    normalize_scores: _Flag = True


class Part(BaseModel):
    """One of the strategies that a combined one consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    type: str
    weight: _Weight = 1.0
    config: dict[str, Any] = {}

    @field_validator("type")
    @classmethod
    def _plain(cls, value: str) -> str:
        return check_type(value, _PLAIN)

    @field_validator("config")
    @classmethod
    def _right(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _checked(value, info.data.get("type"))

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return settings(self.type, self.config)


class CombinedSettings(WithMetric):
    """Several strategies whose results are fused; without any it is the plain hybrid search."""

    strategies: Annotated[list[Part], Field(min_length=2, max_length=5)] | None = None
    combination_method: Literal["weighted_average", "rank_fusion", "score_fusion"] = "weighted_average"
    hybrid_alpha: _Share | None = None
    final_k: _TopK | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CombinedSettings:
        if self.strategies is not None and self.hybrid_alpha is not None:
            raise ValueError("hybrid_alpha is for the search without strategies: give the strategies weights")
        if self.strategies is not None and not sum(part.weight for part in self.strategies):
            raise ValueError("the weights of strategies must not all be 0")
        return self


class _Based(WithMetric):
    base_strategy: str = DEFAULT_TYPE
    base_strategy_config: dict[str, Any] = {}

    @field_validator("base_strategy")
    @classmethod
    def _can_be_one(cls, value: str) -> str:
        return check_type(value, (*_PLAIN, "HybridUniversalStrategy"))

    @field_validator("base_strategy_config")
    @classmethod
    def _right(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return _checked(value, info.data.get("base_strategy"))

    @property
    def base(self) -> Settings:
        """Settings of the strategy that finds the candidates."""
        return settings(self.base_strategy, self.base_strategy_config)


class CrossEncoderSettings(_Based):
    """Another strategy whose best candidates a cross-encoder scores anew."""

    model_name: _Text
    initial_k: _TopK = 30
    final_k: _TopK | None = None
    relevance_threshold: _Share | None = None
    timeout: _Seconds = 60.0


class MultiTurnSettings(_Based):
    """A long question is divided, and each part is searched."""

    base_strategy: str = "BasicSimilarityStrategy"
    model_name: _Text | None = None
    max_sub_queries: Annotated[int, Field(strict=True, ge=1, le=5)] = 3
    complexity_threshold: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 50
    min_query_length: Annotated[int, Field(strict=True, ge=1, le=1000)] = 20
    sub_query_top_k: _TopK = 10
    final_top_k: _TopK | None = None
    enable_reranking: _Flag = False
    reranker_strategy: Literal["CrossEncoderRerankedStrategy"] = "CrossEncoderRerankedStrategy"
    reranker_config: CrossEncoderSettings | None = None
    dedup_similarity_threshold: _Share = 0.95
    max_workers: Annotated[int, Field(strict=True, ge=1, le=16)] = 3

    @model_validator(mode="after")
    def _reranker_is_named(self) -> MultiTurnSettings:
        if self.enable_reranking and self.reranker_config is None:
            raise ValueError("enable_reranking needs reranker_config.model_name, a cross-encoder")
        return self


_PLAIN: tuple[str, ...] = (
    "vector", "keyword", "hybrid",
    "BasicSimilarityStrategy", "VectorRetriever", "BM25Retriever", "HybridRetriever",
    "MetadataFilteredStrategy", "MultiQueryStrategy", "RerankedStrategy",
)  # fmt: skip
TYPES: Mapping[str, type[Settings]] = {
    "vector": VectorSettings,
    "keyword": KeywordSettings,
    "hybrid": HybridSettings,
    "BasicSimilarityStrategy": VectorSettings,
    "VectorRetriever": VectorSettings,
    "MetadataFilteredStrategy": FilteredSettings,
    "MultiQueryStrategy": MultiQuerySettings,
    "BM25Retriever": KeywordSettings,
    "HybridRetriever": HybridSettings,
    "HybridUniversalStrategy": CombinedSettings,
    "CrossEncoderRerankedStrategy": CrossEncoderSettings,
    "RerankedStrategy": RerankedSettings,
    "RerankedRetriever": RerankedSettings,
    "MultiTurnRAGStrategy": MultiTurnSettings,
}
"""Types of strategies and what they may be set to."""


def check_type(name: str, among: tuple[str, ...] = tuple(TYPES)) -> str:
    """Gives the type back; raises `ValueError` with the reason when it can't be had."""
    if name in REFUSED:
        raise ValueError(f"the type {name!r} is not available: {REFUSED[name]}")
    if name not in among:
        raise ValueError(f"the type {name!r} is not one of {', '.join(among)}")
    return name


def settings(type_name: str, config: Mapping[str, Any]) -> Settings:
    """The settings of a strategy of one type; raises `pydantic.ValidationError` with the path of what is wrong."""
    return TYPES[type_name].model_validate(dict(config))


def _checked(config: dict[str, Any], type_name: str | None) -> dict[str, Any]:
    # A wrong type is an error of its own; its settings can't be judged.
    if type_name is not None:
        settings(type_name, config)
    return config
