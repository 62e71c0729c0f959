"""These tests need an NVIDIA GPU: they are collected only by `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest

LAST = (
    "test_gptq_weights_mean_what_they_say",
    "test_a_quantised_cache_stays_close",
    "test_speculation_answers_to_the_limit",
    "test_unloading_gives_the_memory_back",
    "test_a_worker_killed_in_a_stream_fails_it_and_serves_the_next",
    "test_an_exl2_conversion_loads_and_resembles_the_model",
)
FIRST = (
    "test_logits_are_those_of_transformers",
    "test_staggered_batched_requests_equal_their_single_runs",
    "test_an_adapter_changes_the_model_as_merged_weights_do",
)
"""What tells most at least cost: if the logits are wrong, nothing else means anything."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves this folder out of every run that does not ask for the marker `gpu`."""
    return None if config.getoption("markexpr") == "gpu" else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the most telling first and what takes longest last: the time on a GPU may end before the tests do."""

    def place(item: pytest.Item) -> int:
        name = getattr(item, "originalname", item.name)
        return FIRST.index(name) if name in FIRST else 100 + LAST.index(name) if name in LAST else 50

    if all(Path(__file__).parent in item.path.parents for item in items):
        items.sort(key=place)
