"""The frames of the WebSocket and the document that is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator, ValidationError
from pydantic import BaseModel

from llamastead_server.services import frames

SCHEMA_FILE = Path(__file__).parents[2] / "gen" / "websocket.schema.json"


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SCHEMA_FILE.read_text("utf-8"))
    return found


def validate(side: str, frame: Any) -> None:
    Draft202012Validator(schema()["properties"][side] | {"$defs": schema()["$defs"]}).validate(frame)


def test_the_schema_is_current() -> None:
    assert SCHEMA_FILE.read_text("utf-8") == frames.schema(), "run `make generate`"


def test_the_schema_is_sound_and_describes_every_frame() -> None:
    Draft202012Validator.check_schema(schema())
    described = schema()["$defs"]
    assert len(described) == 17
    assert [name for name, frame in described.items() if not frame.get("description")] == []


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "chat", "id": "1", "namespace": "a", "project": "b", "request": {"messages": []}},
        {"type": "task.watch", "id": "1", "namespace": "a", "project": "b", "task_id": "t"},
        {"type": "model.load", "id": "1", "model": "m"},
        {"type": "metrics.subscribe", "id": "1", "interval_seconds": 1},
        {"type": "cancel", "id": "1"},
        {"type": "ping"},
    ],
)
def test_what_the_schema_allows_is_read_and_what_it_forbids_is_not(frame: dict[str, Any]) -> None:
    validate("client", frame)
    assert frames.read(json.dumps(frame)).type == frame["type"]
    for wrong in (frame | {"unknown": 1}, frame | {"id": 7}, frame | {"id": ""}, frame | {"type": "unknown"}):
        with pytest.raises(ValidationError):
            validate("client", wrong)
        with pytest.raises(frames.InvalidRequest):
            frames.read(json.dumps(wrong))


def test_what_the_server_writes_is_what_the_schema_says() -> None:
    written: list[BaseModel] = [
        frames.Started(id="1", model="m", session_id=None),
        frames.Sources(id="1", sources=[{"content": "x"}]),
        frames.Delta(id="1", text=""),
        frames.ToolCall(id="1", index=0, tool_call={"id": "call_1"}),
        frames.TaskState(id="1", task={"state": "PENDING"}),
        frames.ModelState(id="1", model="m", state="ready"),
        frames.Metrics(id="1", timestamp=1.5, metrics={"a": 0.0}),
        frames.Done(id="1", finish_reason="stop", usage={}),
        frames.Cancelled(id="1"),
        frames.Error(id=None, error={"message": "No."}),
        frames.Pong(),
    ]
    assert {type(frame) for frame in written} == set(get_args(get_args(frames.ServerFrame)[0]))
    for frame in written:
        validate("server", json.loads(frames.write(frame)))
    assert frames.write(written[0]) == '{"type":"started","id":"1","model":"m","session_id":null}'
    assert frames.write(written[-1]) == '{"type":"pong"}'


def test_text_leaves_as_it_is_and_not_as_escapes() -> None:
    assert "日本語" in frames.write(frames.Delta(id="1", text="日本語"))
