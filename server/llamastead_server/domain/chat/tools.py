"""Functions that a model may call: how requests and projects offer them, and how a call is forced.

The model decides whether it calls one (`auto`), must call one (`required`, or a named one), or is offered none. A
forced call is written under a JSON schema made from the functions, so that its arguments always satisfy theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llamastead_server.domain.chat import response_format
from llamastead_server.domain.errors import ValidationFailed
from llamastead_server.domain.models.generation import ToolCall

MAX_TOOLS = 128
_MAX_CHARACTERS = 131_072
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}

Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One function.

    Attributes:
        name: 1 to 64 letters, digits, `_`, `-` or `.`.
        description: What it does, for the model.
        parameters: JSON schema of the object it takes.
        strict: Whether the arguments must satisfy it.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_PARAMETERS))
    strict: bool = False

    def plain(self) -> dict[str, Any]:
        """OpenAI's form, which chat templates read; keys are sorted, so that equal tools make equal prompts."""
        parameters = json.loads(json.dumps(self.parameters, sort_keys=True))
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": {**function, "strict": True} if self.strict else function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a function is called; `name` is set where one of them must be."""

    mode: Mode = "auto"
    name: str | None = None

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.mode == "required"

    def plain(self) -> Any:
        """OpenAI's form."""
        return self.mode if self.name is None else {"type": "function", "function": {"name": self.name}}


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """What one turn offers to the model.

    Attributes:
        tools: The functions; none at all when none may be called.
        choice: Whether one is called.
        parallel: Whether several may be called in one answer.
        in_prompt: Whether they are described in the system prompt instead of by the model's template.
    """

    tools: Sequence[Tool] = ()
    choice: ToolChoice = ToolChoice("none")
    parallel: bool = True
    in_prompt: bool = False

    @classmethod
    def of(cls, tools: Sequence[Tool], choice: ToolChoice | None, *, parallel: bool, in_prompt: bool) -> ToolOffer:
        """Joins tools with the choice among them.

        Raises:
            ValidationFailed: A call is demanded that no tool can answer.
        """
        choice = choice or ToolChoice("auto" if tools else "none")
        known = [tool.name for tool in tools]
        if choice.forced and not tools:
            raise _wrong("tool_choice", "a call is required, but there are no tools")
        if choice.name is not None and choice.name not in known:
            raise _wrong("tool_choice", f"{choice.name!r} is not one of the tools: {', '.join(known)}")
        if choice.mode == "none" or not tools:
            return cls()
        return cls(tools, choice, parallel, in_prompt)

    @property
    def names(self) -> frozenset[str]:
        """The functions' names."""
        return frozenset(tool.name for tool in self.tools)

    def schema(self) -> dict[str, Any] | None:
        """The schema of a forced call, `{"name", "arguments"}`; None where the model may answer in words."""
        if not self.choice.forced:
            return None
        wanted = [tool for tool in self.tools if self.choice.name in (None, tool.name)]
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "const": tool.name},
                    "arguments": {"$ref": f"#/$defs/{number}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for number, tool in enumerate(wanted)
        ]
        definitions = {
            str(number): _moved(_bounded(tool.parameters), f"#/$defs/{number}") for number, tool in enumerate(wanted)
        }
        return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": definitions}


NO_TOOLS = ToolOffer()
"""Nothing may be called."""


def parse_tools(value: Any) -> Sequence[Tool]:
    """Reads OpenAI's `tools`.

    Raises:
        ValueError: Says which entry is wrong, and why.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("must be a list")
    tools = []
    for number, entry in enumerate(value):
        function = entry.get("function") if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping) or entry.get("type", "function") != "function":
            raise ValueError(
                f'{number}: must be {{"type": "function", "function": {{"name", "description", "parameters"}}}}'
            )
        tools.append(function)
    return checked(tools)


def checked(functions: Sequence[Mapping[str, Any]]) -> Sequence[Tool]:
    """Reads functions `{"name", "description", "parameters"}`.

    Raises:
        ValueError: Says which entry is wrong, and why.
    """
    if len(functions) > MAX_TOOLS:
        raise ValueError(f"at most {MAX_TOOLS} tools are accepted")
    tools: dict[str, Tool] = {}
    for number, function in enumerate(functions):
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{number}: the name must be 1 to 64 letters, digits, `_`, `-` or `.`")
        if name in tools:
            raise ValueError(f"{number}: {name!r} is there twice")
        parameters = function.get("parameters") or _NO_PARAMETERS
        description = function.get("description") or ""
        if not isinstance(description, str):
            raise ValueError(f"{number}: the description of {name!r} must be a string")
        try:
            response_format.check_schema(parameters, f"parameters of {name!r}")
        except ValueError as error:
            raise ValueError(f"{number}: {error}") from None
        if parameters.get("type", "object") != "object":
            raise ValueError(f"{number}: the parameters of {name!r} must be a schema of type object")
        tools[name] = Tool(name, description, dict(parameters), function.get("strict") is True)
    found = list(tools.values())
    if len(json.dumps([tool.plain() for tool in found])) > _MAX_CHARACTERS:
        raise ValueError(f"all tools together may have {_MAX_CHARACTERS} characters")
    return found


def parse_choice(value: Any) -> ToolChoice:
    """Reads OpenAI's `tool_choice`.

    Raises:
        ValueError: It is none of the known forms.
    """
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    if isinstance(value, Mapping) and value.get("type") == "function" and isinstance(value.get("function"), Mapping):
        name = value["function"].get("name")
        if isinstance(name, str) and name:
            return ToolChoice("required", name)
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "function": {"name"}}')


def parse_calls(value: Any) -> tuple[ToolCall, ...]:
    """Reads an assistant message's `tool_calls`.

    Raises:
        ValueError: One of them is not a call.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("tool_calls must be a list")
    calls = []
    for entry in value:
        function = entry.get("function") if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping):
            raise ValueError('each of tool_calls must be {"id", "type": "function", "function": {"name", "arguments"}}')
        call_id, name, arguments = entry.get("id"), function.get("name"), function.get("arguments")
        if not (isinstance(call_id, str) and call_id and isinstance(name, str) and name):
            raise ValueError("each of tool_calls needs an id, and a function with a name")
        if arguments is not None and not isinstance(arguments, str):
            raise ValueError("the arguments of a tool call must be a string that holds JSON")
        calls.append(ToolCall(call_id, name, arguments or "{}"))
    return tuple(calls)


def _wrong(place: str, reason: str) -> ValidationFailed:
    return ValidationFailed(f"Invalid request: {place}: {reason}.", details={place: reason})


def _bounded(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters as a schema of just the properties it names: a forced call makes up no other ones, without end."""
    schema = {"type": "object", "properties": {}, **parameters}
    # Schemas that are joined each name a part of the properties only.
    return schema if '"allOf"' in json.dumps(schema) else _closed(schema)


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(entry) for entry in node]
    if not isinstance(node, Mapping):
        return node
    closed = {
        key: {name: _closed(entry) for name, entry in value.items()}
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping)
        else _closed(value)
        if key in ("items", "prefixItems", "anyOf", "oneOf", "additionalProperties")
        else value
        for key, value in node.items()
    }
    whole = "properties" in node and not {"anyOf", "oneOf", "$ref", "patternProperties"} & set(node)
    return {"additionalProperties": False, **closed} if whole else closed


def _moved(node: Any, root: str) -> Any:
    """A schema that stood by itself, with its references as they must be under `root` in another."""
    if isinstance(node, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in sorted(node.items())
        }
    return [_moved(entry, root) for entry in node] if isinstance(node, list) else node
