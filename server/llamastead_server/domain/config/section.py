"""What all sections of llamafarm.yaml share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""A name that can stand in a path of the API."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""A name that only the configuration itself refers to."""


MOST_ENTRIES = 1000
"""Most entries one list of a configuration may have; each is compared with others on every change."""


class Section(BaseModel):
    """Keys this server does not use are kept, so a file of another LlamaFarm tool survives a round trip.

    A null is as good as absent, as LlamaFarm's own clients write it.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=(), populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, raw: Any) -> Any:
        return {key: value for key, value in raw.items() if value is not None} if isinstance(raw, Mapping) else raw


def unconditional(value: object) -> None:
    """Refuses a condition, which LlamaFarm's files may hold: no program says how one is written or judges by it."""
    if value is not None:
        raise ValueError(
            "conditions have no meaning that is defined; leave it out, and name the files by file_include_patterns"
        )


def _web_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    # The address itself is not repeated: it may hold a password.
    if not usable or any(character.isspace() for character in text):
        raise ValueError("should be a URL that starts with http:// or https://")
    return text


Url = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_web_address)]
"""The address of another server: `http://…` or `https://…`."""
