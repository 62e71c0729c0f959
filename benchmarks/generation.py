"""Streamed completions: through REST, through gRPC, from the engine worker, and straight from the engine."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import random_llama
from benchmarks.http_client import HttpConnection
from benchmarks.measure import Result, Table, Target, differences, interleaved, ratios, spread, together
from benchmarks.processes import cpu_seconds
from benchmarks.raw_engine import RawEngine
from benchmarks.stack import NAMESPACE, Stack, running_stack
from benchmarks.streams import GAP, Burst, Stream
from llamastead.internal.v1 import engine_pb2
from llamastead.v1 import chat_pb2
from llamastead_server.workers.llamacpp import LoadOptions, default_threads

STREAMS = (1, 4, 8)
LEAST_RATIO = 0.95
MOST_ADDED_MS = 10.0
_PROJECT = "generation"
_CONTEXT_LENGTH = 2048
_SLOTS = max(STREAMS)
_PROMPT_WORDS = 16
_ENGINE, _WORKER, _GRPC, _GATEWAY, _REST = "engine", "engine worker", "gRPC", "gRPC, gateway", "REST"
_GRPC_METHOD = "/llamastead.v1.ChatService/StreamChatCompletion"
_WORKER_METHOD = "/llamastead.internal.v1.EngineService/Generate"
_ROLES = ("server", "Envoy", "engine worker")


@dataclass(frozen=True, slots=True)
class Sample:
    """A burst and the processor time it took, in seconds by role."""

    burst: Burst
    cpu: Mapping[str, float]


class Paths:
    """The ways to the same completion; each call streams one for every prompt."""

    def __init__(self, stack: Stack, raw: RawEngine, channels: Mapping[str, grpc.Channel], tokens: int) -> None:
        self._stack = stack
        self._raw = raw
        self._channels = channels
        self._tokens = tokens

    def engine(self, prompts: Sequence[str]) -> Burst:
        """Straight from llama.cpp."""
        return Burst(self._raw.complete([random_llama.rendered(prompt) for prompt in prompts], self._tokens))

    def worker(self, prompts: Sequence[str]) -> Burst:
        """From the engine worker, over the socket the server uses."""

        def stream(index: int) -> Stream:
            message = engine_pb2.Message(role="user", content=prompts[index])
            request = engine_pb2.GenerateRequest(
                messages=[message], sampling=engine_pb2.Sampling(temperature=0), max_tokens=self._tokens
            )
            return _grpc_stream(self._channels[_WORKER], _WORKER_METHOD, request.SerializeToString(), _worker_event)

        return self._burst(prompts, stream)

    def grpc(self, prompts: Sequence[str], channel: str) -> Burst:
        """Through the typed RPC."""

        def stream(index: int) -> Stream:
            request = chat_pb2.CreateChatCompletionRequest(
                namespace=NAMESPACE,
                project=_PROJECT,
                temperature=0,
                max_tokens=self._tokens,
                rag_enabled=False,
                no_session=True,
                stream_options=chat_pb2.StreamOptions(include_usage=True),
            )
            request.messages.add(role="user").content.string_value = prompts[index]
            return _grpc_stream(self._channels[channel], _GRPC_METHOD, request.SerializeToString(), _chat_event)

        return self._burst(prompts, stream)

    def rest(self, prompts: Sequence[str]) -> Burst:
        """Through the gateway's SSE; a connection for each stream, opened before the clock starts."""
        path = f"/v1/projects/{NAMESPACE}/{_PROJECT}/chat/completions"
        with contextlib.ExitStack() as exits:
            connections = [exits.enter_context(HttpConnection(self._stack.port)) for _ in prompts]

            def stream(index: int) -> Stream:
                body = {
                    "messages": [{"role": "user", "content": prompts[index]}],
                    "stream": True, "stream_options": {"include_usage": True}, "temperature": 0,
                    "max_tokens": self._tokens, "rag_enabled": False,
                }  # fmt: skip
                headers = {"X-No-Session": "true"}
                request = connections[index].request_bytes("POST", path, json.dumps(body).encode(), headers)
                started = time.perf_counter()
                return _stream(started, _sse(connections[index].stream(request)))

            return self._burst(prompts, stream)

    def _burst(self, prompts: Sequence[str], stream: Callable[[int], Stream]) -> Burst:
        return Burst(together(len(prompts), stream, gap=GAP))


