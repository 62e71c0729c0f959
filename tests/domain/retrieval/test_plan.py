from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.config.rag import Database
from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.retrieval.plan import RetrievalQuery, SearchPlan, plan
from llamastead_server.domain.retrieval.searches import Blend, CrossEncoded, Divided, Factored, PlainSearch, Variants


def planned(
    strategy: dict[str, Any] | None = None,
    default: str | None = None,
    config: dict[str, Any] | None = None,
    **query: Any,
) -> SearchPlan:
    entries = [] if strategy is None else [{"name": "mine", **strategy}]
    raw = {"name": "main_db", "retrieval_strategies": entries, "default_retrieval_strategy": default,
           "config": config or {}}  # fmt: skip
    return plan(RetrievalQuery("llamas", **query), Database.model_validate(raw))


def leaf(found: SearchPlan) -> PlainSearch:
    """The one plain search at the bottom of a plan."""
    search = found.search
    while not isinstance(search, PlainSearch):
        search = search.parts[0][1] if isinstance(search, Blend) else search.of
    return search


def test_without_any_wish_the_search_is_hybrid() -> None:
    assert planned() == SearchPlan("hybrid", PlainSearch("hybrid", 100, 0.5, "cosine"), 5, 0.0)


@pytest.mark.parametrize("name", ["vector", "keyword", "hybrid"])
def test_the_plain_names_always_work(name: str) -> None:
    for found in (planned(retrieval_strategy=name), planned({"type": "BM25Retriever"}, retrieval_strategy=name)):
        assert (found.strategy, leaf(found).kind) == (name, name)


@pytest.mark.parametrize(
    ("kind", "type_name", "config"),
    [
        ("vector", "BasicSimilarityStrategy", {}),
        ("vector", "VectorRetriever", {}),
        ("vector", "MetadataFilteredStrategy", {}),
        ("vector", "MultiQueryStrategy", {}),
        ("vector", "RerankedStrategy", {}),
        ("vector", "RerankedRetriever", {}),
        ("vector", "MultiTurnRAGStrategy", {"model_name": "any"}),
        ("vector", "vector", {}),
        ("keyword", "BM25Retriever", {}),
        ("keyword", "keyword", {}),
        ("hybrid", "HybridUniversalStrategy", {}),
        ("hybrid", "HybridRetriever", {}),
        ("hybrid", "CrossEncoderRerankedStrategy", {"model_name": "judge"}),
        ("vector", "CrossEncoderRerankedStrategy", {"model_name": "judge", "base_strategy": "BasicSimilarityStrategy"}),
        ("hybrid", "hybrid", {}),
        ("hybrid", "", {}),
    ],
)
def test_configured_types_mean_a_search(kind: str, type_name: str, config: dict[str, Any]) -> None:
    for name in ("mine", None):
        found = planned({"type": type_name, "config": config}, default="mine", retrieval_strategy=name)
        assert (found.strategy, leaf(found).kind) == ("mine", kind)
        assert found.embeds == (kind != "keyword")


def test_a_configured_strategy_s_settings_apply_and_the_request_wins() -> None:
    config = {"top_k": 8, "score_threshold": 0.4, "hybrid_alpha": 0.9, "filters": {"year": 2024, "tag": "a"}}
    strategy = {"type": "hybrid", "config": config}
    found = planned(strategy)
    assert (found.top_k, found.score_threshold, leaf(found).alpha) == (8, 0.4, 0.9)
    assert leaf(found).filters == config["filters"]
    over = planned(strategy, top_k=3, score_threshold=0.0, hybrid_alpha=0.0, metadata_filters={"tag": "b"})
    assert (over.top_k, over.score_threshold, leaf(over).kind) == (3, 0.0, "keyword")
    assert leaf(over).filters == {"year": 2024, "tag": "b"}


def test_a_reranked_strategy_names_its_model_and_sizes() -> None:
    config = {"model_name": "judge", "initial_k": 50, "final_k": 7, "relevance_threshold": 0.2, "timeout": 5}
    found = planned({"type": "CrossEncoderRerankedStrategy", "config": config})
    assert isinstance(found.search, CrossEncoded)
    assert (found.search.model, found.search.candidates, found.search.timeout) == ("judge", 50, 5.0)
    assert (found.top_k, found.score_threshold) == (7, 0.2)
    other = planned({"type": "CrossEncoderRerankedStrategy", "config": config}, rerank_model="other", top_k=60).search
    assert isinstance(other, CrossEncoded)
    assert (other.model, other.candidates) == ("other", 60)
    wrapped = planned(rerank_model="other", top_k=60).search
    assert isinstance(wrapped, CrossEncoded)
    assert (wrapped.model, wrapped.candidates) == ("other", 60)


