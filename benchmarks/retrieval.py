"""Latency of `rag/query`, through REST and through gRPC, beside embedding the query and searching Milvus."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc

from benchmarks.corpus import files, folder_files, question
from benchmarks.datasets import ingest
from benchmarks.http_client import HttpConnection
from benchmarks.measure import Result, Table, Target, interleaved, percentile, ratios
from benchmarks.raw_retrieval import RawEmbedder, RawMilvus, raw_embedder, raw_milvus
from benchmarks.stack import NAMESPACE, Stack, running_stack
from llamastead.v1 import retrieval_pb2

MOST_RATIO = 1.5
_PROJECT = "retrieval"
_TOP_K = 5
_METHOD = "/llamastead.v1.RetrievalService/Query"
_EMBED, _VECTOR, _KEYWORD = "embed", "Milvus, vectors", "Milvus, BM25"


def run(quick: bool, corpus: Path | None = None) -> Result:
    """Measures the strategies `vector` and `hybrid` on some thousand chunks, or on the text files of a folder."""
    rounds, size = (30, 400) if quick else (200, 3000)
    documents = folder_files(corpus) if corpus else files("corpus", 8, size)
    with contextlib.ExitStack() as exits:
        stack = exits.enter_context(running_stack())
        ingested = ingest(stack, stack.make_project(_PROJECT, "rag"), "corpus", documents)
        embedder = exits.enter_context(raw_embedder(stack))
        milvus = exits.enter_context(raw_milvus(stack))
        connection = exits.enter_context(HttpConnection(stack.port))
        channel = exits.enter_context(grpc.insecure_channel(stack.bare_grpc))
        paths = _raw_paths(embedder, milvus) | _server_paths(connection, channel)
        samples = interleaved({name: _timed(name, path) for name, path in paths.items()}, rounds, warm_up=5)
        share = _server_share(stack, rounds)
    return _result(samples, ingested.chunks, share)


def _raw_paths(embedder: RawEmbedder, milvus: RawMilvus) -> dict[str, Callable[[str], object]]:
    def at_hand(query: str) -> object:
        return embedder.embed([query], query=True)

    vector = embedder.embed([question("any")], query=True)[0]
    return {
        _EMBED: at_hand,
        _VECTOR: lambda _: milvus.search_vector(vector, _TOP_K),
        _KEYWORD: lambda query: milvus.search_keyword(query, _TOP_K),
    }


def _server_paths(connection: HttpConnection, channel: grpc.Channel) -> dict[str, Callable[[str], object]]:
    call = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)

    def rest(strategy: str) -> Callable[[str], object]:
        def ask(query: str) -> object:
            body = {"query": query, "top_k": _TOP_K, "retrieval_strategy": strategy}
            path = f"/v1/projects/{NAMESPACE}/{_PROJECT}/rag/query"
            return connection.send(connection.request_bytes("POST", path, json.dumps(body).encode()))

        return ask

    def typed(strategy: str) -> Callable[[str], object]:
        def ask(query: str) -> object:
            request = retrieval_pb2.QueryRequest(
                namespace=NAMESPACE, project=_PROJECT, query=query, top_k=_TOP_K, retrieval_strategy=strategy
            )
            return call(request.SerializeToString(), timeout=60)

        return ask

    return {
        f"{way}, {strategy}": make(strategy)
        for strategy in ("vector", "hybrid")
        for way, make in (("gRPC", typed), ("REST", rest))
    }


def _timed(name: str, path: Callable[[str], object]) -> Callable[[int], float]:
    def sample(number: int) -> float:
        # No two calls ask the same, so that none finds its answer in a cache.
        query = question(f"{name} {number}")
        started = time.perf_counter()
        path(query)
        return time.perf_counter() - started

    return sample


def _server_share(stack: Stack, queries: int) -> Mapping[str, float]:
    """The median time the server itself reports, in seconds: what its clients see beyond it is transport."""
    path = f"/v1/projects/{NAMESPACE}/{_PROJECT}/rag/query"
    times: dict[str, list[float]] = {"vector": [], "hybrid": []}
    for number in range(min(queries, 50)):
        for strategy, taken in times.items():
            body = {"query": question(f"{strategy} {number}"), "top_k": _TOP_K, "retrieval_strategy": strategy}
            taken.append(stack.ask("POST", path, body)["processing_time_ms"] / 1e3)
    return {strategy: percentile(taken, 50) for strategy, taken in times.items()}


def _result(samples: Mapping[str, Sequence[float]], chunks: int, share: Mapping[str, float]) -> Result:
    def total(*parts: str) -> list[float]:
        return [sum(times) for times in zip(*(samples[part] for part in parts), strict=True)]

    baselines = {"vector": total(_EMBED, _VECTOR), "hybrid": total(_EMBED, _VECTOR, _KEYWORD)}
    named = {
        **samples,
        f"{_EMBED} + {_VECTOR}": baselines["vector"],
        f"{_EMBED} + {_VECTOR} + {_KEYWORD}": baselines["hybrid"],
    }
    rows, targets = [], []
    for name, times in named.items():
        strategy = name.rpartition(", ")[2]
        baseline = baselines.get(strategy) if name in samples else None
        ratio = "" if baseline is None else ratios(times, baseline).text()
        rows.append([name, f"{percentile(times, 50) * 1e3:.1f}", f"{percentile(times, 95) * 1e3:.1f}", ratio])
        if baseline is not None:
            value = percentile(times, 50) / percentile(baseline, 50)
            targets.append(Target(f"rag/query p50 of embed + search, {name}", value, MOST_RATIO, False))
    inside = [[strategy, f"{seconds * 1e3:.1f}"] for strategy, seconds in share.items()]
    tables = [
        Table(f"{chunks} chunks, top_k {_TOP_K}", ["path", "p50, ms", "p95, ms", "ratio to its raw parts"], rows),
        Table("Of which the server itself reports", ["strategy", "p50, ms"], inside),
    ]
    return Result("retrieval", tables, targets, dict(samples))
