"""RetrievalService through a real gRPC server, over the real parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format

from llamastead.v1 import retrieval_pb2 as pb
from llamastead.v1 import retrieval_pb2_grpc
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval.health import RetrievalHealth
from llamastead_server.domain.retrieval.retriever import Retriever
from llamastead_server.services.error_layer import error_layer
from llamastead_server.services.interceptors import CallInterceptor
from llamastead_server.services.retrieval import RetrievalServicer, metadata
from tests.dataset_stack import MODEL, REF, stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = {"namespace": REF.namespace, "project": REF.name}
FILES = {
    "barn.txt": "The barn gate closes at 21:00.",
    "audit.txt": "The audit of the Zephyr laboratory happens in March.",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    async with WorkerEmbedder(MODEL) as embedder, stack(tmp_path_factory.mktemp("data"), embedder) as parts:
        await parts.make_project()
        for name, text in FILES.items():
            await parts.add(name, text)
        await parts.ingestion.process(REF, "papers")
        joined = parts.projects, embedder, parts.vectors, parts.chunks
        server = grpc.aio.server(interceptors=[CallInterceptor([error_layer])])
        servicer = RetrievalServicer(
            Retriever(*joined),
            RetrievalHealth(*joined),
            parts.databases,
            parts.previews,
            parts.reindexing,
            parts.tasks,
        )
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield retrieval_pb2_grpc.RetrievalServiceStub(channel)
        await server.stop(None)


def request(**fields: Any) -> pb.QueryRequest:
    return json_format.ParseDict({**NAMES, "query": "when does the barn gate close", **fields}, pb.QueryRequest())


async def test_a_query_answers_chunks_with_where_they_come_from(stub: Any) -> None:
    answer = await stub.Query(request())
    assert (answer.query, answer.total_results) == ("when does the barn gate close", 2)
    assert (answer.retrieval_strategy_used, answer.database_used) == ("hybrid", "main_db")
    assert answer.processing_time_ms > 0
    best = answer.results[0]
    assert best.content == FILES["barn.txt"]
    assert 0 < best.score <= 1
    known = json_format.MessageToDict(best.metadata)
    assert known["source"] == "barn.txt"
    assert known["document_id"] == best.document_id
    assert len(best.document_id) == 64
    assert best.chunk_id


@pytest.mark.parametrize(
    ("fields", "results"),
    [
        ({"top_k": 1}, 1),
        ({"score_threshold": 0.99}, 0),
        ({"score_threshold": 0}, 2),
        ({"max_tokens": 10}, 1),
        ({"metadata_filters": {"filename": ["audit.txt", "other.txt"]}}, 1),
        ({"metadata_filters": {"chunk_index": 0}}, 2),
        ({"retrieval_strategy": "keyword", "query": "zephyr"}, 1),
        ({"hybrid_alpha": 0, "score_threshold": 0.01}, 1),
        ({"hybrid_alpha": 1, "score_threshold": 0.01}, 2),
        ({"database": "other_db"}, 0),
        ({"distance_metric": "l2", "retrieval_strategy": "vector", "score_threshold": 0.9}, 0),
        ({"data_processing_strategy": "universal_processor"}, 2),
    ],
    ids=str,
)
async def test_every_field_takes_effect(stub: Any, fields: dict[str, Any], results: int) -> None:
    answer = await stub.Query(request(**fields))
    assert answer.total_results == len(answer.results) == results


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"query": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"top_k": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"namespace": "../x"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"distance_metric": "nonsense"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"distance_metric": "l2", "retrieval_strategy": "keyword"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"hybrid_alpha": 0.5, "retrieval_strategy": "vector"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"data_processing_strategy": "absent"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"metadata_filters": {"k": None}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"retrieval_strategy": "absent"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"database": "absent"}, grpc.StatusCode.NOT_FOUND),
        ({"project": "absent"}, grpc.StatusCode.NOT_FOUND),
        ({"rerank_model": "absent"}, grpc.StatusCode.NOT_FOUND),
    ],
    ids=str,
)
async def test_what_is_wrong_is_refused(stub: Any, fields: dict[str, Any], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Query(request(**fields))
    assert refused.value.code() is code


async def test_health_answers_databases_and_components(stub: Any) -> None:
    answer = await stub.GetHealth(pb.RetrievalServiceGetHealthRequest(**NAMES))
    assert (answer.status, answer.database, list(answer.issues)) == ("healthy", "main_db", [])
    main, other = answer.databases
    assert (main.name, main.status, main.document_count, main.chunk_count) == ("main_db", "healthy", 2, 2)
    assert (main.embedding_model, main.embedding_dimension) == (MODEL, 384)
    assert main.size_bytes > 0
    assert not main.HasField("message")
    assert not other.HasField("embedding_model")
    assert {name: component.status for name, component in answer.components.items()} == {
        "vector_store": "healthy",
        "embedder": "healthy",
    }
    assert datetime.fromisoformat(answer.last_check).tzinfo is not None


async def test_the_extractors_findings_never_hide_where_a_chunk_comes_from() -> None:
    chunk = Chunk("c", "papers", "h" * 64, "a.pdf", 3, "text", 7, {"source": "forged", "title": "T", "tags": ["x", 1]})
    assert json_format.MessageToDict(metadata(chunk)) == {
        "source": "a.pdf",
        "filename": "a.pdf",
        "title": "T",
        "tags": ["x", 1],
        "page": 7,
        "dataset": "papers",
        "chunk_index": 3,
        "document_id": "h" * 64,
    }
