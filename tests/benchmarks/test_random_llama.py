"""The model that benchmarks generate with: exact prompt lengths, answers that never end early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import random_llama
from benchmarks.raw_engine import RawEngine
from llamastead_server.workers.llamacpp import LoadOptions

SMALL = random_llama.Shape(
    width=64, layers=2, heads=2, key_heads=1, feed_forward=128, vocabulary=2000, context_length=512
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawEngine]:
    model = random_llama.make(tmp_path_factory.mktemp("model"), SMALL)
    with RawEngine(LoadOptions(model, context_length=512, slots=4, threads=1)) as raw:
        yield raw


def test_prompts_of_as_many_words_have_as_many_tokens(engine: RawEngine) -> None:
    prompts = [random_llama.prompt(str(seed), 20) for seed in range(4)]
    assert len(set(prompts)) == 4
    short, *others = {stream.prompt_tokens for stream in engine.burst(prompts, 4)}
    assert not others
    (longer,) = engine.burst([random_llama.prompt("5", 30)], 4)
    assert longer.prompt_tokens == short + 10


def test_answers_have_exactly_the_asked_length_and_a_piece_per_token(engine: RawEngine) -> None:
    prompts = [random_llama.prompt(f"answer {seed}", 10) for seed in range(4)]
    for stream in engine.burst(prompts, 100):
        assert stream.tokens == 100
        assert stream.events == 100
        assert stream.started < stream.first < stream.last


def test_the_file_is_made_once(tmp_path: Path) -> None:
    first = random_llama.make(tmp_path, SMALL)
    before = first.stat().st_mtime_ns
    assert random_llama.make(tmp_path, SMALL).stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
