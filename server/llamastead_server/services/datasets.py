"""DatasetService: datasets and their files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from llamastead.v1 import dataset_pb2 as pb
from llamastead.v1 import dataset_pb2_grpc as pb_grpc
from llamastead_server.domain import names
from llamastead_server.domain.datasets.actions import DatasetActions
from llamastead_server.domain.datasets.dataset import AddedFile
from llamastead_server.domain.datasets.datasets import Datasets
from llamastead_server.domain.datasets.ingestion import PROCESS_DATASET, Ingestion
from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.names import ProjectRef, project_ref
from llamastead_server.domain.tasks.tasks import TaskRunner
from llamastead_server.services.bulk_upload import BulkUpload
from llamastead_server.services.dataset_messages import dataset_message, report_message, upload_message
from llamastead_server.services.metadata import CallMetadata
from llamastead_server.services.multipart import MultipartBody
from llamastead_server.services.plain import from_struct
from llamastead_server.services.uploads import (
    TypedFiles,
    chunks_of,
    first_of,
    overrides_of,
    parsed_overrides,
    prepended,
)

_OVERRIDES = "parser_overrides"
_DELETIONS = ("delete_file_chunks", "delete_dataset_chunks")
# Of a form with several files: past them it is refused as a whole.
_MOST_PARTS = 1000


class DatasetServicer(pb_grpc.DatasetServiceServicer):
    """Datasets over gRPC and, through the gateway, REST."""

    def __init__(self, datasets: Datasets, actions: DatasetActions, ingestion: Ingestion, tasks: TaskRunner) -> None:
        self._datasets = datasets
        self._actions = actions
        self._ingestion = ingestion
        self._tasks = tasks

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListDatasetsResponse:
        """Lists the datasets of a project."""
        found = await self._datasets.list_datasets(project_ref(request.namespace, request.project))
        detailed = request.include_extra_details or not request.HasField("include_extra_details")
        # In a thread: for thousands of files it would hold the event loop.
        datasets = await asyncio.to_thread(lambda: [dataset_message(dataset, detailed=detailed) for dataset in found])
        return pb.ListDatasetsResponse(total=len(found), datasets=datasets)

    async def CreateDataset(
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

    async def ListStrategies(
        self, request: pb.ListStrategiesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListStrategiesResponse:
        """Lists the strategies and the databases a dataset can name."""
        strategies, databases = await self._datasets.strategies(project_ref(request.namespace, request.project))
        return pb.ListStrategiesResponse(data_processing_strategies=strategies, databases=databases)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.DeleteDatasetResponse:
        """Deletes a dataset with its chunks and files."""
        dataset = await self._datasets.delete(project_ref(request.namespace, request.project), request.dataset)
        return pb.DeleteDatasetResponse(dataset=dataset_message(dataset, detailed=True))

    async def UploadFileHttp(
        self,
        request_iterator: AsyncIterator[pb.UploadFileHttpRequest],
        context: grpc.aio.ServicerContext[object, object],
    ) -> pb.UploadFileResponse:
        """Stores a file sent as a form."""
        first = await first_of(request_iterator)
        ref = project_ref(first.namespace, first.project)
        dataset = await self._datasets.get(ref, first.dataset)
        body = prepended(first.body.data, (request.body.data async for request in request_iterator))
        form = MultipartBody(first.body.content_type, body, fields=[_OVERRIDES])
        part = await form.file()
        added = await self._datasets.add_file(
            ref,
            first.dataset,
            part.filename,
            part.content_type,
            part.content,
            lambda: parsed_overrides(form.value(_OVERRIDES)),
        )
        wanted = first.auto_process if first.HasField("auto_process") else dataset.auto_process
        return await self._uploaded(ref, added, process=wanted)

    async def UploadFile(
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: grpc.aio.ServicerContext[object, object]
    ) -> pb.UploadFileResponse:
        """Stores a file sent as a header and chunks."""
        first = await first_of(request_iterator)
        if first.WhichOneof("part") != "header":
            raise InvalidRequest("The first message must carry the header.")
        header = first.header
        ref = project_ref(header.namespace, header.project)
        dataset = await self._datasets.get(ref, header.dataset)
        added = await self._datasets.add_file(
            ref,
            header.dataset,
            header.filename,
            header.content_type or None,
            chunks_of(request_iterator),
            lambda: overrides_of(header),
        )
        wanted = header.auto_process if header.HasField("auto_process") else dataset.auto_process
        return await self._uploaded(ref, added, process=wanted)

    async def UploadFilesHttp(
        self,
        request_iterator: AsyncIterator[pb.UploadFilesHttpRequest],
        context: grpc.aio.ServicerContext[object, object],
    ) -> pb.UploadFilesResponse:
        """Stores several files sent as a form."""
        first = await first_of(request_iterator)
        ref = project_ref(first.namespace, first.project)
        await self._datasets.get(ref, first.dataset)
        body = prepended(first.body.data, (request.body.data async for request in request_iterator))
        form = MultipartBody(first.body.content_type, body, field="files", most_parts=_MOST_PARTS)
        bulk = BulkUpload(self._datasets, ref, first.dataset)
        while (part := await form.next_file()) is not None:
            await bulk.add(part.filename, part.content_type, part.content)
        form.require_file()
        return await self._all_uploaded(bulk, process=first.auto_process)

    async def UploadFiles(
        self, request_iterator: AsyncIterator[pb.UploadFilesRequest], context: grpc.aio.ServicerContext[object, object]
    ) -> pb.UploadFilesResponse:
        """Stores several files sent as headers and chunks."""
        first = await first_of(request_iterator)
        if first.WhichOneof("part") != "header":
            raise InvalidRequest("The first message must name the dataset.")
        header = first.header
        ref = project_ref(header.namespace, header.project)
        await self._datasets.get(ref, header.dataset)
        files, bulk = TypedFiles(request_iterator), BulkUpload(self._datasets, ref, header.dataset)
        while (file := await files.next()) is not None:
            await bulk.add(file.filename, file.content_type or None, files.content(), overrides_of(file))
        return await self._all_uploaded(bulk, process=header.auto_process)

    async def RemoveFile(
        self, request: pb.RemoveFileRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.RemoveFileResponse:
        """Removes a file and its chunks from a dataset."""
        ref = project_ref(request.namespace, request.project)
        digest = names.file_hash(request.file_hash)
        chunks = await self._datasets.remove_file(ref, request.dataset, digest, from_disk=request.remove_from_disk)
        return pb.RemoveFileResponse(file_hash=digest, deleted_chunks=chunks)

    async def ProcessDataset(
        self, request: pb.ProcessDatasetRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ProcessDatasetResponse:
        """Processes a dataset; a client that goes away stops the work, the files done by then stay done."""
        ref = project_ref(request.namespace, request.project)
        dataset = names.segment("dataset", request.dataset)
        if not request.async_processing:
            report = await self._ingestion.process(ref, dataset)
            return report_message("Dataset processing completed", report)
        run = await self._ingestion.plan(ref, dataset)
        task = await self._tasks.submit(ref, PROCESS_DATASET, {"dataset": dataset}, run.meta())
        answer = report_message("Dataset processing started asynchronously", run.report())
        answer.task_id = task.id
        return answer

    async def RunDatasetAction(
        self, request: pb.RunDatasetActionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.RunDatasetActionResponse:
        """Runs an action on a dataset."""
        ref = project_ref(request.namespace, request.project)
        dataset = names.segment("dataset", request.dataset)
        digest = names.file_hash(request.file_hash) if request.file_hash else None
        overrides = from_struct(request.parser_overrides) if request.HasField("parser_overrides") else None
        if request.action_type in ("process", "ingest"):
            if overrides is not None:
                await self._actions.override_parser(ref, dataset, digest, overrides)
            run = await self._ingestion.plan(ref, dataset, digest)
            arguments = {"dataset": dataset, "file_hash": digest}
            task = await self._tasks.submit(ref, PROCESS_DATASET, arguments, run.meta())
            uri = _base_url(context) + f"/v1/projects/{ref}/tasks/{task.id}"
            return pb.RunDatasetActionResponse(message="Accepted", task_uri=uri, task_id=task.id)
        if overrides is not None and request.action_type in _DELETIONS:
            raise _wrong("parser_overrides", "only the action process takes them")
        if request.action_type == "delete_file_chunks":
            if digest is None:
                raise _wrong("file_hash", "Field required")
            cleared = await self._actions.clear_chunks(ref, dataset, digest)
            message = f"Deleted {cleared.chunks} chunks of the file."
            return pb.RunDatasetActionResponse(message=message, file_hash=digest, deleted_chunks=cleared.chunks)
        if request.action_type == "delete_dataset_chunks":
            if digest is not None:
                raise _wrong("file_hash", "the action is about every file; use delete_file_chunks for one")
            cleared = await self._actions.clear_chunks(ref, dataset)
            return pb.RunDatasetActionResponse(
                message=f"Deleted {cleared.chunks} chunks of {cleared.files} files.",
                total_deleted_chunks=cleared.chunks,
                total_files_cleared=cleared.files,
                total_files_failed=cleared.failed,
            )
        raise _wrong("action_type", f"use process, ingest, {' or '.join(_DELETIONS)}")

    async def _uploaded(self, ref: ProjectRef, added: AddedFile, *, process: bool) -> pb.UploadFileResponse:
        answer = upload_message(added)
        if process and not answer.processed:
            arguments = {"dataset": added.record.dataset, "file_hash": added.record.hash}
            answer.task_id = (await self._tasks.submit(ref, PROCESS_DATASET, arguments)).id
            answer.status = "processing"
        return answer

    async def _all_uploaded(self, bulk: BulkUpload, *, process: bool) -> pb.UploadFilesResponse:
        answer = bulk.answer()
        if process and answer.uploaded + answer.skipped > 0:
            task = await self._tasks.submit(bulk.project, PROCESS_DATASET, {"dataset": bulk.dataset})
            answer.task_id = task.id
            answer.status = "processing"
        return answer


def _wrong(field: str, reason: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {reason}.", details={field: reason})


def _base_url(context: grpc.aio.ServicerContext[object, object]) -> str:
    """Where the request was sent to; empty for callers that came past the gateway."""
    metadata = CallMetadata(context.invocation_metadata())
    host = metadata.get("x-forwarded-host")
    return f"{metadata.get('x-forwarded-proto') or 'http'}://{host}" if host else ""
