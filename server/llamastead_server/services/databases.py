"""The databases of a project, as `RetrievalService` shows them."""

from __future__ import annotations

from llamastead.v1 import retrieval_pb2 as pb
from llamastead_server.domain.datasets.previews import Preview
from llamastead_server.domain.retrieval.database_views import DatabaseView, Document, Stats
from llamastead_server.services.plain import to_struct
from llamastead_server.services.timestamps import rfc3339

_FLOAT_BYTES = 4


def database_message(view: DatabaseView) -> pb.Database:
    """A database as the contract shows it."""
    config = view.config
    embedding, retrieval = config.embedding, config.retrieval_strategy(None)
    return pb.Database(
        name=config.name,
        type=config.type,
        is_default=view.is_default,
        config=to_struct(config.config),
        embedding_strategies=[
            pb.EmbeddingStrategy(
                name=entry.name,
                type=entry.type,
                priority=entry.priority,
                is_default=entry is embedding,
                config=to_struct(entry.config),
            )
            for entry in config.embedding_strategies
        ],
        retrieval_strategies=[
            pb.RetrievalStrategy(
                name=entry.name, type=entry.kind, is_default=entry is retrieval, config=to_struct(entry.config)
            )
            for entry in config.retrieval_strategies
        ],
        default_embedding_strategy=None if embedding is None else embedding.name,
        default_retrieval_strategy=None if retrieval is None else retrieval.name,
        dependent_datasets=view.datasets,
        embedding_model=view.embedding_model,
        notes=view.notes,
    )


def document_message(document: Document) -> pb.Document:
    """A document as the contract shows it."""
    known = {**document.metadata, "datasets": list(document.datasets), "mime_type": document.mime_type}
    return pb.Document(
        id=document.hash,
        filename=document.filename,
        chunk_count=document.chunk_count,
        size_bytes=document.size,
        parser_used=document.parser or "",
        date_ingested=None if document.ingested_at is None else rfc3339(document.ingested_at),
        metadata=to_struct(known),
    )


def stats_message(stats: Stats) -> pb.GetStatsResponse:
    """How much a database holds, as the contract shows it."""
    newest = stats.contents.newest
    return pb.GetStatsResponse(
        database=stats.config.name,
        vector_count=stats.vectors,
        document_count=stats.contents.documents,
        chunk_count=stats.contents.chunks,
        collection_size_bytes=stats.size,
        index_size_bytes=stats.vectors * stats.dimension * _FLOAT_BYTES,
        embedding_dimension=stats.dimension,
        distance_metric=stats.config.distance_metric,
        last_updated=None if newest is None else rfc3339(newest),
        metadata=to_struct({"embedding_model": stats.model, "type": stats.config.type}),
    )


def preview_message(preview: Preview) -> pb.PreviewChunksResponse:
    """A preview as the contract shows it."""
    total = sum(preview.lengths)
    return pb.PreviewChunksResponse(
        original_text=preview.text,
        chunks=[
            pb.PreviewChunk(
                chunk_index=index,
                content=chunk.text,
                start_position=chunk.start,
                end_position=chunk.end,
                char_count=len(chunk.text),
                word_count=len(chunk.text.split()),
                metadata=to_struct(chunk.metadata if chunk.page is None else {**chunk.metadata, "page": chunk.page}),
            )
            for index, chunk in enumerate(preview.chunks)
        ],
        filename=preview.filename,
        size_bytes=preview.size,
        parser_used=preview.parser,
        chunk_strategy=preview.settings.strategy,
        chunk_size=preview.settings.size,
        chunk_overlap=preview.settings.overlap,
        total_chunks=len(preview.lengths),
        avg_chunk_size=round(total / len(preview.lengths), 1) if preview.lengths else 0.0,
        total_size_with_overlaps=total,
        warnings=preview.warnings,
    )
