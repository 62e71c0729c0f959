from __future__ import annotations

from typing import Any

import pytest

from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.rag_config import Database
from llamastead_server.domain.retrieval_plan import RetrievalQuery, SearchPlan, plan


def planned(strategy: dict[str, Any] | None = None, default: str | None = None, **query: Any) -> SearchPlan:
    entries = [] if strategy is None else [{"name": "mine", **strategy}]
    raw = {"name": "main_db", "retrieval_strategies": entries, "default_retrieval_strategy": default}
    return plan(RetrievalQuery("llamas", **query), Database.model_validate(raw))


def test_without_any_wish_the_search_is_hybrid() -> None:
    assert planned() == SearchPlan("hybrid", "hybrid", 5, 0.0, {}, 0.5, None, 30, False)


@pytest.mark.parametrize("name", ["vector", "keyword", "hybrid"])
def test_the_plain_names_always_work(name: str) -> None:
    for found in (planned(retrieval_strategy=name), planned({"type": "BM25Retriever"}, retrieval_strategy=name)):
        assert (found.strategy, found.kind) == (name, name)


@pytest.mark.parametrize(
    ("kind", "type_name"),
    [
        ("vector", "BasicSimilarityStrategy"),
        ("vector", "VectorRetriever"),
        ("vector", "MetadataFilteredStrategy"),
        ("vector", "vector"),
        ("keyword", "BM25Retriever"),
        ("keyword", "keyword"),
        ("hybrid", "HybridUniversalStrategy"),
        ("hybrid", "HybridRetriever"),
        ("hybrid", "CrossEncoderRerankedStrategy"),
        ("hybrid", "hybrid"),
    ],
)
def test_configured_types_mean_a_search(kind: str, type_name: str) -> None:
    for name in ("mine", None):
        found = planned({"type": type_name}, default="mine", retrieval_strategy=name)
        assert (found.strategy, found.kind) == ("mine", kind)


def test_a_configured_strategy_s_settings_apply_and_the_request_wins() -> None:
    config = {"top_k": 8, "score_threshold": 0.4, "hybrid_alpha": 0.9, "filters": {"year": 2024, "tag": "a"}}
    strategy = {"type": "hybrid", "config": config}
    found = planned(strategy)
    assert (found.top_k, found.score_threshold, found.alpha, found.filters) == (8, 0.4, 0.9, config["filters"])
    over = planned(strategy, top_k=3, score_threshold=0.0, hybrid_alpha=0.0, metadata_filters={"tag": "b"})
    assert (over.top_k, over.score_threshold, over.alpha) == (3, 0.0, 0.0)
    assert over.filters == {"year": 2024, "tag": "b"}


def test_a_reranked_strategy_names_its_model_and_sizes() -> None:
    config = {"model_name": "judge", "initial_k": 50, "final_k": 7, "relevance_threshold": 0.2}
    found = planned({"type": "CrossEncoderRerankedStrategy", "config": config})
    assert (found.rerank_model, found.reranked, found.top_k, found.score_threshold) == ("judge", 50, 7, 0.2)
    assert planned(rerank_model="other", top_k=60).reranked == 60


@pytest.mark.parametrize(("top_k", "candidates"), [(1, 100), (10, 100), (11, 110), (100, 1000)])
def test_each_side_looks_far_enough(top_k: int, candidates: int) -> None:
    assert planned(top_k=top_k).candidates == candidates


def test_an_unknown_strategy_lists_what_there_is() -> None:
    with pytest.raises(InvalidRequest, match=r"absent.*vector, keyword, hybrid, mine"):
        planned({"type": "vector"}, retrieval_strategy="absent")


def test_a_type_that_is_not_built_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest, match=r"MultiQueryStrategy.*BM25Retriever"):
        planned({"type": "MultiQueryStrategy"})


@pytest.mark.parametrize("metric", ["l2", "ip", "nonsense"])
def test_only_cosine_is_built(metric: str) -> None:
    assert planned(distance_metric="COSINE").kind == "hybrid"
    with pytest.raises(InvalidRequest, match=metric):
        planned(distance_metric=metric)
    with pytest.raises(InvalidRequest, match=metric):
        planned({"type": "vector", "config": {"distance_metric": metric}})


def test_expanding_a_search_without_a_keyword_side_is_refused() -> None:
    assert planned(retrieval_strategy="keyword", query_expansion=True).expand
    with pytest.raises(InvalidRequest, match="query_expansion"):
        planned(retrieval_strategy="vector", query_expansion=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"query": ""},
        {"query": " \n"},
        {"top_k": 0},
        {"top_k": 101},
        {"score_threshold": -0.1},
        {"score_threshold": 1.1},
        {"score_threshold": float("nan")},
        {"hybrid_alpha": 2.0},
        {"max_tokens": 0},
        {"max_tokens": 8193},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed) as refused:
        RetrievalQuery(**{"query": "llamas", **wrong})
    assert list(refused.value.details) == list(wrong)


@pytest.mark.parametrize(
    "config", [{"top_k": 0}, {"top_k": "5"}, {"score_threshold": True}, {"hybrid_alpha": float("nan")},
               {"filters": ["x"]}, {"model_name": 3}], ids=str,
)  # fmt: skip
def test_a_wrong_configuration_is_the_error_not_the_default(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"config.{next(iter(config))}"):
        planned({"type": "hybrid", "config": config})
