"""A YAML text as nodes that know their place in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(slots=True)
class Node:
    """A value as it stands in the text.

    Attributes:
        start: Where it begins, with its tag and anchor; of a block, where its first key or dash does.
        end: Just behind its last character; comments and blank lines behind it are not its own.
        text: What a scalar says; None for all else.
        keys: The keys of a mapping, in pairs with `values`; None for all else.
        values: The values of a mapping, or the items of a sequence.
        flow: Whether it is written in brackets.
        own: Whether it is an alias, or has an anchor or a tag: it can't be changed in part.
    """

    start: int
    end: int
    text: str | None = None
    keys: list[Node] | None = None
    values: list[Node] = field(default_factory=list)
    flow: bool = False
    own: bool = False

    @property
    def block(self) -> bool:
        """Whether it is a mapping or a sequence of lines, whose entries can be changed one by one."""
        return not (self.flow or self.own) and self.text is None


def compose(text: str) -> Node:
    """The document's root.

    Raises:
        yaml.YAMLError: The text is not YAML.
        RecursionError: It nests too deep.
    """
    events = yaml.parse(text, Loader=yaml.CSafeLoader)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            return _node(next(events), events, text)
    raise yaml.YAMLError("there is no document")


def _node(event: yaml.Event, events: Iterator[yaml.Event], text: str) -> Node:
    start, end = _place(event.start_mark), _place(event.end_mark)
    if isinstance(event, yaml.AliasEvent):
        return Node(start, end, own=True)
    assert isinstance(event, yaml.NodeEvent)
    own = event.anchor is not None or getattr(event, "tag", None) is not None
    if isinstance(event, yaml.ScalarEvent):
        if event.style in ("|", ">"):
            end = _end_of_block_scalar(text, start, end)
        return Node(start, end, text=event.value, own=own)
    assert isinstance(event, yaml.CollectionStartEvent)
    node = Node(start, end, flow=bool(event.flow_style), own=own)
    if isinstance(event, yaml.MappingStartEvent):
        node.keys = []
    for inner in events:
        if isinstance(inner, yaml.CollectionEndEvent):
            # A block's own end mark is where the next token begins, behind all comments.
            node.end = _place(inner.end_mark) if node.flow else node.values[-1].end
            return node
        if node.keys is not None:
            node.keys.append(_node(inner, events, text))
            inner = next(events)
        node.values.append(_node(inner, events, text))
    raise yaml.YAMLError("the document ends within a block")


def _place(mark: Any) -> int:
    place: int = mark.index
    return place


def _end_of_block_scalar(text: str, start: int, end: int) -> int:
    header = text[start : text.find("\n", start)]
    if "+" in header.partition("#")[0]:
        return end - 1 if text[end - 1 : end] == "\n" else end
    return start + len(text[start:end].rstrip())
