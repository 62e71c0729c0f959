"""English-looking text without end, for indexing and for asking about it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamastead_server.domain.config.parsers import DEFAULT_CHUNK_OVERLAP, DEFAULT_CHUNK_SIZE
from llamastead_server.domain.datasets.chunking import ChunkSettings, spans

_VOCABULARY = """
auditor baker captain chemist committee courier dentist editor engineer farmer florist geologist inspector judge
librarian mechanic merchant midwife musician navigator nurse painter pilot plumber potter printer ranger sailor
sculptor shepherd surgeon surveyor tailor teacher translator treasurer vet weaver welder zoologist

approved borrowed calibrated cancelled catalogued checked cleaned compared copied counted delivered described
doubled drained enlarged examined exchanged filed filtered heated inspected labelled locked measured mended moved
ordered packed photographed polished postponed recorded refused removed renamed repaired replaced sealed sketched
sorted stored studied tested traded translated weighed

ancient amber blue brittle broken bronze copper cracked crooked damp dusty empty famous fragile frozen golden green
heavy hollow iron ivory large leather missing narrow northern orange painted purple rusty scarlet second silver
small southern spare square striped velvet wooden yellow

anchor archive barometer barrel basket bell boiler bridge cabinet candle canvas carriage catalogue chimney clock
compass contract cradle engine fence furnace gate generator harness hinge invoice kettle ladder lantern ledger lens
loom map microscope mirror motor orchard passport pendulum piano pump quarry radiator sail scale seed shelter statue
telescope timetable tunnel turbine valve violin wagon warehouse windmill workshop

archive attic barn bakery cathedral cellar chapel cinema clinic courtyard dairy dockyard embassy factory ferry
foundry gallery garden granary greenhouse hangar harbour hospital kitchen laboratory library lighthouse market mill
monastery museum observatory office park port prison quarry school station theatre tower vineyard

January February March April May June July August September October November December
"""
_WHO, _DID, _HOW, _WHAT, _WHERE, _WHEN = (paragraph.split() for paragraph in _VOCABULARY.strip().split("\n\n"))


def sentences(seed: str) -> Iterator[str]:
    """Sentences without end; two seeds give different ones."""
    draw = random.Random(seed)
    while True:
        yield (
            f"In {draw.choice(_WHEN)} {draw.randint(1880, 2025)} the {draw.choice(_WHO)} of the {draw.choice(_WHERE)} "
            f"{draw.choice(_DID)} the {draw.choice(_HOW)} {draw.choice(_WHAT)}, number {draw.randint(100, 9999)}, and "
            f"the {draw.choice(_WHO)} {draw.choice(_DID)} the {draw.choice(_HOW)} {draw.choice(_WHAT)}."
        )


def question(seed: str) -> str:
    """A question some sentence could answer."""
    draw = random.Random(seed)
    return (
        f"Who {draw.choice(_DID)} the {draw.choice(_HOW)} {draw.choice(_WHAT)} in the {draw.choice(_WHERE)} "
        f"in {draw.choice(_WHEN)}?"
    )


def text(seed: str, chunks: int) -> str:
    """A text that makes about `chunks` chunks."""
    wanted = chunks * (DEFAULT_CHUNK_SIZE - DEFAULT_CHUNK_OVERLAP)
    drawn, length = [], 0
    for sentence in sentences(seed):
        if length >= wanted:
            break
        drawn.append(sentence)
        length += len(sentence) + 1
    paragraphs = [" ".join(drawn[start : start + 6]) for start in range(0, len(drawn), 6)]
    return "\n\n".join(paragraphs)


def chunks_of(document: str) -> list[str]:
    """The chunks the server makes of a text with its default settings."""
    settings = ChunkSettings(DEFAULT_CHUNK_SIZE, DEFAULT_CHUNK_OVERLAP)
    return [document[start:end] for start, end in spans(document, settings)]


def files(seed: str, count: int, chunks: int) -> dict[str, str]:
    """Named texts that make about `chunks` chunks together."""
    return {f"{seed}-{number}.txt": text(f"{seed} {number}", chunks // count) for number in range(count)}


def folder_files(folder: Path, largest: int = 500) -> dict[str, str]:
    """The text files of a folder, by name, `largest` at most."""
    paths: Sequence[Path] = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".txt", ".md", ".rst")
    )
    return {path.name: path.read_text(errors="replace") for path in itertools.islice(paths, largest)}