def test_a_combined_strategy_keeps_its_parts_weights_and_method() -> None:
    parts = [
        {"type": "BasicSimilarityStrategy", "weight": 0.7, "config": {"distance_metric": "l2"}},
        {"type": "MetadataFilteredStrategy", "weight": 0.3, "config": {"filters": {"year": 2024}}},
    ]
    config = {"strategies": parts, "combination_method": "rank_fusion", "final_k": 4, "filters": {"tag": "a"}}
    found = planned({"type": "HybridUniversalStrategy", "config": config})
    assert found.top_k == 4
    assert found.search == Blend(
        [
            (0.7, PlainSearch("vector", metric="l2", filters={"tag": "a"})),
            (0.3, PlainSearch("vector", filters={"tag": "a", "year": 2024})),
        ],
        "rank_fusion",
    )


def test_filters_after_the_search_choose_from_a_multiple_of_the_results() -> None:
    config = {"filter_mode": "post", "fallback_multiplier": 4, "filters": {"year": 2024}, "top_k": 5}
    assert leaf(planned({"type": "MetadataFilteredStrategy", "config": config})).filtered_after == 20
    assert leaf(planned({"type": "MetadataFilteredStrategy"})).filtered_after is None


def test_several_wordings_have_falling_weights_unless_some_are_given() -> None:
    found = planned({"type": "MultiQueryStrategy"}).search
    assert isinstance(found, Variants)
    assert (found.most, found.method, list(found.weights)) == (3, "weighted", [1, 1 / 2, 1 / 3])
    config = {"num_queries": 2, "aggregation_method": "max", "query_weights": [1, 0.5]}
    given = planned({"type": "MultiQueryStrategy", "config": config}).search
    assert isinstance(given, Variants)
    assert (given.most, given.method, given.weights) == (2, "max", [1, 0.5])


def test_what_the_designer_writes_is_understood() -> None:
    factors = {"similarity_weight": 0.5, "recency_weight": 0.5, "length_weight": 0, "metadata_weight": 0}
    config = {"initial_k": 30, "final_k": 10, "rerank_factors": factors, "normalize_scores": False}
    found = planned({"type": "RerankedStrategy", "config": config}).search
    assert isinstance(found, Factored)
    assert (found.candidates, found.factors.recency_weight, found.normalized) == (30, 0.5, False)
    planned({"type": "BasicSimilarityStrategy", "config": {"top_k": 10, "score_threshold": None}})
    planned({"type": "MultiQueryStrategy", "config": {"num_queries": 3, "query_weights": None}})


def test_a_divided_question_has_its_own_sizes_and_reranker() -> None:
    config = {
        "model_name": "query_decomposer",
        "max_sub_queries": 2,
        "base_strategy": "BasicSimilarityStrategy",
        "base_strategy_config": {"distance_metric": "l2"},
        "sub_query_top_k": 6,
        "final_top_k": 3,
        "enable_reranking": True,
        "reranker_strategy": "CrossEncoderRerankedStrategy",
        "reranker_config": {"model_name": "judge", "initial_k": 15},
    }
    found = planned({"type": "MultiTurnRAGStrategy", "config": config})
    assert isinstance(found.search, Divided)
    assert (found.top_k, found.search.most, found.search.top_k) == (3, 2, 6)
    assert isinstance(found.search.of, CrossEncoded)
    assert (found.search.of.model, leaf(found).metric) == ("judge", "l2")


@pytest.mark.parametrize(("top_k", "candidates"), [(1, 100), (10, 100), (11, 110), (100, 1000)])
def test_each_side_looks_far_enough(top_k: int, candidates: int) -> None:
    assert leaf(planned(top_k=top_k)).candidates == candidates


def test_an_unknown_strategy_lists_what_there_is() -> None:
    with pytest.raises(InvalidRequest, match=r"absent.*vector, keyword, hybrid, mine"):
        planned({"type": "vector"}, retrieval_strategy="absent")


@pytest.mark.parametrize(("type_name", "reason"), [("GraphRetriever", "graph"), ("ElasticRetriever", "BM25Retriever"),
                                                    ("Nonsense", "MultiQueryStrategy")])  # fmt: skip
