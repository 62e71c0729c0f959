"""Compares an answer with a document's example: every key it shows, with the type it shows."""

from __future__ import annotations

from typing import Any

NUMBER = (int, float)


def differences(example: Any, answer: Any, path: str = "$") -> list[str]:
    """Where `answer` lacks a key of `example` or has another type; more keys than documented are fine."""
    if isinstance(example, dict):
        if not isinstance(answer, dict):
            return [f"{path}: documented as an object, got {answer!r}"]
        return [
            difference
            for key, value in example.items()
            for difference in (
                differences(value, answer[key], f"{path}.{key}") if key in answer else [f"{path}.{key}: missing"]
            )
        ]
    if isinstance(example, list):
        if not isinstance(answer, list):
            return [f"{path}: documented as an array, got {answer!r}"]
        if example and not answer:
            return [f"{path}: documented with entries, got none"]
        return [
            difference
            for index, item in enumerate(answer if example else [])
            for difference in differences(example[0], item, f"{path}[{index}]")
        ]
    if example is None or example is ...:
        return []
    if isinstance(example, bool) or isinstance(answer, bool):
        same = isinstance(example, bool) and isinstance(answer, bool)
    elif isinstance(example, float):
        same = isinstance(answer, NUMBER)
    else:
        same = type(example) is type(answer)
    return [] if same else [f"{path}: documented as {type(example).__name__}, got {answer!r}"]


def assert_shape(example: Any, answer: Any) -> None:
    """Fails with every difference at once."""
    found = differences(example, answer)
    assert not found, "\n".join(found)
