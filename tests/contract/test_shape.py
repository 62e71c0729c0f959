from __future__ import annotations

import pytest

from tests.contract.shape import differences


def test_the_example_itself_matches() -> None:
    example = {"a": 1, "b": [{"c": "x", "d": 0.5}], "e": True, "f": None}
    assert not differences(example, example)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({}, "$.a: missing"),
        ({"a": "1"}, "$.a: documented as int"),
        ({"a": True}, "$.a: documented as int"),
        ({"a": 1.5}, "$.a: documented as int"),
        ([], "$: documented as an object"),
    ],
)
def test_a_difference_is_told(answer: object, found: str) -> None:
    assert any(difference.startswith(found) for difference in differences({"a": 1}, answer))


def test_entries_of_lists_are_compared_one_by_one() -> None:
    assert differences([{"a": 1}], [{"a": 1}, {"b": 1}]) == ["$[1].a: missing"]
    assert differences(["x"], []) == ["$: documented with entries, got none"]
