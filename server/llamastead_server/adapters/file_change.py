"""A change of a configuration, told in terms of what its file says.

A configuration is not its file word for word: it knows no nulls, and says some things in one form that may be written
in two. A change must not bring all that into the file.
"""

from __future__ import annotations

from typing import Any

from llamastead_server.adapters.alignment import aligned, same


def carried_over(said: Any, before: Any, after: Any) -> Any:
    """What the file says after a change.

    Args:
        said: What the file says, as JSON data.
        before: The same as the configuration has it.
        after: The configuration after the change.
    """
    if same(before, after):
        return said
    if isinstance(said, dict) and isinstance(before, dict) and isinstance(after, dict):
        result = {}
        for key, value in said.items():
            if key not in before:
                result[key] = after.get(key, value)
            elif key in after:
                result[key] = carried_over(value, before[key], after[key])
        new = {key: value for key, value in after.items() if key not in said}
        return result | {key: value for key, value in new.items() if not same(before.get(key), value)}
    if isinstance(said, list) and isinstance(before, list) and isinstance(after, list) and len(said) == len(before):
        return [
            item if index is None else carried_over(said[index], before[index], item)
            for index, item in zip(aligned(before, after), after, strict=True)
        ]
    return after
