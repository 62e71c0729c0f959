"""The meters, as Prometheus' counters and histograms, and as means over the last minute."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llamastead_server.domain.models.generation import Usage

_SERVER_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})
"""gRPC statuses that REST callers see as 500 or above."""
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_MINUTE = 60
_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class LastMinute:
    """Sum and number of what was added in the last 60 seconds, a second at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._seconds: deque[list[float]] = deque()

    def add(self, value: float) -> None:
        """Adds a value."""
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != second:
            self._forget(second)
            self._seconds.append([second, 0.0, 0.0])
        self._seconds[-1][1] += value
        self._seconds[-1][2] += 1

    @property
    def mean(self) -> float:
        """Mean of the values; 0 without any."""
        total, count = self._sums()
        return total / count if count else 0.0

    @property
    def rate(self) -> float:
        """Sum of the values per second."""
        lived = max(1.0, min(_MINUTE, self._clock() - self._began))
        return self._sums()[0] / lived

    def _sums(self) -> tuple[float, float]:
        self._forget(int(self._clock()))
        return sum(entry[1] for entry in self._seconds), sum(entry[2] for entry in self._seconds)

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - _MINUTE:
            self._seconds.popleft()


class PrometheusMeters:
    """`domain.meters.Meters` in a registry of its own.

    Attributes:
        registry: Where Prometheus' metrics are.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.response_time = LastMinute(clock)
        self.latency = LastMinute(clock)
        self.generated = LastMinute(clock)
        self.embeddings = LastMinute(clock)
        self.requests = self.errors = self.prompt_tokens = self.cached_tokens = 0
        self.answers: Tally[str] = Tally()
        self.tokens: Tally[str] = Tally()
        made = self._made
        self._calls = made(Counter, "requests", "Public calls by method and gRPC status.", "method", "code")
        self._durations = made(
            Histogram, "request_duration_seconds", "Time of a call, streams included.", "method", buckets=_DURATIONS
        )
        self._running = made(Gauge, "requests_in_progress", "Public calls being served.", "method")
        self._first = made(
            Histogram, "time_to_first_token_seconds", "From the engine's queue to the first text.", "model",
            buckets=_FIRST_TOKEN,
        )  # fmt: skip
        self._between = made(
            Histogram, "inter_token_latency_seconds", "Between two tokens of an answer.", "model",
            buckets=_BETWEEN_TOKENS,
        )  # fmt: skip
        self._ended = made(Counter, "generations", "Generations by how they ended.", "model", "reason")
        self._prompt = made(Counter, "prompt_tokens", "Tokens of prompts.", "model")
        self._cached = made(Counter, "prompt_tokens_cached", "Tokens of prompts from the prompt cache.", "model")
        self._generated = made(Counter, "generation_tokens", "Tokens generated.", "model")
        self._embedded = made(Counter, "embedded_texts", "Passages embedded for an index.")

    def call_began(self, method: str) -> None:
        """A public call came in."""
        self._running.labels(method).inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A public call ended."""
        self._running.labels(method).dec()
        self._calls.labels(method, code).inc()
        self._durations.labels(method).observe(seconds)
        self.response_time.add(seconds)
        self.requests += 1
        self.errors += code in _SERVER_FAULTS

    def first_token(self, model: str, seconds: float) -> None:
        """An answer's first text came."""
        self._first.labels(model).observe(seconds)
        self.latency.add(seconds)

    def more_tokens(self, model: str, tokens: int, seconds: float) -> None:
        """Further tokens came; together when the reader was slower than the engine."""
        self._between.labels(model).observe(seconds / max(tokens, 1))

    def answered(self, model: str, reason: str, usage: Usage | None) -> None:
        """A generation ended."""
        self._ended.labels(model, reason).inc()
        self.answers[model] += 1
        if usage is None:
            return
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._cached.labels(model).inc(usage.cached_tokens)
        self._generated.labels(model).inc(usage.completion_tokens)
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.tokens[model] += usage.completion_tokens
        self.generated.add(usage.completion_tokens)

    def embedded(self, texts: int) -> None:
        """Passages were embedded."""
        self._embedded.inc(texts)
        self.embeddings.add(texts)

    def _made(self, kind: type[_Metric], name: str, text: str, *labels: str, **options: Any) -> _Metric:
        return kind(name, text, labels, namespace="llamastead", registry=self.registry, **options)
