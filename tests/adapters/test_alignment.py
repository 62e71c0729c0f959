from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.adapters.alignment import aligned


def named(names: str) -> list[Any]:
    return [{"name": name} for name in names]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "ac", [0, 2]),
        ("abc", "abxc", [0, 1, None, 2]),
        ("abc", "axc", [0, 1, 2]),
        ("abcd", "bxd", [1, 2, 3]),
        ("abcd", "dabc", [None, 0, 1, 2]),
        ("abcdef", "xcaefy", [None, None, 0, 4, 5, None]),
        ("aab", "aaab", [0, 1, None, 2]),
        ("", "ab", [None, None]),
        ("ab", "", []),
    ],
)
def test_items_go_by_their_name_and_the_rest_by_place(old: str, new: str, expected: list[int | None]) -> None:
    assert aligned(named(old), named(new)) == expected


letters = st.lists(st.sampled_from("abcdefgh"), max_size=12)


@given(old=letters, new=letters)
def test_no_item_is_continued_twice_or_out_of_order(old: list[str], new: list[str]) -> None:
    found = [index for index in aligned(old, new) if index is not None]
    assert found == sorted(set(found))
    assert all(0 <= index < len(old) for index in found)
    assert aligned(old, old) == list(range(len(old)))


def test_lists_of_a_hundred_thousand_equal_items_are_no_more_work_than_others() -> None:
    # Comparing each with each would outlast the suite.
    old, new = [1] * 100_000, [2, *[1] * 100_001, 3, *[1] * 50_000]
    assert len(aligned(old, new)) == len(new)
    shuffled = [str(number * 7919 % 100_003) for number in range(100_003)]
    assert len(aligned(shuffled, sorted(shuffled))) == len(shuffled)
