from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.domain.datasets.chunking import CHUNK_STRATEGIES, ChunkSettings, ChunkStrategy, spans
from llamastead_server.domain.errors import ValidationFailed

PROSE = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            ["The gate closes at 21:00. ", "e.g. a cow! ", "\n\n", "\n", " ", "x" * 130, "日本語です。", "\u2028"]
        ),
    ),
    max_size=60,
).map("".join)
SETTINGS = st.integers(50, 200).flatmap(
    lambda size: st.builds(ChunkSettings, size=st.just(size), overlap=st.integers(0, size // 2))
)


@given(PROSE, SETTINGS)
def test_no_text_is_lost_and_every_bound_holds(text: str, settings: ChunkSettings) -> None:
    cut = list(spans(text, settings))
    covered = set()
    for start, end in cut:
        assert 0 < end - start <= settings.size
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
        covered.update(range(start, end))
    assert covered >= {place for place, letter in enumerate(text) if not letter.isspace()}
    for (start, end), (next_start, next_end) in itertools.pairwise(cut):
        assert start < next_start
        assert end < next_end
        assert end - next_start <= settings.overlap


@given(PROSE, SETTINGS)
def test_the_same_text_is_always_cut_the_same(text: str, settings: ChunkSettings) -> None:
    assert list(spans(text, settings)) == list(spans(text, settings))


def test_chunks_of_prose_end_at_sentences() -> None:
    folder = Path(__file__).parents[3] / "tools" / "tiny_model" / "corpus"
    text = "\n\n".join(" ".join(path.read_text().split()) for path in sorted(folder.glob("*.md")))
    assert len(text) > 20_000
    chunks = [text[start:end] for start, end in spans(text, ChunkSettings(500, 50))]
    at_sentences = sum(bool(re.search(r"[.!?…][\"'”’)\]]*$", chunk)) for chunk in chunks)
    assert at_sentences / len(chunks) > 0.9


def test_text_that_fits_is_one_chunk() -> None:
    assert list(spans("  One. Two. Three.\n", ChunkSettings(100, 10))) == [(2, 18)]


def test_text_without_spaces_is_cut_at_the_size() -> None:
    assert list(spans("x" * 120, ChunkSettings(50, 0))) == [(0, 50), (50, 100), (100, 120)]


def test_blank_text_has_no_chunks() -> None:
    assert list(spans(" \n\t ", ChunkSettings(50, 0))) == []


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (49, 0), (50_001, 0), (100, 51), (100, -1)])
def test_impossible_settings_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValidationFailed, match="chunk_"):
        ChunkSettings(size, overlap)


@pytest.mark.parametrize("strategy", CHUNK_STRATEGIES)
def test_long_white_space_ends_no_text_and_repeats_none(strategy: ChunkStrategy) -> None:
    text = "word a\n" + " " * 300 + "x" * 30
    found = itertools.islice(spans(text, ChunkSettings(50, 25, strategy)), 10)
    assert " ".join(text[start:end] for start, end in found).split() == text.split()
