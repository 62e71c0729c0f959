"""Which parser takes which file, and how it then reads it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llamastead_server.domain.config.extractors import EXTRACTOR_TYPES
from llamastead_server.domain.config.parsers import PARSER_TYPES
from llamastead_server.domain.config.processing import BUILT_IN_STRATEGIES, DataProcessingStrategy
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.config.rag import Rag
from llamastead_server.domain.datasets.files import DocumentError
from llamastead_server.domain.datasets.parsing_rules import ParsingRules
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.errors import ValidationFailed


def rules(*parsers: dict[str, Any] | str, extractors: list[Any] | None = None) -> ParsingRules:
    return ParsingRules(
        DataProcessingStrategy.model_validate({"name": "s", "parsers": list(parsers), "extractors": extractors or []}),
        "main_db",
    )


TAKES = {
    "PDFParser_PyPDF2": "a.pdf",
    "PDFParser_LlamaIndex": "A.PDF",
    "CSVParser_Pandas": "a.csv",
    "CSVParser_Python": "a.tsv",
    "CSVParser_LlamaIndex": "a.csv",
    "ExcelParser_OpenPyXL": "a.xlsx",
    "ExcelParser_Pandas": "a.xls",
    "ExcelParser_LlamaIndex": "a.xlsm",
    "DocxParser_PythonDocx": "a.docx",
    "DocxParser_LlamaIndex": "a.docm",
    "MarkdownParser_Python": "a.md",
    "MarkdownParser_LlamaIndex": "a.markdown",
    "TextParser_Python": "a.txt",
    "TextParser_LlamaIndex": "a.py",
    "MsgParser": "a.msg",
}


@pytest.mark.parametrize("name", PARSER_TYPES)
def test_every_named_parser_takes_its_own_kind_alone(name: str) -> None:
    own = TAKES.get(name, "a.anything")
    assert rules(name).settings(own)[0].kind == PARSER_TYPES[name].kind
    if name in TAKES:
        with pytest.raises(DocumentError, match=r"takes \.\w+"):
            rules(name).settings("a.epub")


def test_the_parser_of_highest_priority_that_takes_a_file_reads_it() -> None:
    chosen = rules(
        "auto",
        {"type": "TextParser_Python", "priority": 90, "config": {"chunk_size": 100}},
        {"type": "MarkdownParser_Python", "priority": 80},
    )
    assert [chosen.settings(name)[0].kind for name in ("a.txt", "a.md", "a.pdf")] == ["text", "markdown", "auto"]
    assert chosen.settings("a.txt")[0].chunking.size == 100


@pytest.mark.parametrize(
    ("condition", "taken", "refused"),
    [
        ({"file_extensions": [".DAT", "log"]}, ["a.dat", "b.LOG"], ["a.txt"]),
        ({"file_include_patterns": ["report*"]}, ["Report-1.txt"], ["other.txt", "report.docx"]),
        ({"mime_types": ["application/x-notes"]}, ["a.notes"], ["a.txt"]),
    ],
)
def test_conditions_say_which_files_are_taken(condition: dict[str, Any], taken: list[str], refused: list[str]) -> None:
    chosen = rules({"type": "TextParser_Python", **condition})
    mime = "application/x-notes"
    for name in taken:
        assert chosen.settings(name, mime if name.endswith(".notes") else "text/plain")[0].kind == "text"
    for name in refused:
        with pytest.raises(DocumentError):
            chosen.settings(name, "text/plain")


def test_a_fallback_reads_with_the_same_sizes() -> None:
    parser = {"type": "PDFParser_PyPDF2", "fallback_parser": "TextParser_Python", "config": {"chunk_size": 300}}
    first, second = rules(parser).settings("a.pdf")
    assert (first.kind, second.kind, second.chunking.size) == ("pdf", "text", 300)


def test_overrides_replace_single_settings() -> None:
    chosen = rules({"type": "auto", "config": {"chunk_size": 300, "chunk_overlap": 20}})
    assert chosen.settings("a.txt", overrides={"chunk_overlap": 0})[0].chunking.size == 300
    with pytest.raises(ValidationFailed) as refused:
        chosen.settings("a.txt", overrides={"chunk_overlap": 200})
    assert list(refused.value.details) == ["parser_overrides.chunk_overlap"]


def test_extractors_run_by_priority_on_the_files_they_are_for() -> None:
    chosen = rules(
        extractors=[
            "LinkExtractor",
            {"type": "TableExtractor", "priority": 90, "file_include_patterns": ["*.pdf"]},
            {"type": "PathExtractor", "config": {"enabled": False}},
        ]
    )
    assert [name for name, _ in chosen.settings("a.pdf")[0].extractors] == ["TableExtractor", "LinkExtractor"]
    assert [name for name, _ in chosen.settings("a.txt")[0].extractors] == ["LinkExtractor"]


def test_extractors_run_for_the_databases_that_require_them() -> None:
    strategy = DataProcessingStrategy.model_validate(
        {
            "name": "s",
            "extractors": [
                {"type": "LinkExtractor", "required_for": ["main_db", "other_db"], "condition": None},
                {"type": "TableExtractor", "required_for": ["other_db"]},
                {"type": "PathExtractor", "required_for": []},
            ],
        }
    )

    def run(database: str) -> list[str]:
        return [name for name, _ in ParsingRules(strategy, database).settings("a.txt")[0].extractors]

    assert run("main_db") == ["LinkExtractor", "PathExtractor"]
    assert run("other_db") == ["LinkExtractor", "TableExtractor", "PathExtractor"]
    assert run("third_db") == ["PathExtractor"]


def test_a_strategy_refers_to_parsers_by_name() -> None:
    own = {"name": "fine", "type": "PDFParser_PyPDF2", "config": {"chunk_size": 200}}
    shared = [{"name": "fine", "type": "auto"}, {"name": "coarse", "type": "TextParser_Python", "priority": 10}]
    names = ["fine", "coarse", "MarkdownParser_Python", "rag.components.parsers.CSVParser_Pandas"]
    for parsers in ([own], {"fine": {key: value for key, value in own.items() if key != "name"}}):
        raw = {"name": "p", "namespace": "n", "runtime": {"model": "m"}, "components": {"parsers": shared},
               "rag": {"components": {"parsers": parsers},
                       "data_processing_strategies": [{"name": "s", "parsers": names}]}}  # fmt: skip
        config = ProjectConfig.parse(raw)
        chosen = ParsingRules(config.rag.processing_strategy("s"), "main_db")
        kinds = [chosen.settings(f"a.{ending}")[0].kind for ending in ("pdf", "txt", "md", "csv")]
        assert kinds == ["pdf", "text", "markdown", "table"]
        assert chosen.settings("a.pdf")[0].chunking.size == 200
        assert config.plain()["rag"]["data_processing_strategies"] == [{"name": "s", "parsers": names}]


@pytest.mark.parametrize("name", PARSER_TYPES)
def test_settings_survive_the_way_to_the_child(name: str) -> None:
    settings = rules({"type": name}, extractors=list(EXTRACTOR_TYPES)).settings(TAKES.get(name, "a.txt"))[0]
    assert ReadSettings.from_plain(settings.plain()).plain() == settings.plain()


def test_rows_are_counted_by_table_parsers_and_characters_by_the_others() -> None:
    table = rules({"type": "CSVParser_Pandas", "config": {"chunk_size": 20}}).settings("a.csv")[0].chunking
    assert (table.rows, table.size, table.strategy) == (20, 500, "rows")
    text = rules({"type": "TextParser_Python", "config": {"chunk_size": 200}}).settings("a.txt")[0].chunking
    assert (text.rows, text.size, text.overlap) == (None, 200, 50)


def test_built_in_strategies_always_resolve() -> None:
    for rag in (Rag(), Rag.model_validate({"data_processing_strategies": [{"name": "mine", "parsers": ["auto"]}]})):
        assert set(BUILT_IN_STRATEGIES) <= set(rag.strategy_names())
        for name in BUILT_IN_STRATEGIES:
            assert ParsingRules(rag.processing_strategy(name), "main_db").settings("a.pdf")


PDF, TEXT = "PDFParser_PyPDF2", "TextParser_Python"
UNCLOSED = {"custom_patterns": [{"name": "a", "pattern": "("}]}


@pytest.mark.parametrize(
    ("kind", "entry", "path"),
    [
        ("parsers", {"type": "Nonsense"}, "type"),
        ("parsers", {"type": "auto", "fallback_parser": "Nonsense"}, "fallback_parser"),
        ("parsers", {"type": PDF, "config": {"chunk_strategy": "rows"}}, "config.chunk_strategy"),
        ("parsers", {"type": PDF, "config": {"clean_text": "yes"}}, "config.clean_text"),
        ("parsers", {"type": PDF, "config": {"chunk_sise": 100}}, "config.chunk_sise"),
        ("parsers", {"type": TEXT, "config": {"encoding": "klingon"}}, "config.encoding"),
        ("parsers", {"type": "auto", "priority": "high"}, "priority"),
        ("extractors", "Nonsense", ""),
        ("extractors", {"type": "YAKEExtractor", "condition": "doc.type == 'code'"}, "condition"),
        ("extractors", {"type": "YAKEExtractor", "required_for": "main_db"}, "required_for"),
        ("extractors", {"type": "YAKEExtractor", "config": {"max_keywords": 0}}, "config.max_keywords"),
        ("extractors", {"type": "PatternExtractor", "config": UNCLOSED}, "config.custom_patterns.0.pattern"),
    ],
)
def test_what_can_have_no_effect_is_refused_by_its_path(kind: str, entry: object, path: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DataProcessingStrategy.model_validate({"name": "s", kind: [entry]})
    found = [".".join(map(str, item["loc"])) for item in refused.value.errors()]
    assert found == [f"{kind}.0.{path}".rstrip(".")]
