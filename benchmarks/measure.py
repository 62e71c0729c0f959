"""Rounds, medians and ratios: how every benchmark here measures and reports.

The machine is never quiet, so nothing is compared across time: the paths take turns, each round compares
neighbours, and a figure is the median over the rounds with the quartiles beside it.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some samples and their quartiles."""

    median: float
    low: float
    high: float

    def text(self, form: str = ".2f", unit: str = "") -> str:
        """The median with its quartiles, for a table's cell."""
        return f"{self.median:{form}}{unit} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that must not pass its bound.

    Attributes:
        name: What is measured.
        value: The measured figure.
        bound: The figure it must reach.
        at_least: Whether `bound` is a lower bound; else an upper one.
        unit: Unit of both.
    """

    name: str
    value: float
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure keeps its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def text(self) -> str:
        """One line of Markdown."""
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "**missed**"
        return f"- {self.name}: {self.value:.3g}{self.unit} (target {sign} {self.bound:g}{self.unit}): {verdict}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of results."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown, its title above it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found: tables for people, targets to judge, samples for other programs."""

    name: str
    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    samples: Mapping[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The result as a section of a document."""
        parts = [f"## {self.name}", *(table.markdown() for table in self.tables)]
        if self.targets:
            parts.append("\n".join(target.text() for target in self.targets))
        return "\n\n".join(parts)

    def plain(self) -> dict[str, Any]:
        """The result as plain data."""
        return {**asdict(self), "targets": [{**asdict(target), "met": target.met} for target in self.targets]}


def spread(samples: Sequence[float]) -> Spread:
    """Summarises samples; there must be one at least."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


def percentile(samples: Sequence[float], percent: int) -> float:
    """The smallest sample that at least `percent` of the samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def ratios(samples: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Each round's sample over the baseline's sample of the same round."""
    return spread([sample / base for sample, base in zip(samples, baseline, strict=True)])


def differences(samples: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Each round's sample less the baseline's sample of the same round."""
    return spread([sample - base for sample, base in zip(samples, baseline, strict=True)])


def interleaved(paths: Mapping[str, Callable[[int], T]], rounds: int, *, warm_up: int = 1) -> dict[str, list[T]]:
    """Runs every path once a round and returns its samples, a list per path.

    The order turns with each round, so that no path always follows the same one. Paths get the round's
    number, which no two of their calls share; the rounds of the warm-up have negative ones and are forgotten.
    """
    names = list(paths)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            sample = paths[name](number)
            if number >= 0:
                samples[name].append(sample)
    return samples


def together(count: int, work: Callable[[int], T]) -> list[T]:
    """Runs `work(0)` to `work(count - 1)` in threads that start at the same time; returns what they return.

    Raises:
        BaseException: The first error of any of them.
    """
    start = threading.Barrier(count)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            start.wait()
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(count)]
