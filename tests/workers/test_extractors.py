"""What each extractor draws from a document."""

from __future__ import annotations

from typing import Any

import pytest

from llamastead_server.domain.config.extractors import EXTRACTOR_TYPES
from llamastead_server.workers.extractors import extract
from llamastead_server.workers.reading import Part, Reading

TEXT = (
    "Dr. Ann Lee of Willow Farm Inc. paid $1,200 on 3 March 2026 at 14:30. The barn gate closes at nine. "
    "Write to ann@farm.test or see https://farm.test/rules/gate?x=1 for the rules of Section 7. "
    "The gate was painted 12/31/2025, that took two days. Tomorrow the goats go to pasture, and 95 % of them know the "
    "way to the barn gate. Backups are in s3://herd/backups/may.tar and in /var/lib/herd/notes.txt. Version v2.1.0 "
    "of the barn plan replaces 2.0.9. Call +1 555-123-4567!"
)
CHUNKS = [TEXT, "Llamas hum in the upper meadow. The upper meadow is mown in June, when the llamas hum."]
TABLE = [["name", "sound"], ["goat", "bleat"], ["llama", "hum"]]


def run(*extractors: tuple[str, dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reading = Reading(
        "markdown",
        [Part(text) for text in CHUNKS],
        tables=[(3, TABLE)],
        links=["mailto:bo@farm.test"],
        headings=[(1, "Rules"), (2, "The barn gate"), (4, "Deep")],
    )
    return extract(reading, CHUNKS, extractors)


def drawn(name: str, **config: Any) -> dict[str, Any]:
    return run((name, config))[1][0]


def test_statistics_count_and_grade_the_text() -> None:
    found = drawn("ContentStatisticsExtractor", include_sentiment_indicators=True)
    assert found["character_count"] == len(TEXT)
    assert {"word_count", "sentence_count", "unique_word_count", "reading_ease"} <= set(found)
    assert (found["question_count"], found["exclamation_count"]) == (1, 1)
    plain = drawn("ContentStatisticsExtractor", include_readability=False, include_vocabulary=False)
    assert not {"reading_ease", "unique_word_count"} & set(plain)


def test_dates_are_iso_and_the_first_and_last_are_scalars() -> None:
    found = drawn("DateTimeExtractor")
    assert found["dates"] == ["2026-03-03", "2025-12-31"]
    assert (found["first_date"], found["last_date"]) == ("2025-12-31", "2026-03-03")
    assert (found["times"], found["durations"], found["relative_dates"]) == (["14:30"], ["two days"], ["Tomorrow"])
    assert "times" not in drawn("DateTimeExtractor", extract_times=False)


@pytest.mark.parametrize("text", ["31.02.2026", "2026-13-01", "99/99/2026"])
def test_impossible_dates_are_none(text: str) -> None:
    found = extract(Reading("text", [Part(text)]), [text], [("DateTimeExtractor", {})])[0]
    assert "dates" not in found


def test_entities_are_found_by_patterns() -> None:
    entities = drawn("EntityExtractor")["entities"]
    assert entities["PERSON"] == ["Dr. Ann Lee"]
    assert entities["ORG"] == ["Willow Farm Inc"]
    assert entities["MONEY"] == ["$1,200"]
    assert entities["EMAIL"] == ["ann@farm.test"]
    assert entities["PERCENT"] == ["95 %"]
    assert entities["LAW"] == ["Section 7"]
    assert list(drawn("EntityExtractor", entity_types=["MONEY", "GPE"])["entities"]) == ["MONEY"]


def test_headings_belong_to_the_chunks_they_stand_in() -> None:
    whole, chunks = run(("HeadingExtractor", {"max_level": 2}))
    assert whole["headings"] == ["Rules", "The barn gate"]
    assert whole["outline"] == [{"level": 1, "title": "Rules"}, {"level": 2, "title": "The barn gate"}]
    assert chunks[0]["heading"] == "The barn gate"
    assert chunks[1] == {}


@pytest.mark.parametrize("algorithm", ["rake", "yake", "tfidf", "textrank"])
def test_key_phrases_are_in_the_text_and_as_many_as_asked(algorithm: str) -> None:
    found = drawn("KeywordExtractor", algorithm=algorithm, max_keywords=4)["keywords"]
    assert 0 < len(found) <= 4
    assert all(phrase.lower() in TEXT.lower() for phrase in found)
    stopped = drawn("KeywordExtractor", algorithm=algorithm, stop_words=["barn", "gate"])["keywords"]
    assert not [phrase for phrase in stopped if {"barn", "gate"} & set(phrase.lower().split())]


@pytest.mark.parametrize(
    ("name", "key"),
    [("YAKEExtractor", "yake_keywords"), ("RAKEExtractor", "rake_keywords"), ("TFIDFExtractor", "tfidf_keywords")],
)
def test_each_algorithm_has_its_own_name(name: str, key: str) -> None:
    assert len(run((name, {"max_keywords": 3}))[1][1][key]) <= 3


def test_links_paths_and_patterns() -> None:
    links, chunks = run(("LinkExtractor", {}))
    assert links["links"] == ["https://farm.test/rules/gate?x=1"]
    assert links["emails"] == ["ann@farm.test", "bo@farm.test"]
    assert chunks[0]["domains"] == ["farm.test"]
    paths = drawn("PathExtractor")
    assert paths == {
        "file_paths": ["/var/lib/herd/notes.txt"],
        "url_paths": ["/rules/gate?x=1"],
        "s3_paths": ["s3://herd/backups/may.tar"],
    }
    custom = [{"name": "meadow", "pattern": r"upper \w+"}]
    patterns = run(("PatternExtractor", {"predefined_patterns": ["version"], "custom_patterns": custom}))[1]
    assert patterns[0]["patterns"] == {"version": ["v2.1.0", "2.0.9"]}
    assert patterns[1]["patterns"] == {"meadow": ["upper meadow"]}
    placed = run(("PatternExtractor", {"custom_patterns": custom, "return_positions": True}))[1][1]["patterns"][
        "meadow"
    ]
    assert placed == [{"value": "upper meadow", "start": 18, "end": 30}]


@pytest.mark.parametrize("algorithm", ["textrank", "lexrank", "lsa", "luhn"])
def test_a_summary_is_sentences_of_the_file_in_their_order(algorithm: str) -> None:
    whole, chunks = run(("SummaryExtractor", {"algorithm": algorithm, "summary_sentences": 2}))
    assert 0 < len(whole["summary"]) < len(TEXT)
    assert whole["key_phrases"]
    assert chunks == [{}, {}]


@pytest.mark.parametrize(
    ("output", "data"),
    [
        ("dict", [{"name": "goat", "sound": "bleat"}, {"name": "llama", "sound": "hum"}]),
        ("list", TABLE),
        ("csv", "name,sound\ngoat,bleat\nllama,hum\n"),
        ("markdown", "| name | sound |\n| --- | --- |\n| goat | bleat |\n| llama | hum |"),
    ],
)
def test_tables_come_in_the_form_that_was_asked_for(output: str, data: object) -> None:
    whole, _ = run(("TableExtractor", {"output_format": output}))
    assert whole == {"table_count": 1, "tables": [{"page": 3, "rows": 3, "data": data}]}
    assert run(("TableExtractor", {"min_rows": 4}))[0] == {"table_count": 0}


def test_universal_does_it_all_and_names_the_language() -> None:
    whole, chunks = run(("UniversalExtractor", {"keyword_count": 3}))
    assert {"word_count", "keywords", "entities", "language", "summary", "has_tables"} <= set(whole)
    assert whole["language"] in ("en", "eng")
    assert len(chunks[1]["keywords"]) <= 3


@pytest.mark.parametrize("name", EXTRACTOR_TYPES)
@pytest.mark.parametrize(
    "text", ["", " ", "x", "日本語です。", "the and of", "\x00\ud800".encode(errors="replace").decode()]
)
def test_no_text_is_too_strange(name: str, text: str) -> None:
    extract(Reading("text", [Part(text)]), [text], [(name, {})])


@pytest.mark.parametrize("name", EXTRACTOR_TYPES)
def test_what_is_found_stays_small(name: str) -> None:
    text = " ".join(
        f"mail{n}@farm.test https://farm{n}.test/a{n} Dr. Name{n} paid ${n} on 2026-03-{n % 28 + 1:02}."
        for n in range(300)
    )
    whole, chunks = extract(Reading("text", [Part(text)]), [text], [(name, {})])
    for found in (whole, chunks[0]):
        assert len(str(found)) < 20_000


@pytest.mark.parametrize("name", ["KeywordExtractor", "YAKEExtractor", "RAKEExtractor", "TFIDFExtractor"])
def test_a_short_text_has_key_phrases_too_and_numbers_are_none(name: str) -> None:
    text = "The gate closes at 21:00."
    (phrases,) = extract(Reading("text", [Part(text)]), [text], [(name, {})])[0].values()
    assert "gate" in " ".join(phrases)
    assert not set("0123456789") & set("".join(phrases))
