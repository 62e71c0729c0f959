"""RetrievalService: the public face of `domain.retrieval`."""

from __future__ import annotations

from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import struct_pb2

from llamastead.v1 import retrieval_pb2, retrieval_pb2_grpc
from llamastead_server.domain.datasets.previews import PreviewRequest, Previews
from llamastead_server.domain.datasets.reindexing import REINDEX_DATABASE, Reindexing
from llamastead_server.domain.names import project_ref, segment
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval.databases import Databases
from llamastead_server.domain.retrieval.health import ComponentHealth, DatabaseHealth, RetrievalHealth
from llamastead_server.domain.retrieval.plan import RetrievalQuery
from llamastead_server.domain.retrieval.ranking import Hit
from llamastead_server.domain.retrieval.retriever import Retriever
from llamastead_server.domain.tasks.tasks import TaskRunner
from llamastead_server.services.databases import database_message, document_message, preview_message, stats_message
from llamastead_server.services.http_body import json_body
from llamastead_server.services.metadata import CallMetadata
from llamastead_server.services.plain import from_struct, to_json, to_struct

_Context = grpc.aio.ServicerContext[Any, Any]


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Searches databases, tells their health and keeps them.

    Args:
        retriever: Answers queries.
        health: Checks databases.
        databases: Makes, changes and deletes databases.
        previews: Cuts documents for show.
        reindexing: Makes vectors anew.
        tasks: Runs that in the background.
    """

    def __init__(
        self,
        retriever: Retriever,
        health: RetrievalHealth,
        databases: Databases,
        previews: Previews,
        reindexing: Reindexing,
        tasks: TaskRunner,
    ) -> None:
        self._retriever = retriever
        self._health = health
        self._databases = databases
        self._previews = previews
        self._reindexing = reindexing
        self._tasks = tasks

    async def Query(self, request: retrieval_pb2.QueryRequest, context: _Context) -> retrieval_pb2.QueryResponse:
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

    async def GetHealth(
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
            hidden_datasets=[
                retrieval_pb2.HiddenDataset(name=dataset.name, file_count=dataset.files) for dataset in report.hidden
            ],
        )

    async def ListDatabases(
        self, request: retrieval_pb2.ListDatabasesRequest, context: _Context
    ) -> retrieval_pb2.ListDatabasesResponse:
        """Lists the project's databases."""
        found, default = await self._databases.list_databases(project_ref(request.namespace, request.project))
        return retrieval_pb2.ListDatabasesResponse(databases=map(database_message, found), default_database=default)

    async def CreateDatabase(
        self, request: retrieval_pb2.CreateDatabaseRequest, context: _Context
    ) -> retrieval_pb2.Database:
        """Adds a database."""
        made = await self._databases.create(
            project_ref(request.namespace, request.project), from_struct(request.config)
        )
        if CallMetadata(context.invocation_metadata()).rest_path is not None:
            await context.send_initial_metadata((("x-http-status", "201"),))
        return database_message(made)

    async def GetDatabase(self, request: retrieval_pb2.GetDatabaseRequest, context: _Context) -> retrieval_pb2.Database:
        """Gives one database."""
        view = await self._databases.get(project_ref(request.namespace, request.project), _database_name(request))
        return database_message(view)

    async def UpdateDatabase(
        self, request: retrieval_pb2.UpdateDatabaseRequest, context: _Context
    ) -> retrieval_pb2.Database:
        """Changes a database."""
        view = await self._databases.update(
            project_ref(request.namespace, request.project), _database_name(request), from_struct(request.config)
        )
        return database_message(view)

    async def DeleteDatabase(
        self, request: retrieval_pb2.DeleteDatabaseRequest, context: _Context
    ) -> retrieval_pb2.DeleteDatabaseResponse:
        """Deletes a database."""
        collection = request.delete_collection if request.HasField("delete_collection") else True
        ref, name = project_ref(request.namespace, request.project), _database_name(request)
        view, chunks = await self._databases.delete(ref, name, collection=collection)
        return retrieval_pb2.DeleteDatabaseResponse(
            message=f"Database {name!r} deleted.", database=database_message(view), deleted_chunks=chunks
        )

    async def ListDocuments(
        self, request: retrieval_pb2.ListDocumentsRequest, context: _Context
    ) -> retrieval_pb2.ListDocumentsResponse:
        """Lists a database's documents."""
        found = await self._databases.documents(
            project_ref(request.namespace, request.project),
            request.database_name or request.database or None,
            limit=request.limit if request.HasField("limit") else 50,
            offset=request.offset,
        )
        return retrieval_pb2.ListDocumentsResponse(documents=map(document_message, found))

    async def ListDocumentsHttp(self, request: retrieval_pb2.ListDocumentsRequest, context: _Context) -> HttpBody:
        """Lists a database's documents as a bare array."""
        return json_body([to_json(document) for document in (await self.ListDocuments(request, context)).documents])

    async def GetStats(
        self, request: retrieval_pb2.GetStatsRequest, context: _Context
    ) -> retrieval_pb2.GetStatsResponse:
        """Tells how much a database holds."""
        ref = project_ref(request.namespace, request.project)
        return stats_message(await self._databases.stats(ref, request.database or None))

    async def PreviewChunks(
        self, request: retrieval_pb2.PreviewChunksRequest, context: _Context
    ) -> retrieval_pb2.PreviewChunksResponse:
        """Shows how a document would be cut."""
        asked = PreviewRequest(
            database=_database_name(request),
            dataset=request.dataset_id or None,
            file_hash=request.file_hash or None,
            content=request.file_content if request.HasField("file_content") else None,
            filename=request.filename or None,
            strategy=request.data_processing_strategy or None,
            chunk_size=request.chunk_size if request.HasField("chunk_size") else None,
            chunk_overlap=request.chunk_overlap if request.HasField("chunk_overlap") else None,
            chunk_strategy=request.chunk_strategy or None,
        )
        ref = project_ref(request.namespace, request.project)
        return preview_message(await self._previews.preview(ref, asked))

    async def ClearDatabase(
        self, request: retrieval_pb2.ClearDatabaseRequest, context: _Context
    ) -> retrieval_pb2.ClearDatabaseResponse:
        """Removes all chunks from a database."""
        ref = project_ref(request.namespace, request.project)
        name, chunks = await self._databases.clear(ref, request.database or None)
        message = f"Database {name!r} cleared: {chunks} chunks removed. Process its datasets to fill it again."
        return retrieval_pb2.ClearDatabaseResponse(message=message, database=name, deleted_chunks=chunks)

    async def ReindexDatabase(
        self, request: retrieval_pb2.ReindexDatabaseRequest, context: _Context
    ) -> retrieval_pb2.ReindexDatabaseResponse:
        """Starts a task that makes a database's vectors anew."""
        ref = project_ref(request.namespace, request.project)
        name = await self._reindexing.plan(ref, request.database or None)
        task = await self._tasks.submit(ref, REINDEX_DATABASE, {"database": name})
        return retrieval_pb2.ReindexDatabaseResponse(
            message=f"Reindexing database {name!r} started.",
            database=name,
            task_id=task.id,
            task_uri=f"/v1/projects/{ref.namespace}/{ref.name}/tasks/{task.id}",
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


def _database_name(request: Any) -> str:
    """The name in a request's path, which only native callers can leave empty."""
    return segment("database", request.database_name)


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
        query_expansion=optional("query_expansion"),
        data_processing_strategy=request.data_processing_strategy or None,
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
