"""What goes over the WebSocket: JSON frames, described by these models.

`gen/websocket.schema.json` is made from them: `python -m llamastead_server.services.frames`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.validation import reasons, summary

Id = Annotated[
    str, Field(min_length=1, max_length=128, description="Chosen by the client; every frame about the request has it.")
]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class _Frame(BaseModel):
    # A field that no frame of its type has is a mistake, and is refused.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Chat(_Frame):
    """Runs a chat turn. Scope: read.

    Answers `started`, `sources` if asked for, `delta`s and `tool_call`s, then `done` or `error`.
    """

    type: Literal["chat"]
    id: Id
    namespace: Name
    project: Name
    session_id: Annotated[str | None, Field(description="Session to continue; default: a new one.")] = None
    no_session: Annotated[bool, Field(description="Whether nothing is kept.")] = False
    request: Annotated[
        dict[str, Any],
        Field(description="The body of `POST …/chat/completions`, without `stream` (always true) and `n` (always 1)."),
    ]


class TaskWatch(_Frame):
    """Follows a task. Answers `task` now and with each change, then `done` when it has ended. Scope: read."""

    type: Literal["task.watch"]
    id: Id
    namespace: Name
    project: Name
    task_id: Annotated[str, Field(min_length=1, max_length=128)]


class ModelLoad(_Frame):
    """Loads a model. Answers `model` with each state, then `done` when it is ready. Scope: admin."""

    type: Literal["model.load"]
    id: Id
    model: Annotated[str, Field(min_length=1, max_length=500, description="Name, path or alias of an installed model.")]


class MetricsSubscribe(_Frame):
    """Sends `metrics` at an interval until it is cancelled. Scope: read."""

    type: Literal["metrics.subscribe"]
    id: Id
    interval_seconds: Annotated[float, Field(ge=0.5, le=3600, strict=False)] = 5.0


class Cancel(_Frame):
    """Ends a request of this connection. Answers `cancelled` when its work has stopped; the turn keeps nothing."""

    type: Literal["cancel"]
    id: Annotated[str, Field(min_length=1, max_length=128, description="Id of the request to end.")]


class Ping(_Frame):
    """Asks for a `pong`."""

    type: Literal["ping"]
    id: Id | None = None


class Started(_Frame):
    """The model begins to answer a `chat`."""

    type: Literal["started"] = "started"
    id: Id
    model: str
    session_id: Annotated[str | None, Field(description="The turn's session; null without one.")]
    trimmed: Annotated[str | None, Field(description="What was left out of the prompt to make it fit.")] = None


class Sources(_Frame):
    """The passages that the answer to a `chat` rests on, when its request has `include_sources`."""

    type: Literal["sources"] = "sources"
    id: Id
    sources: list[dict[str, Any]]


class Delta(_Frame):
    """More text of the answer to a `chat`."""

    type: Literal["delta"] = "delta"
    id: Id
    text: str
    logprobs: Annotated[dict[str, Any] | None, Field(description="As in a streamed chat completion.")] = None


class ToolCall(_Frame):
    """A function that the answer to a `chat` calls."""

    type: Literal["tool_call"] = "tool_call"
    id: Id
    index: Annotated[int, Field(description="Place of the call in the answer, from 0.")]
    tool_call: Annotated[dict[str, Any], Field(description="As an entry of a chat completion's `tool_calls`.")]


class TaskState(_Frame):
    """The state of a watched task."""

    type: Literal["task"] = "task"
    id: Id
    task: Annotated[dict[str, Any], Field(description="As `GET …/tasks/{task_id}` answers.")]


class ModelState(_Frame):
    """The state of a model being loaded."""

    type: Literal["model"] = "model"
    id: Id
    model: str
    state: Annotated[str, Field(description="`available`, `loading`, `ready` or `failed`.")]


class Metrics(_Frame):
    """The present metrics."""

    type: Literal["metrics"] = "metrics"
    id: Id
    timestamp: Annotated[float, Field(description="Seconds since 1970 UTC.")]
    metrics: dict[str, float]


class Done(_Frame):
    """The request has ended well; no more frames about it come."""

    type: Literal["done"] = "done"
    id: Id
    finish_reason: Annotated[str | None, Field(description="Why the answer to a `chat` ended.")] = None
    usage: Annotated[dict[str, Any] | None, Field(description="Tokens that a `chat` cost.")] = None


class Cancelled(_Frame):
    """The request was ended by `cancel`; no more frames about it come."""

    type: Literal["cancelled"] = "cancelled"
    id: Id


class Error(_Frame):
    """The request has failed, or the frame could not be read; no more frames about it come."""

    type: Literal["error"] = "error"
    id: Annotated[str | None, Field(description="Null when the frame had no id that could be read.")]
    error: Annotated[dict[str, Any], Field(description="`message`, `type`, `code` and `details`, as REST answers.")]
    retry_after: Annotated[float | None, Field(description="Seconds after which it may succeed.")] = None


class Pong(_Frame):
    """Answers `ping`."""

    type: Literal["pong"] = "pong"
    id: Id | None = None


Work = Chat | TaskWatch | ModelLoad | MetricsSubscribe
"""Frames that start something, whose id later frames refer to."""

ClientFrame = Annotated[Work | Cancel | Ping, Field(discriminator="type")]
"""What a client sends."""

ServerFrame = Annotated[
    Started | Sources | Delta | ToolCall | TaskState | ModelState | Metrics | Done | Cancelled | Error | Pong,
    Field(discriminator="type"),
]
"""What the server sends."""

CLOSE_CODES = {
    1001: "The server stops.",
    1003: "A binary message was sent; frames are text.",
    1007: "A message was no UTF-8.",
    1008: "The client read too slowly.",
    1009: "A message was too large.",
    1011: "The client did not answer pings, or the server failed.",
    1013: "Too many connections; try again later.",
    4401: "The token is missing, wrong, revoked or expired.",
    4429: "Too many requests; the reason says when to try again.",
}
"""Codes the server closes connections with."""

_CLIENT: TypeAdapter[Work | Cancel | Ping] = TypeAdapter(ClientFrame)


def read(text: str) -> Work | Cancel | Ping:
    """Reads a client's frame.

    Raises:
        InvalidRequest: It is no JSON object, or of no known type.
        ValidationFailed: Names every field that is wrong.
    """
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        raise _reasons(error) from None


def id_of(text: str) -> str | None:
    """The id of a frame that could not be read, if there is one."""
    try:
        found = json.loads(text)["id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(found, str) or not 0 < len(found) <= 128:
        return None
    # Half of a surrogate pair is text to JSON, but could not be sent back.
    return None if any("\ud800" <= letter <= "\udfff" for letter in found) else found


def write(frame: BaseModel) -> str:
    """A server's frame as text; what is absent by default is left out."""
    whole = frame.model_dump()
    shown = {"type": whole["type"], **frame.model_dump(exclude_defaults=True)}
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def schema() -> str:
    """The JSON Schema of all frames."""
    definitions: dict[str, Any] = {}
    described: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Llamastead's WebSocket, /v1/ws",
        "description": "Generated by `python -m llamastead_server.services.frames`. Do not edit.",
        "x-close-codes": {str(code): meaning for code, meaning in CLOSE_CODES.items()},
    }
    kinds: Mapping[str, Any] = {"client": ClientFrame, "server": ServerFrame}
    for name, kind in kinds.items():
        one = TypeAdapter[Any](kind).json_schema(ref_template="#/$defs/{model}")
        definitions |= one.pop("$defs")
        described.setdefault("properties", {})[name] = one
    return json.dumps({**described, "$defs": dict(sorted(definitions.items()))}, indent=2, ensure_ascii=False) + "\n"


def _reasons(error: ValidationError) -> InvalidRequest:
    kinds = [item["type"] for item in error.errors(include_url=False, include_context=False, include_input=False)]
    if "json_invalid" in kinds or not {"union_tag_invalid", "union_tag_not_found"}.isdisjoint(kinds):
        known = ", ".join(("chat", "task.watch", "model.load", "metrics.subscribe", "cancel", "ping"))
        return InvalidRequest(f"Send JSON objects whose `type` is one of: {known}.")
    # The first part of a location is the frame's type.
    found = reasons(error, root="frame", skip=1)
    return ValidationFailed(f"Invalid frame: {summary(found)}.", details=found)


if __name__ == "__main__":
    print(schema(), end="")
