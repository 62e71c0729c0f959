"""Data processing strategies of llamafarm.yaml: how a dataset's files become chunks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, WrapValidator, field_validator

from llamastead_server.domain.config.extractors import EXTRACTOR_TYPES
from llamastead_server.domain.config.parsers import PARSER_TYPES, ParserSettings, known
from llamastead_server.domain.config.section import MOST_ENTRIES, Name, Section, unconditional

_MOST_PARTS = 100
UNIVERSAL_STRATEGY = "universal_processor"
UNIVERSAL_RAG = "universal_rag"


class Parser(Section):
    """How files of some kinds are read and cut."""

    type: str = "auto"
    config: dict[str, Any] = {}
    file_extensions: list[str] = []
    file_include_patterns: list[str] = []
    mime_types: list[str] = []
    priority: Annotated[int, Field(ge=0, le=1000)] = 50
    fallback_parser: str | None = None

    @field_validator("type")
    @classmethod
    def _type_exists(cls, name: str) -> str:
        known(PARSER_TYPES, name, "parser")
        return name

    @field_validator("fallback_parser")
    @classmethod
    def _fallback_exists(cls, name: str | None) -> str | None:
        if name is not None:
            known(PARSER_TYPES, name, "parser")
        return name

    @field_validator("config")
    @classmethod
    def _settings_fit(cls, config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "type" in info.data:
            PARSER_TYPES[info.data["type"]].settings.model_validate(config)
        return config

    @property
    def settings(self) -> ParserSettings:
        """The settings, checked."""
        return PARSER_TYPES[self.type].settings.model_validate(self.config)


class NamedParser(Parser):
    """A parser that strategies may refer to by name."""

    name: Name


class Extractor(Section):
    """What metadata is drawn from the text: from files of its patterns, in datasets that go into its databases."""

    type: str
    config: dict[str, Any] = {}
    required_for: list[str] = Field([], max_length=MOST_ENTRIES)
    condition: None = None
    file_include_patterns: list[str] = []
    priority: Annotated[int, Field(ge=0, le=1000)] = 50

    @field_validator("type")
    @classmethod
    def _type_exists(cls, name: str) -> str:
        known(EXTRACTOR_TYPES, name, "extractor")
        return name

    @field_validator("condition", mode="before")
    @classmethod
    def _is_absent(cls, value: object) -> None:
        unconditional(value)

    @field_validator("config")
    @classmethod
    def _settings_fit(cls, config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "type" in info.data:
            EXTRACTOR_TYPES[info.data["type"]].model_validate(config)
        return config


def _parser_or_name(value: Any, handler: Any) -> Any:
    """Not the union's own check, which would name each field twice in its errors."""
    return value if isinstance(value, str) else Parser.model_validate(value)


def _extractor_or_name(value: Any, handler: Any) -> Any:
    if not isinstance(value, str):
        return Extractor.model_validate(value)
    known(EXTRACTOR_TYPES, value, "extractor")
    return value


class DataProcessingStrategy(Section):
    """How a dataset's files become chunks. A parser that is only named is a type, or one of the shared components."""

    name: Name
    description: str | None = None
    parsers: list[Annotated[Parser | str, WrapValidator(_parser_or_name)]] = Field([], max_length=_MOST_PARTS)
    extractors: list[Annotated[Extractor | str, WrapValidator(_extractor_or_name)]] = Field([], max_length=_MOST_PARTS)


BUILT_IN_STRATEGIES = {
    UNIVERSAL_STRATEGY: DataProcessingStrategy(name=UNIVERSAL_STRATEGY, parsers=[Parser(type="auto")]),
    UNIVERSAL_RAG: DataProcessingStrategy(
        name=UNIVERSAL_RAG,
        parsers=[Parser(type="UniversalParser", config={"chunk_size": 1024, "chunk_overlap": 100})],
        extractors=[Extractor(type="UniversalExtractor")],
    ),
}
"""Strategies every dataset may name without configuring them."""
