"""Streamed completions: through REST, through gRPC, from the engine worker, and straight from the engine."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks import random_llama, ways
from benchmarks.measure import Result, Table, Target, differences, interleaved, ratios, spread
from benchmarks.processes import cpu_seconds
from benchmarks.raw_engine import RawEngine
from benchmarks.stack import Stack, running_stack
from benchmarks.streams import Complete, Stream, burst, joining, rate
from llamastead_server.workers.llamacpp import LoadOptions, default_threads

STREAMS = (1, 4, 8)
LEAST_RATIO = 0.95
MOST_ADDED_MS = 10.0
_PROJECT = "generation"
_CONTEXT_LENGTH = 2048
_SLOTS = max(STREAMS)
_PROMPT_WORDS = 16
_JOINER_TOKENS = 2
_ENGINE, _WORKER, _GRPC, _GATEWAY, _REST = "engine", "engine worker", "gRPC", "gRPC, gateway", "REST"
_ROLES = ("server", "Envoy", "engine worker")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: rounds, tokens of an answer, and streams that join the running ones in a round."""

    rounds: int
    tokens: int
    joiners: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one way.

    Attributes:
        streams: Streams begun at the same time.
        joiners: Streams that joined others, one after the other.
        cpu: Processor seconds that `streams` took, by role.
    """

    streams: Sequence[Stream]
    joiners: Sequence[Stream]
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Tokens per second of `streams`."""
        return rate(self.streams)

    @property
    def first_text(self) -> float:
        """Mean time to the first text of `joiners`, in milliseconds."""
        return statistics.fmean(stream.first_text for stream in self.joiners) * 1e3


