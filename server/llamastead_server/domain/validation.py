"""What pydantic found wrong, in a caller's words."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError


def reasons(error: ValidationError) -> dict[str, str]:
    """The path of each wrong field with the reason."""
    return {
        ".".join(str(part) for part in item["loc"]) or "request": item["msg"]
        .removeprefix("Value error, ")
        .removeprefix("Input ")
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    }


def summary(found: Mapping[str, str]) -> str:
    """The same in one line."""
    return "; ".join(f"{field}: {reason}" for field, reason in found.items())
