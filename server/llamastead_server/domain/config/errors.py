"""What is wrong with a configuration, as paths into it and reasons a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import ValidationError

from llamastead_server.domain import validation

MOST_NAMED = 100
"""Most problems that one answer names: a large file may have as many as it has entries."""


def reasons(error: ValidationError, raw: Any) -> dict[str, str]:
    """The reasons by path, such as `runtime.models.0.model`; values are not repeated, as some are secret."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        missing = item["type"] == "missing"
        path = ".".join(_path(item["loc"], raw, missing=missing)) or "config"
        reason = "is missing" if missing else validation.reason(item["msg"])
        if reason not in found.setdefault(path, []):
            found[path].append(reason)
    return {path: " or ".join(entries) for path, entries in islice(found.items(), MOST_NAMED)}


def summary(found: Mapping[str, str]) -> str:
    """The reasons as one sentence."""
    return f"Invalid configuration: {validation.summary(found)}."


def _path(location: Sequence[int | str], raw: Any, *, missing: bool) -> Sequence[str]:
    """The location without the names of the alternatives that were tried, which are no keys of the file."""
    parts: list[str] = []
    here = raw
    for place, part in enumerate(location):
        inside = part in here if isinstance(here, Mapping) else isinstance(here, list) and isinstance(part, int)
        if inside:
            here = here[part]
        elif not (missing and place == len(location) - 1):
            continue
        parts.append(str(part))
    return parts
