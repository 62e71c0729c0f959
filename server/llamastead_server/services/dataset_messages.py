"""Datasets, their files and how processing went, as messages."""

from __future__ import annotations

from google.protobuf import struct_pb2

from llamastead.v1 import dataset_pb2 as pb
from llamastead_server.domain.datasets.dataset import AddedFile, Dataset
from llamastead_server.domain.datasets.files import FileRecord
from llamastead_server.domain.datasets.processing import FileResult, ProcessingReport
from llamastead_server.services.plain import to_struct


def dataset_message(dataset: Dataset, *, detailed: bool = False) -> pb.Dataset:
    """A dataset as the API shows it."""
    message = pb.Dataset(
        name=dataset.config.name,
        database=dataset.config.database,
        data_processing_strategy=dataset.config.data_processing_strategy,
        files=[record.hash for record in dataset.files],
        auto_process=dataset.auto_process,
    )
    if detailed:
        message.details.total_files = len(dataset.files)
        message.details.total_size_bytes = sum(record.size for record in dataset.files)
        message.details.file_details.extend(_file_detail(record) for record in dataset.files)
        message.details.files_metadata.extend(_file_metadata(record) for record in dataset.files)
    return message


def report_message(text: str, report: ProcessingReport) -> pb.ProcessDatasetResponse:
    """How processing went, as the API shows it."""
    return pb.ProcessDatasetResponse(
        message=text,
        processed_files=report.count("processed"),
        skipped_files=report.count("skipped"),
        failed_files=report.count("failed"),
        strategy=report.strategy,
        database=report.database,
        details=[_file_result(result) for result in report.files],
    )


def _file_detail(record: FileRecord) -> pb.FileDetail:
    return pb.FileDetail(
        hash=record.hash, original_filename=record.filename, size=record.size, timestamp=record.uploaded_at
    )


def _file_metadata(record: FileRecord) -> pb.FileMetadata:
    return pb.FileMetadata(
        original_file_name=record.filename,
        resolved_file_name=record.hash,
        timestamp=record.uploaded_at,
        size=record.size,
        mime_type=record.mime_type,
        hash=record.hash,
        chunk_count=record.chunk_count if record.status == "processed" else None,
        status=record.status,
        parser=record.parser,
        extractors=record.extractors,
        chunk_size=record.chunk_size,
        embedder=record.embedding_model,
        error=record.error,
        metadata=to_struct(record.facts) if record.facts else None,
        parser_overrides=to_struct(record.parser_overrides) if record.parser_overrides else None,
    )


def _file_result(result: FileResult) -> pb.FileProcessingResult:
    waiting = result.status == "pending"
    return pb.FileProcessingResult(
        hash=result.hash,
        filename=struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        if waiting
        else struct_pb2.Value(string_value=result.filename),
        status=result.status,
        parser=result.parser,
        extractors=result.extractors,
        chunks=result.chunks,
        chunk_size=result.chunk_size,
        embedder=result.embedder,
        error=result.error,
        reason=result.reason,
        file_hash=result.hash,
        stored_count=result.stored_count,
        skipped_count=result.skipped_count,
        metadata=to_struct(result.metadata) if result.metadata else None,
    )


def upload_message(added: AddedFile) -> pb.UploadFileResponse:
    """A stored file, not yet in work."""
    record = added.record
    return pb.UploadFileResponse(
        filename=record.filename,
        hash=record.hash,
        processed=record.status == "processed",
        skipped=added.skipped,
        status="skipped" if added.skipped else "uploaded",
        reason=_reason(added),
    )


def bulk_file_message(added: AddedFile) -> pb.UploadedFile:
    """One of several stored files."""
    record = added.record
    return pb.UploadedFile(
        filename=record.filename,
        hash=record.hash,
        processed=record.status == "processed",
        skipped=added.skipped,
        status="skipped" if added.skipped else "uploaded",
        reason=_reason(added),
    )


def _reason(added: AddedFile) -> str | None:
    return f"The dataset holds this content already, as {added.record.filename!r}." if added.skipped else None
