from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.domain.chat.tool_call_parser import ToolCallParser
from llamastead_server.domain.models.generation import ToolCall

NAMES = ["weather", "cli.run"]
Found = tuple[str, list[tuple[str, Any]]]


def parse(pieces: Sequence[str], *, cut: bool = False) -> Found:
    parser = ToolCallParser(NAMES)
    found = [event for piece in pieces for event in parser.feed(piece)]
    found += parser.finish(cut=cut)
    text = "".join(event for event in found if isinstance(event, str))
    return text, [(event.name, json.loads(event.arguments)) for event in found if isinstance(event, ToolCall)]


W = '{"name": "weather", "arguments": {"city": "Oslo"}}'
OSLO = ("weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Hello.", "Hello.", []),
        ("", "", []),
        (W, "", [OSLO]),
        (f"\n {W} \n", "", [OSLO]),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', "", [OSLO]),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}', "", [OSLO]),
        ('{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}', "", [OSLO]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', "", [OSLO]),
        ('{"name": "cli.run"}', "", [("cli.run", {})]),
        (f"{W}; {W}", "", [OSLO, OSLO]),
        (f"{W}\n{W}", "", [OSLO, OSLO]),
        (f"<tool_call>\n{W}\n</tool_call>", "", [OSLO]),
        (f"<tool_call>{W}</tool_call>\n<tool_call>{W}</tool_call>", "", [OSLO, OSLO]),
        (f"Let me look.\n<tool_call>{W}</tool_call>", "Let me look.\n", [OSLO]),
        (f"<tool_call>{W}</tool_call>\nThere.", "There.", [OSLO]),
        (f"<tool_call>{W}", "", [OSLO]),
        (f"{W}, and that.", ", and that.", [OSLO]),
        ('{"name": "weather", "arguments": {"a": "</tool_call>{\\"}"}}', "", [("weather", {"a": '</tool_call>{"}'})]),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
        ('<tool_call>{"name": "unknown"}</tool_call>', '<tool_call>{"name": "unknown"}</tool_call>', []),
        ('{"city": "Oslo", "name": "weather"}', '{"city": "Oslo", "name": "weather"}', []),
        ('{"name": "weather", "arguments": [1]}', '{"name": "weather", "arguments": [1]}', []),
        ('{"name": "weather", "arguments": {"a": NaN}}', '{"name": "weather", "arguments": {"a": NaN}}', []),
        ('{"name": "weather", "arguments": {"\\ud800": 1}}', '{"name": "weather", "arguments": {"\\ud800": 1}}', []),
        (f"See {W}", f"See {W}", []),
        ("a < b <tool", "a < b <tool", []),
        ("<tool_call>no</tool_call>", "<tool_call>no</tool_call>", []),
        ("{}", "{}", []),
        ('{"name": "weather", "arg', '{"name": "weather", "arg', []),
    ],
)  # fmt: skip
def test_calls_and_text_are_told_apart(text: str, said: str, calls: list[Any]) -> None:
    assert parse([text]) == (said, calls)
    assert parse(list(text)) == (said, calls)


@pytest.mark.parametrize("half", [W[:-1], f"<tool_call>{W[:-5]}", "<tool_call>", "<tool_", '{"name": "we'])
def test_half_a_call_is_lost_where_the_answer_was_cut_and_never_seen_before(half: str) -> None:
    assert parse([half], cut=True) == ("", [])
    parser = ToolCallParser(NAMES)
    assert not [event for character in half for event in parser.feed(character)]


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "_call>", W, W[:20], W[20:], "{", "}", '"', "\\", " ", "\n", ";", ",", "x",
     '{"name": "unknown", "arguments": {}}', '{"a": 1}', '{"name": ', '"weather"', ', "parameters": {}}']
)  # fmt: skip


@given(st.lists(PARTS, max_size=8).map("".join), st.data(), st.booleans())
def test_however_the_text_is_cut_the_same_comes_out(text: str, data: st.DataObject, cut: bool) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    assert parse(pieces, cut=cut) == parse([text], cut=cut)
