"""Which item of a list became which item of its successor."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any


def aligned(old: Sequence[Any], new: Sequence[Any]) -> list[int | None]:
    """For each new item the index of the old one it continues, None if it is new; the indices only grow.

    Items go by their `name`, those without one by all they say; what is left between two such pairs goes by place.
    """
    before, after = [_identity(item) for item in old], [_identity(item) for item in new]
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    old_end, new_end = len(old) - end, len(new) - end
    found: list[int | None] = [None] * len(new)
    found[:start] = range(start)
    found[new_end:] = range(old_end, len(old))
    old_from, new_from = start, start
    for old_to, new_to in (*_landmarks(before, after, start, old_end, new_end), (old_end, new_end)):
        for offset in range(min(old_to - old_from, new_to - new_from)):
            found[new_from + offset] = old_from + offset
        if new_to < new_end:
            found[new_to] = old_to
        old_from, new_from = old_to + 1, new_to + 1
    return found


def _shared(old: Sequence[str], new: Sequence[str]) -> int:
    """How many items the two begin with in common."""
    pairs = zip(old, new, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(old), len(new)))


def _landmarks(
    before: Sequence[str], after: Sequence[str], start: int, old_end: int, new_end: int
) -> Iterator[tuple[int, int]]:
    """The most pairs of items, each there once before and once after, that are in the same order.

    Looking at all pairs of items would take minutes for lists of some thousand equal ones.
    """
    once = {item for item, times in Counter(before[start:old_end]).items() if times == 1}
    once &= {item for item, times in Counter(after[start:new_end]).items() if times == 1}
    places = {before[place]: place for place in range(start, old_end) if before[place] in once}
    pairs = [(places[after[place]], place) for place in range(start, new_end) if after[place] in once]
    # The longest growing sequence: for each length the pair it may end with, and what comes before each pair.
    ends: list[int] = []
    last: list[int] = []
    previous: list[int | None] = []
    for index, (old_place, _) in enumerate(pairs):
        length = bisect_left(ends, old_place)
        previous.append(last[length - 1] if length else None)
        ends[length : length + 1] = [old_place]
        last[length : length + 1] = [index]
    chosen: list[tuple[int, int]] = []
    at = last[-1] if last else None
    while at is not None:
        chosen.append(pairs[at])
        at = previous[at]
    yield from reversed(chosen)


def same(old: Any, new: Any) -> bool:
    """Whether two pieces of JSON data say the same; `true` is not 1, though Python thinks so."""
    return old == new and json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _identity(item: Any) -> str:
    if isinstance(item, dict) and isinstance(item.get("name"), str):
        return f"name {item['name']}"
    return json.dumps(item, sort_keys=True)
