from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.domain.retrieval.fusion import (
    averaged,
    estimated_tokens,
    greater,
    keyword_score,
    rank_fused,
    ranked,
    vector_score,
    weighted,
)

SCORES = st.dictionaries(st.text(max_size=3), st.floats(0, 1))


@pytest.mark.parametrize(("cosine", "score"), [(1, 1), (0, 0.5), (-1, 0), (1.0000001, 1), (-1.1, 0), (0.5, 0.75)])
def test_a_cosine_becomes_a_score(cosine: float, score: float) -> None:
    assert vector_score(cosine) == score


@pytest.mark.parametrize(("bm25", "score"), [(0, 0), (10, 0.5), (30, 0.75), (-1, 0)])
def test_a_bm25_score_becomes_a_score(bm25: float, score: float) -> None:
    assert keyword_score(bm25) == score


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_scores_are_between_0_and_1(value: float) -> None:
    assert 0 <= vector_score(value) <= 1
    assert 0 <= keyword_score(value) <= 1


def test_a_missing_side_counts_as_zero() -> None:
    fused = weighted({"a": 0.8, "b": 0.6}, {"b": 0.5, "c": 1.0}, 0.75)
    assert fused == pytest.approx({"a": 0.6, "b": 0.575, "c": 0.25})


def test_what_no_side_that_counts_has_found_is_left_out() -> None:
    first, second = {"a": 0.8, "b": 0.0}, {"b": 0.5, "c": 1.0}
    assert weighted(first, second, 1.0) == {"a": 0.8}
    assert weighted(first, second, 0.0) == {"b": 0.5, "c": 1.0}
    assert averaged([first, second], [2.0, 0.0]) == {"a": 0.8}
    assert rank_fused([first, second], [0.0, 1.0]) == pytest.approx({"c": 1.0, "b": 61 / 62})


def test_the_greater_of_two_scores_counts() -> None:
    assert greater({"a": 0.8, "b": 0.1}, {"b": 0.2, "c": 0.3}) == {"a": 0.8, "b": 0.2, "c": 0.3}


@given(SCORES, SCORES, st.floats(0, 1))
def test_fused_scores_lie_between_their_sides(first: dict[str, float], second: dict[str, float], alpha: float) -> None:
    fused = weighted(first, second, alpha)
    counted = {key for key, score in first.items() if alpha * score} | {
        key for key, score in second.items() if (1 - alpha) * score
    }
    assert set(fused) == counted
    for key, score in fused.items():
        sides = first.get(key, 0.0), second.get(key, 0.0)
        assert min(sides) - 1e-9 <= score <= max(sides) + 1e-9


@given(SCORES, st.floats(0, 1))
def test_ranking_is_by_score_then_id_and_above_the_threshold(scores: dict[str, float], threshold: float) -> None:
    ranking = ranked(scores, threshold)
    assert dict(ranking) == {key: score for key, score in scores.items() if score >= threshold}
    assert ranking == sorted(ranking, key=lambda entry: (-entry[1], entry[0]))


def test_tokens_are_estimated_from_bytes() -> None:
    assert [estimated_tokens(text) for text in ("", "abc", "abcd", "日本")] == [0, 1, 2, 2]
