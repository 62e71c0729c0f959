from __future__ import annotations

from typing import Any

import pytest

from llamastead_server.domain.chat.tools import NO_TOOLS, Tool, ToolChoice, ToolOffer, checked


def schema(parameters: dict[str, Any]) -> Any:
    offer = ToolOffer.of([Tool("f", "", parameters)], ToolChoice("required"), parallel=True, in_prompt=False)
    made = offer.schema()
    assert made is not None
    return made["$defs"]["0"]


def test_references_are_led_to_where_the_parameters_now_stand() -> None:
    parameters = {
        "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#"}},
        "$defs": {"x": {"items": {"$ref": "#/$defs/x"}}},
    }
    made = schema(parameters)
    assert made["properties"] == {"a": {"$ref": "#/$defs/0/$defs/x"}, "b": {"$ref": "#/$defs/0"}}
    assert made["$defs"]["x"]["items"] == {"$ref": "#/$defs/0/$defs/x"}


def test_a_forced_call_makes_up_no_properties_unless_its_schema_wants_some() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}}
    made = schema({"properties": {"one": inner, "many": {"items": inner}, "open": {"type": "object"}}})
    assert made["additionalProperties"] is False
    assert made["properties"]["one"]["additionalProperties"] is False
    assert made["properties"]["many"]["items"]["additionalProperties"] is False
    assert "additionalProperties" not in made["properties"]["open"]
    assert schema({"additionalProperties": True})["additionalProperties"] is True
    assert "additionalProperties" not in schema({"allOf": [inner, {"properties": {"y": {}}}]})


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    assert schema({"properties": {"items": {"type": "string"}, "properties": {"type": "string"}}})["properties"] == {
        "items": {"type": "string"},
        "properties": {"type": "string"},
    }


def test_a_free_choice_binds_nothing_and_none_offers_nothing() -> None:
    tools = [Tool("f")]
    assert ToolOffer.of(tools, None, parallel=True, in_prompt=False).schema() is None
    assert ToolOffer.of(tools, ToolChoice("none"), parallel=True, in_prompt=False) == NO_TOOLS
    assert ToolOffer.of([], None, parallel=True, in_prompt=False) == NO_TOOLS


def test_equal_tools_are_written_equally() -> None:
    one = Tool("f", "", {"type": "object", "properties": {"b": {}, "a": {}}})
    other = Tool("f", "", {"properties": {"a": {}, "b": {}}, "type": "object"})
    assert str(one.plain()) == str(other.plain())


def test_tools_are_bounded() -> None:
    with pytest.raises(ValueError, match="characters"):
        checked([{"name": "f", "description": "x" * 200_000}])
