"""Which item of a list became which item of its successor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any


def aligned(old: Sequence[Any], new: Sequence[Any]) -> list[int | None]:
    """For each new item the index of the old one it continues, None if it is new; the indices only grow.

    Items go by their `name`, those without one by all they say; what is left between two such pairs goes by place.
    """
    found: list[int | None] = [None] * len(new)
    matcher = SequenceMatcher(
        None, [_identity(item) for item in old], [_identity(item) for item in new], autojunk=False
    )
    for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            for offset in range(min(old_to - old_from, new_to - new_from)):
                found[new_from + offset] = old_from + offset
    return found


def same(old: Any, new: Any) -> bool:
    """Whether two pieces of JSON data say the same; `true` is not 1, though Python thinks so."""
    return old == new and json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _identity(item: Any) -> str:
    if isinstance(item, dict) and isinstance(item.get("name"), str):
        return f"name {item['name']}"
    return json.dumps(item, sort_keys=True)
