"""The arithmetic behind every published ratio."""

from __future__ import annotations

import threading

import pytest

from benchmarks.measure import (
    Result,
    Table,
    Target,
    differences,
    interleaved,
    percentile,
    ratios,
    spread,
    together,
)


def test_spread_is_the_median_and_the_quartiles() -> None:
    found = spread([5, 1, 2, 4, 3])
    assert (found.low, found.median, found.high) == (2, 3, 4)
    assert spread([7.0]).text(".1f") == "7.0 (7.0 to 7.0)"


def test_ratios_compare_the_samples_of_one_round() -> None:
    # The machine got ten times slower in the last round: medians taken apart would say 0.5.
    assert ratios([90, 90, 9], [100, 100, 10]).median == pytest.approx(0.9)
    assert differences([12, 22, 102], [10, 20, 100]).median == 2
    with pytest.raises(ValueError, match="argument 2"):
        ratios([1], [1, 2])


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (95, 95), (100, 100), (1, 1)])
def test_a_percentile_is_a_sample(percent: int, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_paths_take_turns_and_the_warm_up_is_forgotten() -> None:
    order: list[tuple[str, int]] = []

    def path(name: str, number: int) -> int:
        order.append((name, number))
        return number

    paths = {name: lambda number, name=name: path(name, number) for name in "abc"}
    samples = interleaved(paths, 3, warm_up=2)
    assert samples == {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1, 2]}
    assert len(set(order)) == 15
    firsts = [order[start][0] for start in range(6, 15, 3)]
    assert sorted(firsts) == ["a", "b", "c"]


def test_threads_start_together_and_answer_in_order() -> None:
    all_there = threading.Barrier(4)

    def work(index: int) -> int:
        all_there.wait(10)
        return index * index

    assert together(4, work) == [0, 1, 4, 9]


def test_an_error_in_a_thread_is_raised() -> None:
    def work(index: int) -> int:
        if index == 1:
            raise LookupError("no second")
        return index

    with pytest.raises(LookupError, match="no second"):
        together(2, work)


def test_a_missed_target_says_so() -> None:
    assert Target("ratio", 0.96, 0.95, at_least=True).met
    assert not Target("ratio", 0.94, 0.95, at_least=True).met
    assert not Target("latency", 10.1, 10, at_least=False).met
    assert "missed" in Target("latency", 10.1, 10, at_least=False, unit=" ms").text()


def test_a_result_is_a_section_with_its_tables() -> None:
    result = Result("speed", [Table("Speeds", ["path", "rate"], [["REST", "1.0"]])], [Target("rate", 1, 2, True)])
    assert "## speed" in result.markdown()
    assert "| path | rate |\n| --- | --- |\n| REST | 1.0 |" in result.markdown()
    assert result.plain()["targets"][0]["met"] is False