def run(quick: bool) -> Result:
    """Measures 1, 4 and 8 streams."""
    rounds, tokens = (3, 32) if quick else (12, 64)
    model = random_llama.make(Path(tempfile.gettempdir()) / "llamastead-bench" / "models")
    threads = default_threads()
    settings = {
        "LLAMASTEAD_MODELS_DIR": str(model.parent),
        "LLAMASTEAD_DEFAULT_MODEL": model.stem,
        "LLAMASTEAD_CONTEXT_LENGTH": str(_CONTEXT_LENGTH),
        "LLAMASTEAD_ENGINE_SLOTS": str(_SLOTS),
        "LLAMASTEAD_ENGINE_THREADS": str(threads),
    }
    options = LoadOptions(model, _CONTEXT_LENGTH, _SLOTS, threads)
    with contextlib.ExitStack() as exits:
        raw = exits.enter_context(RawEngine(options))
        stack = exits.enter_context(running_stack(settings))
        _make_project(stack, model.stem)
        processes = stack.processes()
        addresses = {
            _WORKER: processes["engine worker"].socket, _GRPC: stack.bare_grpc, _GATEWAY: stack.gateway_grpc
        }  # fmt: skip
        channels = {name: exits.enter_context(grpc.insecure_channel(address)) for name, address in addresses.items()}
        paths = Paths(stack, raw, channels, tokens)
        pids = {role: processes[role].pid for role in _ROLES} | {_ENGINE: raw.pid}
        samples = {count: _measure(paths, count, rounds, pids) for count in STREAMS}
    _check(samples, tokens)
    return _result(samples, model.stem, tokens)


def _measure(paths: Paths, count: int, rounds: int, pids: Mapping[str, int]) -> dict[str, list[Sample]]:
    calls: dict[str, Callable[[Sequence[str]], Burst]] = {
        _ENGINE: paths.engine,
        _WORKER: paths.worker,
        _GRPC: lambda prompts: paths.grpc(prompts, _GRPC),
        _GATEWAY: lambda prompts: paths.grpc(prompts, _GATEWAY),
        _REST: paths.rest,
    }

    def sample(name: str, number: int) -> Sample:
        # No two prompts begin alike, so that no path finds its prompt in the cache of another.
        prompts = [random_llama.prompt(f"{name} {count} {number} {index}", _PROMPT_WORDS) for index in range(count)]
        before, own = {role: cpu_seconds(pid) for role, pid in pids.items()}, time.process_time()
        burst = calls[name](prompts)
        cpu = {role: cpu_seconds(pid) - before[role] for role, pid in pids.items()}
        return Sample(burst, cpu | {"client": time.process_time() - own})

    named = {name: lambda number, name=name: sample(name, number) for name in calls}
    return interleaved(named, rounds)


def _make_project(stack: Stack, model: str) -> None:
    path = stack.make_project(_PROJECT)
    config = stack.ask("GET", path)["project"]["config"]
    config["runtime"] = {"provider": "llamastead", "model": model}
    config["prompts"] = []
    stack.ask("PUT", path, {"config": config})


def _check(samples: Mapping[int, Mapping[str, Sequence[Sample]]], tokens: int) -> None:
    """Makes sure that all paths did the same work."""
    streams = [
        stream
        for paths in samples.values()
        for taken in paths.values()
        for sample in taken
        for stream in sample.burst.streams
    ]
    lengths = {stream.prompt_tokens for stream in streams}
    if len(lengths) != 1 or {stream.tokens for stream in streams} != {tokens}:
        raise RuntimeError(f"the paths did not do the same work: prompts of {lengths} tokens")


def _grpc_stream(
    channel: grpc.Channel, method: str, request: bytes, decode: Callable[[bytes], tuple[str, tuple[int, int] | None]]
) -> Stream:
    call = channel.unary_stream(method, request_serializer=None, response_deserializer=None)
    started = time.perf_counter()
    # Decoded after the end: the reader's own work must not slow the server down.
    heard = [(time.perf_counter(), message) for message in call(request, timeout=600)]
    return _stream(started, ((moment, *decode(message)) for moment, message in heard))


