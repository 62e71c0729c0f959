"""Which settings a processing strategy has for which file."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import PurePath

from llamastead_server.domain.chunking import ChunkSettings
from llamastead_server.domain.errors import ValidationFailed
from llamastead_server.domain.files import DocumentError
from llamastead_server.domain.processing_config import (
    DEFAULT_CHUNK_OVERLAP,
    DEFAULT_CHUNK_SIZE,
    DataProcessingStrategy,
    Parser,
)


class ParsingRules:
    """A strategy's parsers, the one of highest priority first.

    Raises:
        ValidationFailed: A parser's chunk settings are impossible.
    """

    def __init__(self, strategy: DataProcessingStrategy) -> None:
        self.name = strategy.name
        parsers = [parser if isinstance(parser, Parser) else Parser(type=parser) for parser in strategy.parsers]
        self._parsers = sorted(parsers or [Parser()], key=lambda parser: -parser.priority)
        self._settings = [_chunk_settings(strategy.name, parser) for parser in self._parsers]

    def settings(self, filename: str) -> ChunkSettings:
        """The settings of the first parser that takes the file.

        Raises:
            DocumentError: No parser of the strategy takes it.
        """
        for parser, settings in zip(self._parsers, self._settings, strict=True):
            if _takes(parser, filename):
                return settings
        taken = sorted(
            {kind for parser in self._parsers for kind in [*parser.file_extensions, *parser.file_include_patterns]}
        )
        raise DocumentError(
            f"No parser of the strategy {self.name!r} takes this kind of file; it takes {', '.join(taken)}."
        )


def _chunk_settings(strategy: str, parser: Parser) -> ChunkSettings:
    size = parser.config.get("chunk_size", DEFAULT_CHUNK_SIZE)
    default_overlap = min(DEFAULT_CHUNK_OVERLAP, size // 2) if isinstance(size, int) else DEFAULT_CHUNK_OVERLAP
    overlap = parser.config.get("chunk_overlap", default_overlap)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (size, overlap)):
        raise ValidationFailed(f"Strategy {strategy!r}: chunk_size and chunk_overlap must be whole numbers.")
    return ChunkSettings(size, overlap)


def _takes(parser: Parser, filename: str) -> bool:
    if not parser.file_extensions and not parser.file_include_patterns:
        return True
    name = filename.lower()
    extension = PurePath(name).suffix.lstrip(".")
    return any(extension == listed.lower().lstrip(".") for listed in parser.file_extensions) or any(
        fnmatch(name, pattern.lower()) for pattern in parser.file_include_patterns
    )