class Way:
    """One way to the engine, by the two calls every way has."""

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def burst(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        """See `streams.burst`."""
        return burst(self._complete, prompts, tokens)

    def joining(self, running: Sequence[str], prompts: Sequence[str], tokens: int) -> list[Stream]:
        """See `streams.joining`."""
        return joining(self._complete, running, prompts, tokens)


def run(quick: bool) -> Result:
    """Measures 1, 4 and 8 streams."""
    scale = Scale(3, 32, 3) if quick else Scale(12, 64, 8)
    model = random_llama.make(Path(tempfile.gettempdir()) / "llamastead-bench" / "models")
    with _ways(model) as (available, pids):
        samples = {count: _measure(available, count, scale, pids) for count in STREAMS}
    _check(samples, scale)
    return _result(samples, model.stem, scale)


@contextlib.contextmanager
def _ways(model: Path) -> Iterator[tuple[Mapping[str, Way | RawEngine], Mapping[str, int]]]:
    """The ways to the model, and the ids of the processes behind them, by role."""
    threads = default_threads()
    settings = {
        "LLAMASTEAD_MODELS_DIR": str(model.parent),
        "LLAMASTEAD_DEFAULT_MODEL": model.stem,
        "LLAMASTEAD_CONTEXT_LENGTH": str(_CONTEXT_LENGTH),
        "LLAMASTEAD_ENGINE_SLOTS": str(_SLOTS),
        "LLAMASTEAD_ENGINE_THREADS": str(threads),
    }
    with contextlib.ExitStack() as exits:
        raw = exits.enter_context(RawEngine(LoadOptions(model, _CONTEXT_LENGTH, _SLOTS, threads)))
        stack = exits.enter_context(running_stack(settings))
        _make_project(stack, model.stem)
        processes = stack.processes()
        worker, bare, gateway = (
            exits.enter_context(grpc.insecure_channel(address))
            for address in (processes["engine worker"].socket, stack.bare_grpc, stack.gateway_grpc)
        )
        available: dict[str, Way | RawEngine] = {
            _ENGINE: raw,
            _WORKER: Way(ways.worker(worker)),
            _GRPC: Way(ways.typed(bare, _PROJECT)),
            _GATEWAY: Way(ways.typed(gateway, _PROJECT)),
            _REST: Way(ways.rest(stack.port, _PROJECT)),
        }
        yield available, {role: processes[role].pid for role in _ROLES} | {_ENGINE: raw.pid}


def _make_project(stack: Stack, model: str) -> None:
    path = stack.make_project(_PROJECT)
    config = stack.ask("GET", path)["project"]["config"]
    config["runtime"] = {"provider": "llamastead", "model": model}
    config["prompts"] = []
    stack.ask("PUT", path, {"config": config})


def _measure(
    available: Mapping[str, Way | RawEngine], count: int, scale: Scale, pids: Mapping[str, int]
) -> dict[str, list[Sample]]:
    def sampler(name: str, way: Way | RawEngine) -> Callable[[int], Sample]:
        def prompts(number: int, kind: str, many: int) -> list[str]:
            # No two begin alike, so that no prompt is found in the engine's cache.
            seeds = [f"{name} {count} {number} {kind} {index}" for index in range(many)]
            return [random_llama.prompt(seed, _PROMPT_WORDS) for seed in seeds]

        def sample(number: int) -> Sample:
            texts = prompts(number, "burst", count)
            before, own = {role: cpu_seconds(pid) for role, pid in pids.items()}, time.process_time()
            streams = way.burst(texts, scale.tokens)
            cpu = {role: cpu_seconds(pid) - before[role] for role, pid in pids.items()}
            cpu["client"] = time.process_time() - own
            running, joiners = prompts(number, "running", count - 1), prompts(number, "joiner", scale.joiners)
            return Sample(streams, way.joining(running, joiners, _JOINER_TOKENS), cpu)

        return sample

    return interleaved({name: sampler(name, way) for name, way in available.items()}, scale.rounds)


def _check(samples: Mapping[int, Mapping[str, Sequence[Sample]]], scale: Scale) -> None:
    """Makes sure that all ways did the same work."""
    work: dict[str, set[tuple[int, int]]] = {}
    for taken in samples.values():
        for name, way in taken.items():
            work.setdefault(name, set()).update(
                (stream.prompt_tokens, stream.tokens) for sample in way for stream in sample.streams
            )
    done = set().union(*work.values())
    if len(done) != 1 or {tokens for _, tokens in done} != {scale.tokens}:
        raise RuntimeError(f"the ways did not do the same work, in (prompt, answer) tokens: {work}")


def _result(samples: Mapping[int, Mapping[str, Sequence[Sample]]], model: str, scale: Scale) -> Result:
    rows: list[list[str]] = []
    costs: list[list[str]] = []
    targets: list[Target] = []
    for count, taken in samples.items():
        rates = {name: [sample.rate for sample in way] for name, way in taken.items()}
        firsts = {name: [sample.first_text for sample in way] for name, way in taken.items()}
        for name, way in taken.items():
            ratio = ratios(rates[name], rates[_ENGINE])
            added = differences(firsts[name], firsts[_ENGINE])
            cells = [f"{spread(rates[name]).median:.1f}", ratio.text(".3f")]
            cells += [f"{spread(firsts[name]).median:.1f}", added.text(".1f")]
            rows.append([str(count), name, *cells])
            costs.append([str(count), name, *_costs(way)])
            if name in (_GRPC, _REST):
                label = f"{name}, {count} stream{'s' if count > 1 else ''}"
                targets.append(Target(f"tokens/s over the engine's, {label}", ratio.median, LEAST_RATIO, True))
                targets.append(Target(f"added time to first token, {label}", added.median, MOST_ADDED_MS, False, " ms"))
    prompt_tokens = samples[STREAMS[0]][_ENGINE][0].streams[0].prompt_tokens
    title = f"{model} (Q8_0), prompts of {prompt_tokens} tokens, answers of {scale.tokens}"
    columns = ["streams", "way", "tokens/s", "over the engine's", "first token, ms", "added, ms"]
    roles = ["streams", "way", "engine or worker", "server", "Envoy", "client", "pieces per answer"]
    tables = [Table(title, columns, rows), Table("Processor time per token, µs", roles, costs)]
    return Result("generation", tables, targets, _plain(samples))


def _costs(way: Sequence[Sample]) -> list[str]:
    def per_token(*roles: str) -> str:
        costs = [
            sum(sample.cpu[role] for role in roles) * 1e6 / sum(stream.tokens for stream in sample.streams)
            for sample in way
        ]
        return f"{spread(costs).median:.0f}"

    pieces = statistics.median(stream.events for sample in way for stream in sample.streams)
    return [
        per_token(_ENGINE, _WORKER), per_token("server"), per_token("Envoy"), per_token("client"), f"{pieces:.0f}",
    ]  # fmt: skip


def _plain(samples: Mapping[int, Mapping[str, Sequence[Sample]]]) -> dict[str, object]:
    return {
        str(count): {
            name: [
                {"tokens_per_second": sample.rate, "first_token_ms": sample.first_text, "cpu_seconds": sample.cpu}
                for sample in way
            ]
            for name, way in taken.items()
        }
        for count, taken in samples.items()
    }
