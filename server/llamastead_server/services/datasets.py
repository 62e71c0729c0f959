"""DatasetService: datasets and their files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

import grpc
from google.protobuf import struct_pb2

from llamastead.v1 import dataset_pb2 as pb
from llamastead.v1 import dataset_pb2_grpc as pb_grpc
from llamastead_server.domain import names
from llamastead_server.domain.datasets import AddedFile, Dataset, Datasets
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.files import FileRecord
from llamastead_server.domain.ingestion import PROCESS_DATASET, Ingestion
from llamastead_server.domain.names import ProjectRef, project_ref
from llamastead_server.domain.processing import FileResult, ProcessingReport
from llamastead_server.domain.tasks import TaskRunner
from llamastead_server.services.multipart import MultipartBody

_T = TypeVar("_T")


class DatasetServicer(pb_grpc.DatasetServiceServicer):
    """Datasets over gRPC and, through the gateway, REST."""

    def __init__(self, datasets: Datasets, ingestion: Ingestion, tasks: TaskRunner) -> None:
        self._datasets = datasets
        self._ingestion = ingestion
        self._tasks = tasks

    async def ListDatasets(  # noqa: N802
        self, request: pb.ListDatasetsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListDatasetsResponse:
        """Lists the datasets of a project."""
        found = await self._datasets.list_datasets(project_ref(request.namespace, request.project))
        detailed = request.include_extra_details or not request.HasField("include_extra_details")
        return pb.ListDatasetsResponse(
            total=len(found), datasets=[dataset_message(dataset, detailed=detailed) for dataset in found]
        )

    async def CreateDataset(  # noqa: N802
        self, request: pb.CreateDatasetRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.CreateDatasetResponse:
        """Creates an empty dataset."""
        dataset = await self._datasets.create(
            project_ref(request.namespace, request.project),
            request.name,
            strategy=request.data_processing_strategy or None,
            database=request.database or None,
            auto_process=request.auto_process if request.HasField("auto_process") else None,
        )
        return pb.CreateDatasetResponse(dataset=dataset_message(dataset))

    async def ListStrategies(  # noqa: N802
        self, request: pb.ListStrategiesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListStrategiesResponse:
        """Lists the strategies and the databases a dataset can name."""
        strategies, databases = await self._datasets.strategies(project_ref(request.namespace, request.project))
        return pb.ListStrategiesResponse(data_processing_strategies=strategies, databases=databases)

    async def DeleteDataset(  # noqa: N802
        self, request: pb.DeleteDatasetRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.DeleteDatasetResponse:
        """Deletes a dataset with its chunks and files."""
        dataset = await self._datasets.delete(project_ref(request.namespace, request.project), request.dataset)
        return pb.DeleteDatasetResponse(dataset=dataset_message(dataset, detailed=True))

    async def UploadFileHttp(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.UploadFileHttpRequest],
        context: grpc.aio.ServicerContext[object, object],
    ) -> pb.UploadFileResponse:
        """Stores a file sent as a form."""
        first = await _first(request_iterator)
        ref = project_ref(first.namespace, first.project)
        dataset = await self._datasets.get(ref, first.dataset)
        body = _prepended(first.body.data, (request.body.data async for request in request_iterator))
        part = await MultipartBody(first.body.content_type, body).file()
        added = await self._datasets.add_file(ref, first.dataset, part.filename, part.content_type, part.content)
        wanted = first.auto_process if first.HasField("auto_process") else dataset.auto_process
        return await self._uploaded(ref, added, process=wanted)

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: grpc.aio.ServicerContext[object, object]
    ) -> pb.UploadFileResponse:
        """Stores a file sent as a header and chunks."""
        first = await _first(request_iterator)
        if first.WhichOneof("part") != "header":
            raise InvalidRequest("The first message must carry the header.")
        header = first.header
        ref = project_ref(header.namespace, header.project)
        dataset = await self._datasets.get(ref, header.dataset)
        added = await self._datasets.add_file(
            ref, header.dataset, header.filename, header.content_type or None, _chunks(request_iterator)
        )
        wanted = header.auto_process if header.HasField("auto_process") else dataset.auto_process
        return await self._uploaded(ref, added, process=wanted)

    async def RemoveFile(  # noqa: N802
        self, request: pb.RemoveFileRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.RemoveFileResponse:
        """Removes a file and its chunks from a dataset."""
        ref = project_ref(request.namespace, request.project)
        digest = names.file_hash(request.file_hash)
        chunks = await self._datasets.remove_file(ref, request.dataset, digest, from_disk=request.remove_from_disk)
        return pb.RemoveFileResponse(file_hash=digest, deleted_chunks=chunks)

    async def ProcessDataset(  # noqa: N802
        self, request: pb.ProcessDatasetRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ProcessDatasetResponse:
        """Processes a dataset; a client that goes away stops the work, the files done by then stay done."""
        ref = project_ref(request.namespace, request.project)
        dataset = names.segment("dataset", request.dataset)
        if not request.async_processing:
            report = await self._ingestion.process(ref, dataset)
            return report_message("Dataset processing completed", report)
        report = await self._ingestion.plan(ref, dataset)
        task = await self._tasks.submit(ref, PROCESS_DATASET, {"dataset": dataset})
        answer = report_message("Dataset processing started asynchronously", report)
        answer.task_id = task.id
        return answer

    async def _uploaded(self, ref: ProjectRef, added: AddedFile, *, process: bool) -> pb.UploadFileResponse:
        record = added.record
        processed = record.status == "processed"
        answer = pb.UploadFileResponse(
            filename=record.filename,
            hash=record.hash,
            processed=processed,
            skipped=added.skipped,
            status="skipped" if added.skipped else "uploaded",
        )
        if process and not processed:
            task = await self._tasks.submit(ref, PROCESS_DATASET, {"dataset": record.dataset})
            answer.task_id = task.id
            answer.status = "processing"
        return answer


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
    )


async def _first(requests: AsyncIterator[_T]) -> _T:
    try:
        return await anext(requests)
    except StopAsyncIteration:
        raise InvalidRequest("The upload is empty: it has no first message.") from None


async def _prepended(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for data in rest:
        yield data


async def _chunks(requests: AsyncIterator[pb.UploadFileRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequest("Only the first message may carry the header; the others carry chunks.")
        yield request.chunk
