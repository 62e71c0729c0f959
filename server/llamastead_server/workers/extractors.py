"""Draws metadata from a document: what LlamaFarm's extractors do, each under its name.

Each extractor runs over every chunk and over the file as a whole. Lists are cut to what metadata can hold.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamastead_server.domain.config.extractors import EXTRACTOR_TYPES
from llamastead_server.workers import text_patterns
from llamastead_server.workers.key_phrases import KeyPhrases, sentences, summary
from llamastead_server.workers.reading import Reading
from llamastead_server.workers.tables import Cells

Settings = Mapping[str, Any]
Draw = Callable[[str], dict[str, Any]]
"""What an extractor draws from one text."""

_LONGEST_TEXT = 1_000_000
_MOST_TABLES = 20
_MOST_ROWS = 50
_VOWELS = re.compile(r"[aeiouy]+", re.I)
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_CODE = re.compile(r"```|^\s*(?:def|class|function|import|from|#include|public|const)\s+\w", re.M)


def wants_outline(extractors: Sequence[tuple[str, Settings]]) -> bool:
    """Whether an extractor needs the document's headings."""
    return any(name == "HeadingExtractor" for name, _ in extractors)


def extract(
    reading: Reading, texts: Sequence[str], extractors: Sequence[tuple[str, Settings]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the extractors and returns what they found in the file and in each chunk.

    Args:
        reading: The document.
        texts: Its chunks.
        extractors: Type and settings of each, in the order they run.
    """
    of_file: dict[str, Any] = {}
    of_chunks: list[dict[str, Any]] = [{} for _ in texts]
    whole = "\n\n".join(part.text for part in reading.parts)[:_LONGEST_TEXT]
    for name, config in extractors:
        settings = EXTRACTOR_TYPES[name].model_validate(config).model_dump()
        draw, draw_whole = _EXTRACTORS[name](settings, reading, texts)
        of_file |= _present(draw_whole(whole))
        for found, text in zip(of_chunks, texts, strict=True):
            found |= _present(draw(text))
    return of_file, of_chunks


def _present(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value not in ("", [], {}, None)}


def _statistics(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
    def draw(text: str) -> dict[str, Any]:
        words = _WORD.findall(text)
        found: dict[str, Any] = {"word_count": len(words), "character_count": len(text)}
        parts = len(sentences(text)) or 1
        if settings["include_structure"]:
            found |= {"sentence_count": parts, "paragraph_count": len(re.findall(r"\n\s*\n", text.strip())) + 1}
        if settings["include_vocabulary"] and words:
            different = len({word.lower() for word in words})
            found |= {"unique_word_count": different, "lexical_diversity": round(different / len(words), 3)}
        if settings["include_readability"] and words:
            syllables = sum(max(1, len(_VOWELS.findall(word))) for word in words)
            ease = 206.835 - 1.015 * len(words) / parts - 84.6 * syllables / len(words)
            found |= {"reading_ease": round(ease, 1), "average_sentence_length": round(len(words) / parts, 1)}
        if settings["include_sentiment_indicators"]:
            found |= {"question_count": text.count("?"), "exclamation_count": text.count("!")}
        return found

    return draw, draw


def _headings(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
    shown = [
        (level, title)
        for level, title in reading.headings
        if level <= settings["max_level"] and len(title) >= settings["min_heading_length"]
    ]

    def draw(text: str) -> dict[str, Any]:
        inside = text_patterns.unique(title for _, title in shown if title in text)
        return {"headings": inside, "heading": inside[0] if inside else ""}

    def draw_whole(text: str) -> dict[str, Any]:
        found: dict[str, Any] = {"headings": text_patterns.unique((title for _, title in shown), 100)}
        if settings["extract_outline"] or settings["include_hierarchy"]:
            found["outline"] = [{"level": level, "title": title} for level, title in shown[:100]]
        return found

    return draw, draw_whole


def _phrases(algorithm: str, key: str) -> Callable[[Settings, Reading, Sequence[str]], tuple[Draw, Draw]]:
    def make(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
        phrases = KeyPhrases(algorithm or settings["algorithm"], settings, texts)
        return (lambda text: {key: phrases.of(text)}), (lambda text: {key: phrases.of(text)})

    return make


def _by_pattern(find: Callable[[str, Settings], dict[str, Any]]) -> Any:
    def make(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
        return (lambda text: find(text, settings)), (lambda text: find(text, settings))

    return make


def _links(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
    return (
        lambda text: text_patterns.links(text, (), settings),
        lambda text: text_patterns.links(text, reading.links, settings),
    )


def _summary(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
    def draw_whole(text: str) -> dict[str, Any]:
        found: dict[str, Any] = {"summary": summary(text, settings)}
        if settings["include_key_phrases"]:
            found["key_phrases"] = KeyPhrases("yake", {"max_keywords": 10}, texts).of(text)
        if settings["include_statistics"]:
            found |= {"word_count": len(_WORD.findall(text)), "sentence_count": len(sentences(text))}
        return found

    # A chunk is its own summary.
    return (lambda text: {}), draw_whole


def _tables(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
    tables = [(page, cells) for page, cells in reading.tables if len(cells) >= settings["min_rows"]]
    first_rows = [" ".join(str(cell) for cell in cells[0]).split() for _, cells in tables]

    def draw(text: str) -> dict[str, Any]:
        return {"has_table": any(row and all(word in text for word in row) for row in first_rows)}

    def draw_whole(text: str) -> dict[str, Any]:
        shown = [
            {"page": page, "rows": len(cells), "data": _table(cells[:_MOST_ROWS], settings)}
            for page, cells in tables[:_MOST_TABLES]
        ]
        return {"table_count": len(tables), "tables": [_present(table) for table in shown]}

    return draw, draw_whole


def _table(cells: Cells, settings: Settings) -> Any:
    rows = [[str(cell)[: text_patterns.LONGEST_VALUE] for cell in row] for row in cells]
    match settings["output_format"]:
        case "csv":
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(rows)
            return out.getvalue()
        case "markdown":
            ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
            return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in ruled)
        case "dict" if settings["extract_headers"]:
            return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
    return rows


def _universal(settings: Settings, reading: Reading, texts: Sequence[str]) -> tuple[Draw, Draw]:
    phrases = KeyPhrases("yake", {"max_keywords": settings["keyword_count"], "deduplication_threshold": 0.7}, texts)
    known = {"entity_types": None, "min_entity_length": 2}
    lengths = {"min_sentence_length": 10, "max_sentence_length": 500, "algorithm": "luhn"}

    def draw(text: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "word_count": len(_WORD.findall(text)),
            "character_count": len(text),
            "sentence_count": len(sentences(text)),
            "keywords": phrases.of(text),
            "has_code": bool(_CODE.search(text)),
        }
        if settings["extract_entities"]:
            found |= text_patterns.entities(text, known)
        return found

    def draw_whole(text: str) -> dict[str, Any]:
        found = draw(text) | {"has_tables": bool(reading.tables)}
        if settings["detect_language"]:
            found["language"] = _language(text)
        if settings["generate_summary"]:
            found["summary"] = summary(text, {**lengths, "summary_sentences": settings["summary_sentences"]})
        return found

    return draw, draw_whole


def _language(text: str) -> str:
    import kreuzberg

    config = kreuzberg.ExtractionConfig(  # type: ignore[call-arg]  # its stub lacks disable_ocr
        use_cache=False, disable_ocr=True, language_detection=kreuzberg.LanguageDetectionConfig(enabled=True)
    )
    result = kreuzberg.extract_bytes_sync(text[:20_000].encode(), "text/plain", config)
    return str((result.detected_languages or [""])[0])


_EXTRACTORS: Mapping[str, Callable[[Settings, Reading, Sequence[str]], tuple[Draw, Draw]]] = {
    "ContentStatisticsExtractor": _statistics,
    "DateTimeExtractor": _by_pattern(text_patterns.date_time),
    "EntityExtractor": _by_pattern(text_patterns.entities),
    "HeadingExtractor": _headings,
    "KeywordExtractor": _phrases("", "keywords"),
    "LinkExtractor": _links,
    "PathExtractor": _by_pattern(text_patterns.paths),
    "PatternExtractor": _by_pattern(text_patterns.pattern_matches),
    "RAKEExtractor": _phrases("rake", "rake_keywords"),
    "SummaryExtractor": _summary,
    "TFIDFExtractor": _phrases("tfidf", "tfidf_keywords"),
    "TableExtractor": _tables,
    "UniversalExtractor": _universal,
    "YAKEExtractor": _phrases("yake", "yake_keywords"),
}
