"""What all sections of llamafarm.yaml share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""A name that can stand in a path of the API."""


class Section(BaseModel):
    """Keys this server does not use are kept, so a file of another LlamaFarm tool survives a round trip."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), populate_by_name=True)
