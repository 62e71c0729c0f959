"""Which settings a processing strategy has for which file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from llamastead_server.domain.config.extractors import EXTRACTOR_TYPES
from llamastead_server.domain.config.parsers import PARSER_TYPES, ParserSettings
from llamastead_server.domain.config.processing import DataProcessingStrategy, Extractor, Parser
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.files import DocumentError
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.errors import ValidationFailed
from llamastead_server.domain.validation import reasons, summary


class ParsingRules:
    """A strategy's parsers and extractors, those of highest priority first.

    Args:
        strategy: The strategy.
        database: The database its chunks go into; extractors that are required for others alone don't run.
    """

    def __init__(self, strategy: DataProcessingStrategy, database: str) -> None:
        self.name = strategy.name
        parsers = [parser if isinstance(parser, Parser) else Parser(type=parser) for parser in strategy.parsers]
        self._parsers = sorted(parsers or [Parser()], key=lambda parser: -parser.priority)
        extractors = [entry if isinstance(entry, Extractor) else Extractor(type=entry) for entry in strategy.extractors]
        wanted = [entry for entry in extractors if not entry.required_for or database in entry.required_for]
        self._extractors = sorted(wanted, key=lambda extractor: -extractor.priority)

    def settings(
        self, filename: str, mime_type: str = "", overrides: Mapping[str, Any] | None = None
    ) -> Sequence[ReadSettings]:
        """The settings of the first parser that takes the file, then those of its fallback.

        Args:
            filename: The file's name.
            mime_type: The file's media type.
            overrides: Settings that replace the parser's own for this file.

        Raises:
            DocumentError: No parser of the strategy takes it.
            ValidationFailed: The overrides are not settings of the parser that takes it.
        """
        parser = self._parser(filename, mime_type)
        settings = _overridden(parser, overrides or {}, filename)
        extractors = [
            (extractor.type, extractor.config) for extractor in self._extractors if _runs(extractor, filename)
        ]
        readings = [ReadSettings.of_parser(parser.type, settings, extractors)]
        if parser.fallback_parser is not None:
            fallback = PARSER_TYPES[parser.fallback_parser].settings
            shared = {
                key: value
                for key, value in settings.model_dump(exclude_unset=True).items()
                if key in fallback.model_fields and key in ("chunk_size", "chunk_overlap")
            }
            try:
                kept = fallback.model_validate(shared)
            except ValidationError:
                kept = fallback()
            readings.append(ReadSettings.of_parser(parser.fallback_parser, kept, extractors))
        return readings

    def _parser(self, filename: str, mime_type: str) -> Parser:
        for parser in self._parsers:
            if _takes(parser, filename, mime_type):
                return parser
        taken = sorted({kind for parser in self._parsers for kind in _kinds(parser)})
        raise DocumentError(
            f"No parser of the strategy {self.name!r} takes this kind of file; it takes {', '.join(taken)}."
        )


def rules_of(config: ProjectConfig, dataset: str) -> ParsingRules:
    """How the files of a dataset are read.

    Raises:
        NotFound: There is no such dataset or strategy.
    """
    settings = config.dataset(dataset)
    return ParsingRules(config.rag.processing_strategy(settings.data_processing_strategy), settings.database)


def _overridden(parser: Parser, overrides: Mapping[str, Any], filename: str) -> ParserSettings:
    try:
        return PARSER_TYPES[parser.type].settings.model_validate({**parser.config, **overrides})
    except ValidationError as error:
        found = reasons(error, prefix="parser_overrides")
        raise ValidationFailed(
            f"The file {filename!r} is read by the parser {parser.type}, which refuses these: {summary(found)}.",
            details=found,
        ) from None


def _takes(parser: Parser, filename: str, mime_type: str) -> bool:
    extension = PurePath(filename.lower()).suffix.lstrip(".")
    own = PARSER_TYPES[parser.type].extensions
    listed = {entry.lower().lstrip(".") for entry in parser.file_extensions}
    fits = not own or extension in own
    if not (listed or parser.file_include_patterns or parser.mime_types):
        return fits
    return (
        extension in listed
        or (_matches(filename, parser.file_include_patterns) and (fits or bool(listed)))
        or any(fnmatch(mime_type.lower(), pattern.lower()) for pattern in parser.mime_types)
    )


def _runs(extractor: Extractor, filename: str) -> bool:
    enabled = EXTRACTOR_TYPES[extractor.type].model_validate(extractor.config).enabled
    return enabled and (not extractor.file_include_patterns or _matches(filename, extractor.file_include_patterns))


def _matches(filename: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(filename.lower(), pattern.lower()) for pattern in patterns)


def _kinds(parser: Parser) -> Sequence[str]:
    listed = [*parser.file_extensions, *parser.file_include_patterns, *parser.mime_types]
    return listed or [f".{extension}" for extension in sorted(PARSER_TYPES[parser.type].extensions)]