def _worker_event(message: bytes) -> tuple[str, tuple[int, int] | None]:
    response = engine_pb2.GenerateResponse.FromString(message)
    done = response.finished if response.HasField("finished") else None
    return response.delta.text, None if done is None else (done.prompt_tokens, done.completion_tokens)


def _chat_event(message: bytes) -> tuple[str, tuple[int, int] | None]:
    chunk = chat_pb2.ChatCompletionChunk.FromString(message)
    text = "".join(choice.delta.content.string_value for choice in chunk.choices)
    usage = chunk.usage if chunk.HasField("usage") else None
    return text, None if usage is None else (usage.prompt_tokens, usage.completion_tokens)


def _sse(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, str, tuple[int, int] | None]]:
    pending = b""
    for moment, piece in list(pieces):
        *blocks, pending = (pending + piece).split(b"\n\n")
        for block in blocks:
            if block == b"data: [DONE]" or not block.startswith(b"data: "):
                continue
            event: dict[str, Any] = json.loads(block.removeprefix(b"data: "))
            text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            usage = event.get("usage")
            yield moment, text, (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None


def _stream(started: float, events: Iterable[tuple[float, str, tuple[int, int] | None]]) -> Stream:
    times: list[float] = []
    usage: tuple[int, int] | None = None
    for moment, text, counted in events:
        if text:
            times.append(moment)
        usage = counted or usage
    if usage is None or not times:
        raise RuntimeError("a stream ended without text or usage")
    return Stream(started, times[0], times[-1], *usage, len(times))


def _result(samples: Mapping[int, Mapping[str, Sequence[Sample]]], model: str, tokens: int) -> Result:
    rows: list[list[str]] = []
    costs: list[list[str]] = []
    targets: list[Target] = []
    for count, paths in samples.items():
        rates = {name: [sample.burst.rate for sample in taken] for name, taken in paths.items()}
        firsts = {name: [sample.burst.first_text * 1e3 for sample in taken] for name, taken in paths.items()}
        for name, taken in paths.items():
            ratio = ratios(rates[name], rates[_ENGINE])
            added = differences(firsts[name], firsts[_ENGINE])
            base = name == _ENGINE
            rows.append([
                str(count), name, f"{spread(rates[name]).median:.1f}", "1" if base else ratio.text(".3f"),
                f"{spread(firsts[name]).median:.1f}", "0" if base else added.text(".1f"),
            ])  # fmt: skip
            costs.append([str(count), name, *_costs(taken)])
            if name in (_GRPC, _REST):
                label = f"{name}, {count} stream{'s' if count > 1 else ''}"
                targets.append(Target(f"tokens/s of the engine's, {label}", ratio.median, LEAST_RATIO, True))
                targets.append(Target(f"added time to first token, {label}", added.median, MOST_ADDED_MS, False, " ms"))
    prompt_tokens = samples[STREAMS[0]][_ENGINE][0].burst.streams[0].prompt_tokens
    title = f"{model} (Q8_0), prompts of {prompt_tokens} tokens, answers of {tokens}"
    columns = ["streams", "path", "tokens/s", "ratio to engine", "first token, ms", "added, ms"]
    roles = ["streams", "path", "engine or worker", "server", "Envoy", "client", "events per stream"]
    tables = [Table(title, columns, rows), Table("Processor time per token, µs", roles, costs)]
    plain = {
        str(count): {
            name: [
                {"tokens_per_second": sample.burst.rate, "first_token_seconds": sample.burst.first_text, **sample.cpu}
                for sample in taken
            ]
            for name, taken in paths.items()
        }
        for count, paths in samples.items()
    }
    return Result("generation", tables, targets, plain)


def _costs(taken: Sequence[Sample]) -> list[str]:
    def per_token(*roles: str) -> str:
        costs = [sum(sample.cpu[role] for role in roles) * 1e6 / sample.burst.tokens for sample in taken]
        return f"{spread(costs).median:.0f}"

    events = [stream.events for sample in taken for stream in sample.burst.streams]
    return [
        per_token(_ENGINE, "engine worker"), per_token("server"), per_token("Envoy"), per_token("client"),
        f"{spread(events).median:.0f}",
    ]  # fmt: skip
