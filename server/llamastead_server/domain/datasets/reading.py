"""How a file is to be read and cut, in a form that travels to the parser child."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llamastead_server.domain.config.parsers import (
    DEFAULT_CHUNK_OVERLAP,
    DEFAULT_CHUNK_SIZE,
    PARSER_TYPES,
    ParserSettings,
    ReadingKind,
)
from llamastead_server.domain.datasets.chunking import ChunkSettings


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How one file is read and cut.

    Attributes:
        chunking: How its text is cut.
        kind: How it is read; `auto` goes by its name.
        options: Settings of the parser, by LlamaFarm's names.
        extractors: Type and settings of each extractor, in the order they run.
    """

    chunking: ChunkSettings = field(default_factory=lambda: ChunkSettings(DEFAULT_CHUNK_SIZE, DEFAULT_CHUNK_OVERLAP))
    kind: ReadingKind = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    extractors: Sequence[tuple[str, Mapping[str, Any]]] = ()

    @classmethod
    def of_parser(
        cls, name: str, settings: ParserSettings, extractors: Sequence[tuple[str, Mapping[str, Any]]] = ()
    ) -> ReadSettings:
        """The settings of a configured parser."""
        parser = PARSER_TYPES[name]
        return cls(settings.chunking(parser.strategy), parser.kind, settings.options(), extractors)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "chunking": asdict(self.chunking),
            "kind": self.kind,
            "options": dict(self.options),
            "extractors": [[name, dict(config)] for name, config in self.extractors],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ReadSettings:
        """From what `plain` made."""
        return cls(
            ChunkSettings(**plain["chunking"]),
            plain["kind"],
            plain["options"],
            [(name, config) for name, config in plain["extractors"]],
        )
