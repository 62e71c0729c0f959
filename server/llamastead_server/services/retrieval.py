"""RetrievalService: the public face of `domain.retrieval`."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import struct_pb2

from llamastead.v1 import retrieval_pb2, retrieval_pb2_grpc
from llamastead_server.domain.names import project_ref
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval import Hit, Retriever
from llamastead_server.domain.retrieval_health import ComponentHealth, DatabaseHealth, RetrievalHealth
from llamastead_server.domain.retrieval_plan import RetrievalQuery
from llamastead_server.services.plain import from_struct, to_struct

_Context = grpc.aio.ServicerContext[Any, Any]


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Searches databases and tells their health."""

    def __init__(self, retriever: Retriever, health: RetrievalHealth) -> None:
        self._retriever = retriever
        self._health = health

    async def Query(self, request: retrieval_pb2.QueryRequest, context: _Context) -> retrieval_pb2.QueryResponse:  # noqa: N802
        """Finds the chunks that answer a query best."""
        ref = project_ref(request.namespace, request.project)
        result = await self._retriever.query(ref, _query(request))
        return retrieval_pb2.QueryResponse(
            query=request.query,
            results=[_result(hit) for hit in result.hits],
            total_results=len(result.hits),
            processing_time_ms=round(result.seconds * 1000, 3),
            retrieval_strategy_used=result.strategy,
            database_used=result.database,
        )

    async def GetHealth(  # noqa: N802
        self, request: retrieval_pb2.RetrievalServiceGetHealthRequest, context: _Context
    ) -> retrieval_pb2.RetrievalServiceGetHealthResponse:
        """Returns the health of a project's databases and of what they depend on."""
        ref = project_ref(request.namespace, request.project)
        report = await self._health.check(ref, request.database or None)
        return retrieval_pb2.RetrievalServiceGetHealthResponse(
            status=report.status,
            databases=[_database(entry) for entry in report.databases],
            database=report.database,
            components={entry.name: _component(entry) for entry in report.components},
            last_check=report.checked_at.isoformat(timespec="milliseconds"),
            issues=report.issues,
        )


def metadata(chunk: Chunk) -> struct_pb2.Struct:
    """What results say of a chunk: the extractors' findings, and where it comes from."""
    known: dict[str, Any] = {
        **chunk.metadata,
        "source": chunk.filename,
        "filename": chunk.filename,
        "document_id": chunk.file_hash,
        "dataset": chunk.dataset,
        "chunk_index": chunk.ordinal,
    }
    if chunk.page is not None:
        known["page"] = chunk.page
    return to_struct(known)


def _query(request: retrieval_pb2.QueryRequest) -> RetrievalQuery:
    def optional(field: str) -> Any:
        return getattr(request, field) if request.HasField(field) else None  # type: ignore[arg-type]

    return RetrievalQuery(
        query=request.query,
        database=request.database or None,
        top_k=optional("top_k"),
        score_threshold=optional("score_threshold"),
        retrieval_strategy=request.retrieval_strategy or None,
        metadata_filters=from_struct(request.metadata_filters),
        distance_metric=request.distance_metric or None,
        hybrid_alpha=optional("hybrid_alpha"),
        rerank_model=request.rerank_model or None,
        query_expansion=request.query_expansion,
        max_tokens=optional("max_tokens"),
    )


def _result(hit: Hit) -> retrieval_pb2.QueryResult:
    return retrieval_pb2.QueryResult(
        content=hit.chunk.text,
        score=hit.score,
        metadata=metadata(hit.chunk),
        chunk_id=hit.chunk.id,
        document_id=hit.document_id,
    )


def _database(health: DatabaseHealth) -> retrieval_pb2.DatabaseHealth:
    model, dimension = health.embedding or (None, None)
    return retrieval_pb2.DatabaseHealth(
        name=health.name,
        status=health.status,
        document_count=health.document_count,
        size_bytes=health.size_bytes,
        chunk_count=health.chunk_count,
        embedding_model=model,
        embedding_dimension=dimension,
        message=health.message,
    )


def _component(health: ComponentHealth) -> retrieval_pb2.RetrievalComponentHealth:
    milliseconds = health.seconds * 1000
    return retrieval_pb2.RetrievalComponentHealth(
        name=health.name,
        status=health.status,
        latency=round(milliseconds, 3),
        latency_ms=round(milliseconds),
        message=health.message,
    )
