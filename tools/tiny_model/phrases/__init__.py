"""The phrase books that the lessons are made from, and the reader for them.

A phrase book is a text file of blocks with an empty line between them. In a block, a
line that begins with a question mark is something the user says, a line that begins
with an equals sign is what the model answers, and any other line is a statement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """One entry of a phrase book."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


def phrase_book(name: str) -> tuple[Block, ...]:
    """Read one of the phrase books beside this file."""
    text = (Path(__file__).parent / name).read_text("utf-8")
    blocks = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        blocks.append(
            Block(
                statements=tuple(line for line in lines if line[0] not in "?="),
                questions=tuple(line[2:] for line in lines if line.startswith("? ")),
                answer="\n".join(line[2:] for line in lines if line.startswith("= ")),
            )
        )
    return tuple(blocks)


@cache
def word_list(name: str) -> tuple[str, ...]:
    """Read one of the lists in words.txt."""
    text = (Path(__file__).parent / "words.txt").read_text("utf-8")
    lists = dict(re.findall(r"^\[(.+)\]\n((?:[^\[\n].*\n)+)", text, re.MULTILINE))
    return tuple(lists[name].split())
