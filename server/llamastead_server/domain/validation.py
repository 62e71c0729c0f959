"""What pydantic found wrong, in a caller's words."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError


def reasons(error: ValidationError, *, root: str = "request", prefix: str = "", skip: int = 0) -> dict[str, str]:
    """The path of each wrong field with the reason; values are not repeated, as some are secret.

    Args:
        error: What pydantic raised.
        root: What stands for the path of the whole.
        prefix: What all paths begin with.
        skip: How many parts of pydantic's own paths mean nothing to the caller.
    """
    found = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        parts = [prefix] if prefix else []
        parts += [str(part) for part in item["loc"][skip:]]
        found[".".join(parts) or root] = reason(item["msg"])
    return found


def reason(message: str) -> str:
    """What pydantic says, as it follows the field's name."""
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return "should be a mapping" if message.startswith("should be a valid dictionary") else message


def summary(found: Mapping[str, str]) -> str:
    """All reasons in one line."""
    return "; ".join(f"{field}: {reason}" for field, reason in found.items())
