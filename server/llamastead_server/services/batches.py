"""BatchService: OpenAI's files and batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.api import httpbody_pb2

from llamastead.v1 import batch_pb2 as pb
from llamastead.v1 import batch_pb2_grpc as pb_grpc
from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.tasks.batch_records import Batch, BatchFile, Page
from llamastead_server.domain.tasks.batches import PURPOSE, WINDOW, Batches
from llamastead_server.services import plain
from llamastead_server.services.multipart import MultipartBody

_Context = grpc.aio.ServicerContext[Any, Any]
_JSON_LINES = "application/jsonl"
_MOST_FILES = 10_000
_MOST_BATCHES = 100


class BatchServicer(pb_grpc.BatchServiceServicer):
    """Files and batches over gRPC and, through the gateway, REST."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def UploadBatchFileHttp(
        self, request_iterator: AsyncIterator[pb.UploadBatchFileHttpRequest], context: _Context
    ) -> pb.BatchFile:
        """Stores a file sent as a form."""
        first = await anext(request_iterator, pb.UploadBatchFileHttpRequest())

        async def body() -> AsyncIterator[bytes]:
            yield first.body.data
            async for request in request_iterator:
                yield request.body.data

        form = MultipartBody(first.body.content_type, body(), fields=("purpose",))
        part = await form.file()

        def purpose() -> str:
            stated = form.value("purpose")
            if stated is None:
                reason = f"Field required: {PURPOSE!r}"
                raise ValidationFailed("The form has no field 'purpose'.", details={"purpose": reason})
            return stated

        return _file(await self._batches.add_file(_caller(context), part.filename, part.content, purpose))

    async def UploadBatchFile(
        self, request_iterator: AsyncIterator[pb.UploadBatchFileRequest], context: _Context
    ) -> pb.BatchFile:
        """Stores a file sent in chunks."""
        first = await anext(request_iterator, pb.UploadBatchFileRequest())

        async def content() -> AsyncIterator[bytes]:
            yield first.chunk
            async for request in request_iterator:
                yield request.chunk

        name = first.filename or "batch.jsonl"
        return _file(await self._batches.add_file(_caller(context), name, content(), lambda: PURPOSE))

    async def ListBatchFiles(self, request: pb.ListBatchFilesRequest, context: _Context) -> pb.ListBatchFilesResponse:
        """Lists files."""
        order = request.order or "desc"
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc.", details={"field": "order"})
        page = Page(request.after or None, _limit(request, _MOST_FILES, _MOST_FILES), order == "desc")
        found = await self._batches.list_files(_caller(context), page, request.purpose or None)
        shown = found[: page.limit]
        return pb.ListBatchFilesResponse(
            object="list", data=map(_file, shown), has_more=len(found) > len(shown), **_ends(shown)
        )

    async def GetBatchFile(self, request: pb.GetBatchFileRequest, context: _Context) -> pb.BatchFile:
        """Gives a file's description."""
        return _file(await self._batches.get_file(_caller(context), request.file_id))

    async def GetBatchFileContent(
        self, request: pb.GetBatchFileContentRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Gives a file's content."""
        empty = True
        async with aclosing(self._batches.read_file(_caller(context), request.file_id)) as pieces:
            async for data in pieces:
                empty = False
                yield httpbody_pb2.HttpBody(content_type=_JSON_LINES, data=data)
        if empty:
            yield httpbody_pb2.HttpBody(content_type=_JSON_LINES)

    async def DeleteBatchFile(
        self, request: pb.DeleteBatchFileRequest, context: _Context
    ) -> pb.DeleteBatchFileResponse:
        """Deletes a file."""
        await self._batches.delete_file(_caller(context), request.file_id)
        return pb.DeleteBatchFileResponse(id=request.file_id, object="file", deleted=True)

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: _Context) -> pb.Batch:
        """Begins a batch."""
        window = request.completion_window or None
        return _batch(
            await self._batches.create(
                _caller(context), request.input_file_id, request.endpoint, window, dict(request.metadata)
            )
        )

    async def GetBatch(self, request: pb.GetBatchRequest, context: _Context) -> pb.Batch:
        """Gives a batch."""
        return _batch(await self._batches.get(_caller(context), request.batch_id))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: _Context) -> pb.ListBatchesResponse:
        """Lists batches."""
        page = Page(request.after or None, _limit(request, 20, _MOST_BATCHES))
        found = await self._batches.list_batches(_caller(context), page)
        shown = found[: page.limit]
        return pb.ListBatchesResponse(
            object="list", data=map(_batch, shown), has_more=len(found) > len(shown), **_ends(shown)
        )

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: _Context) -> pb.Batch:
        """Ends a batch early."""
        return _batch(await self._batches.cancel(_caller(context), request.batch_id))


def _caller(context: _Context) -> Principal:
    # Nobody is known where no layer asks who calls: then all is everyone's.
    return getattr(context, "principal", None) or Principal("nobody")


def _limit(request: Any, default: int, most: int) -> int:
    limit: int = request.limit if request.HasField("limit") else default
    if not 1 <= limit <= most:
        raise InvalidRequest(f"limit must be between 1 and {most}.", details={"field": "limit"})
    return limit


def _ends(shown: Sequence[Batch] | Sequence[BatchFile]) -> dict[str, str]:
    return {"first_id": shown[0].id, "last_id": shown[-1].id} if shown else {}


def _file(file: BatchFile) -> pb.BatchFile:
    return pb.BatchFile(
        id=file.id,
        object="file",
        bytes=file.size,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        status="processed",
    )


def _batch(batch: Batch) -> pb.Batch:
    errors = {"object": "list", "data": list(batch.errors)} if batch.errors else None
    return pb.Batch(
        id=batch.id,
        object="batch",
        endpoint=batch.endpoint,
        errors=plain.to_value(errors),
        input_file_id=batch.input_file_id,
        completion_window=WINDOW,
        status=batch.status,
        output_file_id=batch.output_file_id if batch.ended and batch.completed else None,
        error_file_id=batch.error_file_id if batch.ended and batch.failed else None,
        created_at=int(batch.created_at),
        expires_at=int(batch.expires_at),
        **{name: int(when) for name, when in batch.times.items()},
        request_counts=pb.BatchRequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        metadata=batch.metadata,
    )
