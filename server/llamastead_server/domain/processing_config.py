"""Data processing strategies of llamafarm.yaml: how a dataset's files become chunks."""

from __future__ import annotations

from typing import Any

from llamastead_server.domain.config_section import Name, Section

UNIVERSAL_STRATEGY = "universal_processor"
DEFAULT_CHUNK_SIZE = 500
DEFAULT_CHUNK_OVERLAP = 50


class Parser(Section):
    """How files of some kinds are read and cut."""

    type: str = "auto"
    config: dict[str, Any] = {}
    file_extensions: list[str] = []
    file_include_patterns: list[str] = []
    mime_types: list[str] = []
    priority: int = 50


class Extractor(Section):
    """What metadata is drawn from the text."""

    type: str
    config: dict[str, Any] = {}
    priority: int = 50


class DataProcessingStrategy(Section):
    """How a dataset's files become chunks."""

    name: Name
    description: str | None = None
    parsers: list[Parser | str] = []
    extractors: list[Extractor | str] = []
