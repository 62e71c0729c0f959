"""The parsers a strategy can name: LlamaFarm's names, what they take and their settings.

All of them are read by the same libraries here. A name says which files are taken, how they are read and where
chunks end; settings that only concern another library are accepted under their LlamaFarm names and have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from llamastead_server.domain.datasets.chunking import (
    LARGEST_CHUNK_SIZE,
    SMALLEST_CHUNK_SIZE,
    ChunkSettings,
    ChunkStrategy,
)

DEFAULT_CHUNK_SIZE = 500
DEFAULT_CHUNK_OVERLAP = 50

Size = Annotated[int, Field(ge=SMALLEST_CHUNK_SIZE, le=LARGEST_CHUNK_SIZE)]
Rows = Annotated[int, Field(ge=1, le=LARGEST_CHUNK_SIZE)]
Letter = Annotated[str, Field(min_length=1, max_length=1)]
Languages = Annotated[str, Field(pattern=r"^[A-Za-z_]{2,30}(\+[A-Za-z_]{2,30}){0,5}$")]
"""Tesseract's names of languages."""
_T = TypeVar("_T")


def _encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(f"{name!r} is no encoding") from None
    return name


Encoding = Annotated[str, AfterValidator(_encoding)]


class ParserSettings(BaseModel):
    """Settings every parser has. Sizes are in characters."""

    model_config = ConfigDict(extra="forbid", strict=True)

    chunk_size: Size | None = None
    chunk_overlap: Annotated[int, Field(ge=0)] | None = None
    extract_metadata: bool = True

    @field_validator("chunk_overlap")
    @classmethod
    def _fits(cls, overlap: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("chunk_size") or DEFAULT_CHUNK_SIZE
        if overlap is not None and "chunk_size" in info.data and overlap > size // 2:
            raise ValueError(f"use 0 to half of chunk_size ({size // 2}) characters")
        return overlap

    def chunking(self, strategy: ChunkStrategy) -> ChunkSettings:
        """How text is cut, by the parser's own strategy unless `chunk_strategy` says otherwise."""
        size = self.chunk_size or DEFAULT_CHUNK_SIZE
        overlap = min(DEFAULT_CHUNK_OVERLAP, size // 2) if self.chunk_overlap is None else self.chunk_overlap
        return ChunkSettings(size, overlap, getattr(self, "chunk_strategy", None) or strategy)

    def options(self) -> Mapping[str, Any]:
        """The settings that say how a file is read."""
        chunking = {"chunk_size", "chunk_overlap", "chunk_strategy"}
        return self.model_dump(exclude=chunking, exclude_unset=True)


class UniversalSettings(ParserSettings):
    """`auto` and `UniversalParser`: every kind of file."""

    chunk_strategy: ChunkStrategy | None = None
    use_ocr: bool = True
    ocr_language: Languages = "eng"
    ocr_endpoint: str | None = None
    min_chunk_size: Annotated[int, Field(ge=0)] | None = None
    max_chunk_size: Annotated[int, Field(ge=SMALLEST_CHUNK_SIZE)] | None = None

    @field_validator("ocr_endpoint")
    @classmethod
    def _reads_here(cls, endpoint: str | None) -> None:
        if endpoint is not None:
            raise ValueError("pictures are read on this machine; remove ocr_endpoint")


class PdfSettings(ParserSettings):
    """PDF."""

    chunk_strategy: Literal["paragraphs", "sentences", "characters", "pages", "semantic"] | None = None
    preserve_layout: bool = False
    extract_page_info: bool = True
    clean_text: bool = True
    combine_pages: bool = False
    extract_tables: bool = True
    use_ocr: bool = True
    ocr_language: Languages = "eng"
    extract_annotations: bool = False
    extract_links: bool = False
    extract_form_fields: bool = False
    extract_outlines: bool = False
    extract_images: bool = False
    extract_xmp_metadata: bool = False
    fallback_strategies: list[str] | None = None


class TableSettings(ParserSettings):
    """Rows of cells: `chunk_size` is a number of rows. Without it, a chunk holds the rows that fit 500 characters."""

    chunk_size: Rows | None = None
    chunk_overlap: Annotated[int, Field(ge=0, le=0)] | None = None
    na_values: list[str] = []
    skiprows: Annotated[int, Field(ge=0)] | None = None

    def chunking(self, strategy: ChunkStrategy) -> ChunkSettings:
        """How rows are put together."""
        wanted = getattr(self, "chunk_strategy", None) or strategy
        return ChunkSettings(DEFAULT_CHUNK_SIZE, 0, "rows" if wanted == "semantic" else wanted, self.chunk_size)


class CsvSettings(TableSettings):
    """CSV and TSV."""

    chunk_strategy: Literal["rows", "columns", "full", "semantic"] | None = None
    encoding: Encoding = "utf-8"
    delimiter: Letter | None = None
    quotechar: Letter = '"'
    field_mapping: dict[str, str] = {}
    combine_fields: bool = True


class ExcelSettings(TableSettings):
    """Excel and OpenDocument sheets."""

    chunk_strategy: Literal["rows", "columns", "full", "semantic"] | None = None
    sheets: list[str] | None = None
    header_row: Annotated[int, Field(ge=0)] = 0
    combine_sheets: bool = False
    data_only: Literal[True] = True
    extract_formulas: Literal[False] = False


class DocxSettings(ParserSettings):
    """Word."""

    chunk_strategy: Literal["paragraphs", "sentences", "characters", "semantic"] | None = None
    extract_tables: bool = True
    extract_headers: bool = False
    extract_footers: bool = False
    extract_comments: bool = False
    extract_images: bool = False
    preserve_formatting: bool = True
    include_header_footer: bool = False


class MarkdownSettings(ParserSettings):
    """Markdown."""

    chunk_strategy: Literal["sections", "headings", "paragraphs", "sentences", "characters", "semantic"] | None = None
    extract_code_blocks: bool = True
    extract_tables: bool = True
    extract_links: bool = True
    preserve_structure: bool = True


class TextSettings(ParserSettings):
    """Plain text and source code."""

    chunk_strategy: Literal["sentences", "paragraphs", "characters", "tokens", "semantic", "code"] | None = None
    encoding: Encoding = "utf-8"
    clean_text: bool = False
    semantic_buffer_size: int = 1
    semantic_breakpoint_percentile_threshold: int = 95
    token_model: str | None = None
    preserve_code_structure: bool = True
    detect_language: bool = True
    include_prev_next_rel: bool = True


class MailSettings(ParserSettings):
    """Mail."""

    chunk_strategy: Literal["sentences", "paragraphs", "characters", "email_sections"] | None = None
    extract_attachments: bool = True
    extract_headers: bool = True
    include_attachment_content: bool = True
    clean_text: bool = True
    preserve_formatting: bool = False
    encoding: Encoding = "utf-8"


ReadingKind = Literal["auto", "pdf", "table", "sheets", "word", "markdown", "text", "mail"]
"""How a file is read; `auto` goes by its name."""

_TEXT_EXTENSIONS = (
    "txt log rst json jsonl xml yaml yml toml ini cfg conf tex sql sh bat py js ts jsx tsx java c h cpp hpp cs go rs "
    "rb php swift kt scala r m pl lua css scss html htm"
)


@dataclass(frozen=True, slots=True)
class ParserType:
    """A parser's name and what it stands for.

    Attributes:
        kind: How it reads.
        extensions: The files it takes, without the dot; empty is every file.
        settings: Its settings.
        strategy: Where its chunks end when the settings don't say.
    """

    kind: ReadingKind
    extensions: frozenset[str]
    settings: type[ParserSettings]
    strategy: ChunkStrategy = "sentences"


def _type(
    kind: ReadingKind, extensions: str, settings: type[ParserSettings], strategy: ChunkStrategy = "sentences"
) -> ParserType:
    return ParserType(kind, frozenset(extensions.split()), settings, strategy)


PARSER_TYPES: Mapping[str, ParserType] = {
    "auto": _type("auto", "", UniversalSettings),
    "UniversalParser": _type("auto", "", UniversalSettings, "semantic"),
    "PDFParser_PyPDF2": _type("pdf", "pdf", PdfSettings, "paragraphs"),
    "PDFParser_LlamaIndex": _type("pdf", "pdf", PdfSettings),
    **{
        f"CSVParser_{library}": _type("table", "csv tsv", CsvSettings, "rows")
        for library in ("Pandas", "Python", "LlamaIndex")
    },
    **{
        f"ExcelParser_{library}": _type("sheets", "xlsx xlsm xltx xltm xls ods", ExcelSettings, "rows")
        for library in ("OpenPyXL", "Pandas", "LlamaIndex")
    },
    "DocxParser_PythonDocx": _type("word", "docx docm", DocxSettings, "paragraphs"),
    "DocxParser_LlamaIndex": _type("word", "docx docm", DocxSettings, "paragraphs"),
    "MarkdownParser_Python": _type("markdown", "md markdown mdown mkd mdx", MarkdownSettings, "sections"),
    "MarkdownParser_LlamaIndex": _type("markdown", "md markdown mdown mkd mdx", MarkdownSettings, "headings"),
    "TextParser_Python": _type("text", _TEXT_EXTENSIONS, TextSettings),
    "TextParser_LlamaIndex": _type("text", _TEXT_EXTENSIONS, TextSettings, "semantic"),
    "MsgParser": _type("mail", "msg eml", MailSettings, "email_sections"),
}
"""Every parser's name, as LlamaFarm spells it."""


def known(kinds: Mapping[str, _T], name: str, what: str) -> _T:
    """The entry of a registry; raises `ValueError` with the names there are."""
    try:
        return kinds[name]
    except KeyError:
        raise ValueError(f"{name!r} is no {what}: use one of {', '.join(kinds)}") from None
