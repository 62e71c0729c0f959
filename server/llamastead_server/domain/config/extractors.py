"""The extractors a strategy can name: LlamaFarm's names and their settings.

Settings that only concern another library are accepted under their LlamaFarm names and have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

_LONGEST_PATTERN = 1000
_MOST_PATTERNS = 50

Count = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]


class ExtractorSettings(BaseModel):
    """Settings every extractor has."""

    model_config = ConfigDict(extra="forbid", strict=True)

    enabled: bool = True


class StatisticsSettings(ExtractorSettings):
    """`ContentStatisticsExtractor`: counts and readability."""

    include_readability: bool = True
    include_vocabulary: bool = True
    include_structure: bool = True
    include_sentiment_indicators: bool = False


class DateTimeSettings(ExtractorSettings):
    """`DateTimeExtractor`: dates in ISO form, times, durations, and words such as "tomorrow"."""

    extract_relative: bool = True
    extract_times: bool = True
    extract_durations: bool = True
    fuzzy_parsing: bool = True
    default_timezone: str = "UTC"
    date_format: Literal["ISO"] = "ISO"
    prefer_dates_from: Literal["past", "future", "current"] = "current"


class EntitySettings(ExtractorSettings):
    """`EntityExtractor`, by patterns alone: types that no pattern can tell stay empty."""

    entity_types: list[Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z_]*$")]] | None = None
    min_entity_length: Count = 2
    model: str | None = None
    use_fallback: bool = True
    merge_entities: bool = True
    confidence_threshold: Share = 0.7


class HeadingSettings(ExtractorSettings):
    """`HeadingExtractor`: the headings of Markdown, HTML, Word and other structured documents."""

    max_level: Annotated[int, Field(ge=1, le=6)] = 6
    include_hierarchy: bool = True
    extract_outline: bool = True
    min_heading_length: Count = 3


class YakeSettings(ExtractorSettings):
    """`YAKEExtractor`: key phrases by the YAKE algorithm."""

    extractor_type: Literal["yake"] | None = None
    max_keywords: Count = 10
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    max_ngram_size: Annotated[int, Field(ge=1, le=5)] = 3
    deduplication_threshold: Share = 0.9


class RakeSettings(ExtractorSettings):
    """`RAKEExtractor`: key phrases by the RAKE algorithm."""

    extractor_type: Literal["rake"] | None = None
    max_keywords: Count = 10
    min_length: Count = 1
    max_length: Annotated[int, Field(ge=1, le=10)] = 4
    min_frequency: Count = 1
    stop_words: list[str] = []
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"


class TfidfSettings(ExtractorSettings):
    """`TFIDFExtractor`: the words and phrases a chunk has more of than the other chunks of its file."""

    extractor_type: Literal["tfidf"] | None = None
    max_keywords: Count = 10
    max_ngram_size: Annotated[int, Field(ge=1, le=5)] = 2
    min_frequency: Count = 1
    stop_words: list[str] = []
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"


class KeywordSettings(ExtractorSettings):
    """`KeywordExtractor`: key phrases by the algorithm it names."""

    extractor_type: Literal["keyword"] | None = None
    algorithm: Literal["rake", "yake", "tfidf", "textrank"] = "rake"
    max_keywords: Count = 10
    min_length: Count = 1
    max_length: Annotated[int, Field(ge=1, le=10)] = 4
    min_frequency: Count = 1
    stop_words: list[str] = []
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    max_ngram_size: Annotated[int, Field(ge=1, le=5)] = 3
    deduplication_threshold: Share = 0.9


class LinkSettings(ExtractorSettings):
    """`LinkExtractor`: URLs, mail addresses and domains. Nothing is fetched."""

    extract_urls: bool = True
    extract_emails: bool = True
    extract_domains: bool = True
    validate_urls: bool = False
    resolve_redirects: Literal[False] = False


class PathSettings(ExtractorSettings):
    """`PathExtractor`: file paths, paths of URLs and S3 paths."""

    extract_file_paths: bool = True
    extract_urls: bool = True
    extract_s3_paths: bool = True
    normalize_paths: bool = True
    validate_paths: Literal[False] = False


class CustomPattern(BaseModel):
    """A regular expression and the name its matches get."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    pattern: Annotated[str, Field(min_length=1, max_length=_LONGEST_PATTERN)]
    description: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


PatternName = Literal[
    "email", "phone", "url", "ip", "ip_address", "ssn", "credit_card", "zip_code", "file_path", "version", "date"
]  # fmt: skip


class PatternSettings(ExtractorSettings):
    """`PatternExtractor`: matches of known patterns and of one's own."""

    predefined_patterns: list[PatternName] = []
    custom_patterns: Annotated[list[CustomPattern], Field(max_length=_MOST_PATTERNS)] = []
    case_sensitive: bool = False
    return_positions: bool = False
    include_context: bool = False
    max_matches_per_pattern: Annotated[int, Field(ge=1, le=1000)] = 100
    deduplicate_matches: bool = True


class SummarySettings(ExtractorSettings):
    """`SummaryExtractor`: the sentences of the file that say most."""

    summary_sentences: Annotated[int, Field(ge=1, le=10)] = 3
    algorithm: Literal["textrank", "lsa", "luhn", "lexrank"] = "textrank"
    include_key_phrases: bool = True
    include_statistics: bool = True
    min_sentence_length: Annotated[int, Field(ge=1)] = 10
    max_sentence_length: Annotated[int, Field(ge=10)] = 500


class TableExtractorSettings(ExtractorSettings):
    """`TableExtractor`: the tables of the file."""

    output_format: Literal["dict", "list", "csv", "markdown"] = "dict"
    extract_headers: bool = True
    merge_cells: bool = True
    min_rows: Count = 2


class UniversalExtractorSettings(ExtractorSettings):
    """`UniversalExtractor`: counts, key phrases, entities, the language and a summary in one."""

    keyword_count: Count = 10
    extract_entities: bool = True
    generate_summary: bool = True
    summary_sentences: Annotated[int, Field(ge=1, le=10)] = 3
    detect_language: bool = True
    use_gliner: Literal[False] = False


EXTRACTOR_TYPES: Mapping[str, type[ExtractorSettings]] = {
    "ContentStatisticsExtractor": StatisticsSettings,
    "DateTimeExtractor": DateTimeSettings,
    "EntityExtractor": EntitySettings,
    "HeadingExtractor": HeadingSettings,
    "KeywordExtractor": KeywordSettings,
    "LinkExtractor": LinkSettings,
    "PathExtractor": PathSettings,
    "PatternExtractor": PatternSettings,
    "RAKEExtractor": RakeSettings,
    "SummaryExtractor": SummarySettings,
    "TFIDFExtractor": TfidfSettings,
    "TableExtractor": TableExtractorSettings,
    "UniversalExtractor": UniversalExtractorSettings,
    "YAKEExtractor": YakeSettings,
}
"""Every extractor's name, as LlamaFarm spells it."""
