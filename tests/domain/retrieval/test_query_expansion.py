from __future__ import annotations

from llamastead_server.domain.retrieval.query_expansion import expansion_terms


def test_words_that_the_hits_share_are_added_the_most_shared_first() -> None:
    texts = ["Llamas graze in the Andes.", "The Andes feed llamas, alpacas too.", "In the Andes, alpacas graze."]
    assert expansion_terms("what do llamas eat", texts) == ["andes", "alpacas", "graze"]


def test_words_of_the_query_stop_words_and_lone_words_are_not_added() -> None:
    assert expansion_terms("Llamas", ["llamas which are unique", "LLAMAS which are rare"]) == []
    assert expansion_terms("x", []) == []


def test_at_most_eight_words_are_added() -> None:
    text = " ".join(f"{chr(97 + number)}word" for number in range(20))
    assert len(expansion_terms("query", [text, text])) == 8