def test_a_type_that_is_not_built_is_refused_where_it_is_written(type_name: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        planned({"type": type_name})


@pytest.mark.parametrize(
    ("name", "metric"),
    [("COSINE", "cosine"), ("l2", "l2"), ("euclidean", "l2"), ("Euclid", "l2"), ("ip", "ip"), ("Dot", "ip")],
)
def test_every_metric_has_its_names(name: str, metric: str) -> None:
    assert leaf(planned(distance_metric=name)).metric == metric
    assert leaf(planned({"type": "vector", "config": {"distance_metric": name}})).metric == metric
    assert leaf(planned({"type": "vector"}, config={"distance_function": name})).metric == metric
    with pytest.raises(ValidationFailed, match="distance_metric"):
        planned(distance_metric="nonsense")


@pytest.mark.parametrize(
    ("strategy", "wish"),
    [
        ("vector", {"query_expansion": True}),
        ("vector", {"hybrid_alpha": 0.0}),
        ("keyword", {"hybrid_alpha": 0.5}),
        ("keyword", {"distance_metric": "l2"}),
    ],
)
def test_a_wish_that_a_strategy_has_no_use_for_is_refused(strategy: str, wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wish))):
        planned(retrieval_strategy=strategy, **wish)
    kind = "keyword" if wish.get("hybrid_alpha") == 0.0 else "hybrid"
    assert leaf(planned(retrieval_strategy="hybrid", **wish)).kind == kind


def test_a_side_that_counts_nothing_is_not_searched_and_wishes_for_it_are_refused() -> None:
    for alpha, kind, other in ((0.0, "keyword", {"distance_metric": "l2"}), (1.0, "vector", {"query_expansion": True})):
        found = planned(retrieval_strategy="hybrid", hybrid_alpha=alpha)
        assert (found.strategy, leaf(found).kind, found.embeds) == ("hybrid", kind, kind == "vector")
        assert leaf(planned({"type": "hybrid", "config": {"hybrid_alpha": alpha}})).kind == kind
        with pytest.raises(InvalidRequest, match=f"hybrid_alpha {alpha:g}.*between 0 and 1"):
            planned(retrieval_strategy="hybrid", hybrid_alpha=alpha, **other)


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
    ("type_name", "config", "path"),
    [
        ("hybrid", {"top_k": 0}, "top_k"),
        ("hybrid", {"top_k": "5"}, "top_k"),
        ("hybrid", {"score_threshold": True}, "score_threshold"),
        ("hybrid", {"hybrid_alpha": float("nan")}, "hybrid_alpha"),
        ("hybrid", {"filters": ["x"]}, "filters"),
        ("hybrid", {"model_name": 3}, "model_name"),
        ("vector", {"topk": 3}, "topk"),
        ("vector", {"distance_metric": "manhattan"}, "distance_metric"),
        ("CrossEncoderRerankedStrategy", {}, "model_name"),
        ("CrossEncoderRerankedStrategy", {"model_name": "a", "base_strategy": "MultiTurnRAGStrategy"}, "base_strategy"),
        ("MultiQueryStrategy", {"num_queries": 50}, "num_queries"),
        ("MultiQueryStrategy", {"query_weights": [1]}, ""),
        ("HybridUniversalStrategy", {"strategies": [{"type": "vector"}]}, "strategies"),
        (
            "HybridUniversalStrategy",
            {"strategies": [{"type": "vector"}, {"type": "keyword", "config": {"top_k": -1}}]},
            "strategies.1.config.top_k",
        ),
        ("HybridUniversalStrategy", {"combination_method": "sum"}, "combination_method"),
        ("RerankedStrategy", {"rerank_factors": {"similarity_weight": -1}}, "rerank_factors.similarity_weight"),
        ("MultiTurnRAGStrategy", {"enable_reranking": True}, ""),
    ],
)
def test_a_wrong_setting_is_refused_by_its_path_when_it_is_written(
    type_name: str, config: dict[str, Any], path: str
) -> None:
    strategy = {"name": "mine", "type": type_name, "config": config}
    raw = {"name": "bot", "namespace": "org", "runtime": {"model": "x"},
           "rag": {"databases": [{"name": "main_db", "retrieval_strategies": [strategy]}]}}  # fmt: skip
    with pytest.raises(ValidationFailed) as refused:
        ProjectConfig.parse(raw)
    assert list(refused.value.details) == [f"rag.databases.0.retrieval_strategies.0.config.{path}".rstrip(".")]


def test_a_query_can_switch_the_strategy_s_expansion_off() -> None:
    strategy = {"type": "keyword", "config": {"query_expansion": True}}
    assert leaf(planned(strategy)).expand
    assert not leaf(planned(strategy, query_expansion=False)).expand
    assert leaf(planned(retrieval_strategy="keyword", query_expansion=True)).expand
