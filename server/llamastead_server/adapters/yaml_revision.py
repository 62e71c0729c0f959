"""A YAML text after a change of what it says: what did not change keeps its comments, its order and its style.

No dumper can do that: those that keep comments (ruamel.yaml) tie each to the value before it, so that a removed dataset
takes the next section's heading along and a new one lands behind it, and they write all other lines in their own
style. Here the parser says where each value stands, and only what changed is cut out and written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from llamastead_server.adapters.alignment import aligned, same
from llamastead_server.adapters.yaml_nodes import Node, compose

Dump = Callable[..., str]
"""Writes JSON data as YAML: the data, and `flow=True` for a single line in brackets."""


def revised(text: str, old: Any, new: Any, dump: Dump) -> str | None:
    """The text with only what changed written anew, by lines of its own where it was a block.

    Args:
        text: What stands in the file.
        old: What it says, as JSON data.
        new: What it shall say.
        dump: Writes the values that changed.

    Returns:
        None where a change can't be made in place, as in a document in brackets. A text may also say something else,
        as where an anchor changed that is used elsewhere: that is for the caller to check.
    """
    try:
        root = compose(text)
    except (yaml.YAMLError, RecursionError):
        return None
    revision = _Revision(text, dump)
    return revision.result() if revision.changed_inside(root, old, new) else None


class _Revision:
    """The cuts that make the new text of the old one."""

    def __init__(self, text: str, dump: Dump) -> None:
        self._text = text
        self._dump = dump
        self._cuts: list[tuple[int, int, str]] = []

    def result(self) -> str:
        pieces: list[str] = []
        done = 0
        for start, end, replacement in sorted(self._cuts, key=lambda cut: cut[:2]):
            pieces += (self._text[done:start], replacement)
            done = max(done, end)
        return "".join((*pieces, self._text[done:]))

    def changed_inside(self, node: Node, old: Any, new: Any) -> bool:
        """Whether the change could be made entry by entry; if not, no cut was made."""
        if same(old, new):
            return True
        if not (node.block and old and new):
            return False
        if node.keys is not None and isinstance(old, dict) and isinstance(new, dict):
            return self._mapping(node, node.keys, old, new)
        return node.keys is None and isinstance(old, list) and isinstance(new, list) and self._sequence(node, old, new)

    def _mapping(self, node: Node, keys: list[Node], old: dict[str, Any], new: dict[str, Any]) -> bool:
        # Keys that are merged in, written twice or no text have no place of their own.
        if [key.text for key in keys] != list(old):
            return False
        column = self._column(keys[0].start)
        if keys[0].text not in new and not self._starts_line(keys[0].start):
            return False
        for key, name, value in zip(keys, old, node.values, strict=True):
            if name not in new:
                self._remove(key.start, value.end)
            elif not self.changed_inside(value, old[name], new[name]):
                lines = self._written({"k": new[name]}, value, old[name], column)[1:]
                self._replace(key.end, value, lines, first=key.start, column=column)
        added = {name: value for name, value in new.items() if name not in old}
        if added:
            self._insert(node.end, _indented(self._dump(added), column))
        return True

    def _sequence(self, node: Node, old: list[Any], new: list[Any]) -> bool:
        column = self._column(node.start)
        into = aligned(old, new)
        kept = {index: item for index, item in zip(into, new, strict=True) if index is not None}
        dashes = self._dashes(node, column)
        if not kept or len(dashes) != len(old) or not self._starts_line(node.start):
            return False
        for place, (dash, value) in enumerate(zip(dashes, node.values, strict=True)):
            if place not in kept:
                self._remove(dash, value.end)
            elif not self.changed_inside(value, old[place], kept[place]):
                lines = self._written([kept[place]], value, old[place], column)[1:]
                self._replace(dash + 1, value, lines, first=dash, column=column)
        last: int | None = None
        for index, item in zip(into, new, strict=True):
            if index is not None:
                last = index
                continue
            lines = _indented(self._dump([item]), column)
            if last is None:
                self._cut(self._line_start(node.start), self._line_start(node.start), lines)
            else:
                self._insert(node.values[last].end, lines)
        return True

    def _written(self, entry: Any, node: Node, old: Any, column: int) -> str:
        """An entry in lines, all but the first of them indented; in one line where it was one."""
        if node.flow and old:
            ((_, value),) = entry.items() if isinstance(entry, dict) else enumerate(entry)
            if isinstance(value, dict | list):
                return f"{'k:' if isinstance(entry, dict) else '-'} {self._dump(value, flow=True)}".rstrip("\n")
        return _indented(self._dump(entry), column)[column:].rstrip("\n")

    def _replace(self, start: int, value: Node, lines: str, *, first: int, column: int) -> None:
        """Puts lines for a value and what leads to it; comments that would be lost go before the entry."""
        end = value.end
        comments = _comments(self._text[start : value.start])
        if "\n" in lines:
            rest = self._text[end : self._line_end(end)].rstrip("\n")
            comments += _comments(rest)
            end += len(rest)
        if comments:
            self._cut(first, first, "".join(f"{comment}\n{' ' * column}" for comment in comments))
        self._cut(start, end, lines)

    def _remove(self, start: int, end: int) -> None:
        self._cut(self._line_start(start), self._line_end(end), "")

    def _insert(self, after: int, lines: str) -> None:
        """Puts lines below the one that holds a place."""
        place = self._line_end(after)
        unended = place == len(self._text) and not self._text.endswith("\n")
        self._cut(place, place, f"\n{lines}" if unended else lines)

    def _cut(self, start: int, end: int, replacement: str) -> None:
        self._cuts.append((start, end, replacement))

    def _dashes(self, node: Node, column: int) -> list[int]:
        """Where the items' dashes are; fewer than there are items if one can't be found."""
        dashes = [node.start]
        for value in node.values[1:]:
            line = self._line_start(value.start)
            while not (self._text.startswith("-", line + column) and self._starts_line(line + column)):
                if line <= node.start:
                    return dashes
                line = self._line_start(line - 1)
            dashes.append(line + column)
        return dashes

    def _starts_line(self, place: int) -> bool:
        return not self._text[self._line_start(place) : place].strip()

    def _column(self, place: int) -> int:
        return place - self._line_start(place)

    def _line_start(self, place: int) -> int:
        return self._text.rfind("\n", 0, place) + 1

    def _line_end(self, place: int) -> int:
        found = self._text.find("\n", place)
        return len(self._text) if found < 0 else found + 1


def _indented(text: str, column: int) -> str:
    return "\n".join(f"{' ' * column}{line}" if line else line for line in text.split("\n"))


def _comments(text: str) -> list[str]:
    """The comments of a stretch that holds nothing else but white space and the sign between key and value."""
    return [line[line.index("#") :].rstrip() for line in text.split("\n") if "#" in line]
