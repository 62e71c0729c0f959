from __future__ import annotations

import pytest

from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.operations.caches import Caches, Cleared


async def ten() -> int:
    return 10


async def two() -> int:
    return 2


@pytest.mark.parametrize(
    ("name", "cleared"),
    [
        ("a", Cleared(("a",), 10)),
        ("b", Cleared(("b",), 2)),
        ("all", Cleared(("a", "b"), 12)),
        (None, Cleared(("a", "b"), 12)),
    ],
)
async def test_one_or_all_are_cleared_and_what_they_freed_is_summed(name: str | None, cleared: Cleared) -> None:
    assert await Caches({"a": ten, "b": two}).clear(name) == cleared


async def test_an_unknown_one_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidRequest, match="a, b, all"):
        await Caches({"a": ten, "b": two}).clear("weights")
