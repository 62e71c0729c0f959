from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from llamastead_server.domain.config.retrieval_settings import Factors
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval.ranking import Hit, factored, without_duplicates

TODAY = date(2026, 1, 1)


def hit(name: str, score: float, text: str = "text", **metadata: Any) -> Hit:
    return Hit(Chunk(name, "papers", name * 8, f"{name}.txt", 0, text, metadata=metadata), score)


def only(factor: str) -> Factors:
    weights = dict.fromkeys(Factors.model_fields, 0.0)
    return Factors.model_validate({**weights, f"{factor}_weight": 1.0})


def test_similarity_is_stretched_only_if_it_is_normalized() -> None:
    hits = [hit("a", 0.8), hit("b", 0.6), hit("c", 0.7)]
    assert factored(hits, "q", only("similarity"), normalized=False) == {"a": 0.8, "b": 0.6, "c": 0.7}
    assert factored(hits, "q", only("similarity"), normalized=True) == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.5})
    assert factored([], "q", Factors(), normalized=True) == {}


def test_recency_halves_with_each_year_and_needs_a_date() -> None:
    hits = [hit("a", 0.5, date="2026-01-01"), hit("b", 0.5, created_at="2025-01-01T10:00:00Z"), hit("c", 0.5),
            hit("d", 0.5, date="soon")]  # fmt: skip
    scores = factored(hits, "q", only("recency"), normalized=False, today=TODAY)
    assert scores == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.0})


def test_length_counts_up_to_a_thousand_characters() -> None:
    hits = [hit("a", 0.5, "x" * 250), hit("b", 0.5, "x" * 5000)]
    assert factored(hits, "q", only("length"), normalized=False) == pytest.approx({"a": 0.25, "b": 1.0})


def test_metadata_counts_the_query_s_words_in_names_and_titles() -> None:
    hits = [hit("audit", 0.5), hit("b", 0.5, title="The audit of the laboratory"), hit("c", 0.5)]
    scores = factored(hits, "When is the laboratory audit?", only("metadata"), normalized=False)
    assert scores == pytest.approx({"audit": 0.5, "b": 1.0, "c": 0.0})


def test_texts_that_share_most_words_count_once() -> None:
    hits = [hit("a", 0.5, "one two three four"), hit("b", 0.9, "one two three four"), hit("c", 0.4, "five six")]
    assert [each.chunk.id for each in without_duplicates(hits, 0.95)] == ["b", "c"]
    assert [each.chunk.id for each in without_duplicates([*hits, hits[0]], 1.0)] == ["b", "c"]
    near = [hit("a", 0.5, "one two three four"), hit("b", 0.9, "one two three five")]
    assert len(without_duplicates(near, 0.95)) == 2
    assert len(without_duplicates(near, 0.5)) == 1
