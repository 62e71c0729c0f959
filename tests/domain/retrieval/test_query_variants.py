from __future__ import annotations

import pytest

from llamastead_server.domain.retrieval.query_variants import questions, variants


def test_variants_begin_with_the_query_and_then_its_content() -> None:
    query = "When is the audit of the laboratory, and who signs it?"
    found = variants(query, 5)
    assert found[0] == query
    assert found[1] == "audit laboratory signs"
    assert "who signs it?" in found
    assert len({text.lower() for text in found}) == len(found)


def test_no_more_variants_than_asked_for_and_never_an_empty_one() -> None:
    assert variants("llamas", 5) == ["llamas"]
    assert variants("the of and", 5) == ["the of and"]
    assert len(variants("One thing. Another thing. A third thing, and a fourth", 3)) == 3


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What is the price?", ["What is the price?"]),
        (
            "What do llamas eat in the Andes, and when does the barn gate close in winter?",
            ["What do llamas eat in the Andes", "when does the barn gate close in winter?"],
        ),
        (
            "What is the price of the wool? How is it sorted before spinning? Who buys it in the end?",
            ["What is the price of the wool?", "How is it sorted before spinning?", "Who buys it in the end?"],
        ),
        # Too short to be a question of its own: it stays with its neighbour.
        (
            "Salt and pepper, what do they have in common with the llamas of the Andes?",
            ["Salt and pepper, what do they have in common with the llamas of the Andes?"],
        ),
    ],
)
def test_a_long_question_is_divided_where_it_changes_its_subject(query: str, expected: list[str]) -> None:
    assert questions(query, most=3, longer_than=50, shortest=20) == expected


def test_no_more_questions_than_allowed() -> None:
    query = " ".join(f"What is the meaning of number {number}?" for number in range(9))
    assert len(questions(query, most=4, longer_than=50, shortest=20)) == 4
    assert questions(query, most=4, longer_than=1000, shortest=20) == [query]
