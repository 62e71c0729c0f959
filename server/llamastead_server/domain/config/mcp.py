"""The section `mcp` of llamafarm.yaml: servers of tools. They are checked and kept, never started or called."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, model_validator

from llamastead_server.domain.config.section import MOST_ENTRIES, Label, Section, Url

_VARIABLE = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")
_URL: TypeAdapter[str] = TypeAdapter(Url)


def _address(text: str) -> str:
    """An address may be, or hold, variables of the environment."""
    return text if _VARIABLE.match(text) else _URL.validate_python(_VARIABLE.sub("1", text)) and text


Address = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_address)]


class McpServer(Section):
    """One server and how to reach it: `command` for stdio, `base_url` for http and sse."""

    name: Label
    transport: Literal["stdio", "http", "sse"]
    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = Field({}, repr=False)
    base_url: Address | None = None
    headers: dict[str, str] = Field({}, repr=False)

    @model_validator(mode="after")
    def _can_be_reached(self) -> McpServer:
        needed = "command" if self.transport == "stdio" else "base_url"
        if not getattr(self, needed):
            raise ValueError(f"the transport {self.transport!r} needs `{needed}`")
        return self


class Mcp(Section):
    """The servers of tools that models may refer to."""

    servers: list[McpServer] = Field([], max_length=MOST_ENTRIES)
