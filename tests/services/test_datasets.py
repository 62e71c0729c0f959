"""DatasetService and TaskService through a real gRPC server, over the real parts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.api import httpbody_pb2
from google.protobuf import json_format

from llamastead.v1 import dataset_pb2 as pb
from llamastead.v1 import dataset_pb2_grpc, task_pb2, task_pb2_grpc
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.services.datasets import DatasetServicer
from llamastead_server.services.tasks import TaskServicer
from tests.dataset_stack import DATASET, MODEL, REF, Stack, stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = {"namespace": REF.namespace, "project": REF.name, "dataset": DATASET}
TEXT = b"The barn gate closes at 21:00."
HASH = hashlib.sha256(TEXT).hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder() -> AsyncIterator[WorkerEmbedder]:
    async with WorkerEmbedder(MODEL) as embedder:
        yield embedder


@pytest_asyncio.fixture(loop_scope="module")
async def parts(tmp_path: Path, embedder: WorkerEmbedder) -> AsyncIterator[Stack]:
    async with stack(tmp_path, embedder) as parts:
        await parts.make_project()
        await parts.tasks.start()
        yield parts


@pytest_asyncio.fixture(loop_scope="module")
async def channel(parts: Stack) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(
        DatasetServicer(parts.datasets, parts.actions, parts.ingestion, parts.tasks), server
    )
    task_pb2_grpc.add_TaskServiceServicer_to_server(TaskServicer(parts.tasks), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def form(*pieces: bytes, **options: bool) -> AsyncIterator[pb.UploadFileHttpRequest]:
    async def requests() -> AsyncIterator[pb.UploadFileHttpRequest]:
        content_type = "multipart/form-data; boundary=XXX"
        head = b'--XXX\r\nContent-Disposition: form-data; name="file"; filename="gate.txt"\r\n\r\n'
        first = httpbody_pb2.HttpBody(content_type=content_type, data=head)
        yield pb.UploadFileHttpRequest(**NAMES, body=first, **options)
        for piece in (*pieces, b"\r\n--XXX--\r\n"):
            yield pb.UploadFileHttpRequest(body=httpbody_pb2.HttpBody(data=piece))

    return requests()


def typed(*pieces: bytes) -> AsyncIterator[pb.UploadFileRequest]:
    async def requests() -> AsyncIterator[pb.UploadFileRequest]:
        yield pb.UploadFileRequest(header=pb.UploadFileHeader(**NAMES, filename="gate.txt"))
        for piece in pieces:
            yield pb.UploadFileRequest(chunk=piece)

    return requests()


def as_json(message: object) -> dict[str, object]:
    """What the gateway prints."""
    return json_format.MessageToDict(
        message,  # type: ignore[arg-type]
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


async def test_a_form_and_a_typed_stream_store_the_same_file(channel: grpc.aio.Channel) -> None:
    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    first = await stub.UploadFileHttp(form(TEXT[:10], TEXT[10:]))
    stored = {"filename": "gate.txt", "hash": HASH, "processed": False, "skipped": False, "status": "uploaded"}
    assert as_json(first) == stored
    reason = "The dataset holds this content already, as 'gate.txt'."
    assert as_json(await stub.UploadFile(typed(TEXT))) == {
        **stored,
        "skipped": True,
        "status": "skipped",
        "reason": reason,
    }
    assert (await stub.UploadFile(typed())).hash == hashlib.sha256(b"").hexdigest()


async def test_listing_has_both_documented_shapes_of_details(channel: grpc.aio.Channel) -> None:
    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    await stub.UploadFile(typed(TEXT))
    request = pb.ListDatasetsRequest(namespace=REF.namespace, project=REF.name)
    listed = as_json(await stub.ListDatasets(request))
    assert listed["total"] == 1
    (dataset,) = listed["datasets"]  # type: ignore[misc]
    assert dataset["files"] == [HASH]
    details = dataset["details"]
    assert (details["total_files"], details["total_size_bytes"]) == (1, len(TEXT))
    assert details["file_details"][0]["original_filename"] == "gate.txt"
    assert details["files_metadata"][0]["mime_type"] == "text/plain"
    assert details["files_metadata"][0]["status"] == "uploaded"
    request.include_extra_details = False
    assert "details" not in as_json(await stub.ListDatasets(request))["datasets"][0]  # type: ignore[index]


async def test_processing_answers_as_documented(channel: grpc.aio.Channel) -> None:
    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    await stub.UploadFile(typed(TEXT))
    answer = as_json(await stub.ProcessDataset(pb.ProcessDatasetRequest(**NAMES)))
    file = {"hash": HASH, "filename": "gate.txt", "status": "processed", "parser": "text", "extractors": ["text"]}
    assert answer == {
        "message": "Dataset processing completed",
        "processed_files": 1,
        "skipped_files": 0,
        "failed_files": 0,
        "strategy": "universal_processor",
        "database": "main_db",
        "details": [
            {
                **file,
                "chunks": 1,
                "chunk_size": 500,
                "embedder": MODEL,
                "file_hash": HASH,
                "stored_count": 1,
                "skipped_count": 0,
            }
        ],
    }
    again = as_json(await stub.ProcessDataset(pb.ProcessDatasetRequest(**NAMES)))
    assert again["details"][0]["reason"] == "already processed"  # type: ignore[index]
    uploaded = await stub.UploadFile(typed(TEXT))
    assert (uploaded.processed, uploaded.skipped) == (True, True)
    removed = await stub.RemoveFile(pb.RemoveFileRequest(**NAMES, file_hash=HASH, remove_from_disk=True))
    assert as_json(removed) == {"file_hash": HASH, "deleted_chunks": 1}


async def test_asynchronous_processing_answers_a_task_that_can_be_followed(channel: grpc.aio.Channel) -> None:
    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    await stub.UploadFile(typed(TEXT))
    started = as_json(await stub.ProcessDataset(pb.ProcessDatasetRequest(**NAMES, async_processing=True)))
    counts = {"file_hash": HASH, "stored_count": 0, "skipped_count": 0}
    assert started["details"] == [{"hash": HASH, "filename": None, "status": "pending", "extractors": [], **counts}]
    names = {"namespace": REF.namespace, "project": REF.name, "task_id": str(started["task_id"])}
    tasks = task_pb2_grpc.TaskServiceStub(channel)
    states = [as_json(task) async for task in tasks.WatchTask(task_pb2.WatchTaskRequest(**names))]
    last = as_json(await tasks.GetTask(task_pb2.GetTaskRequest(**names)))
    assert last == states[-1]
    assert (last["state"], last["error"], last["traceback"], last["cancelled"]) == ("SUCCESS", None, None, False)
    assert last["meta"] == {
        "current": 1,
        "total": 1,
        "progress": 100.0,
        "message": "Processed 1 files",
        "files": [
            {
                "index": 0,
                "task_id": last["task_id"],
                "file_hash": HASH,
                "filename": "gate.txt",
                "state": "success",
                "chunks": 1,
                "stored_count": 1,
                "skipped_count": 0,
            }
        ],
    }
    result = last["result"]
    assert isinstance(result, dict)
    assert (result["processed_files"], result["failed_files"]) == (1, 0)
    ((ok, detail),) = result["details"]
    assert (ok, detail["filename"], detail["result"]["filename"]) == (True, "gate.txt", "gate.txt")


async def test_an_upload_with_auto_process_is_processed_as_a_task(channel: grpc.aio.Channel) -> None:
    uploaded = await dataset_pb2_grpc.DatasetServiceStub(channel).UploadFileHttp(form(TEXT, auto_process=True))
    assert uploaded.status == "processing"
    request = task_pb2.WatchTaskRequest(namespace=REF.namespace, project=REF.name, task_id=uploaded.task_id)
    states = [task.state async for task in task_pb2_grpc.TaskServiceStub(channel).WatchTask(request)]
    assert states[-1] == "SUCCESS"


async def test_a_typed_stream_stores_several_files_and_a_bad_one_fails_alone(channel: grpc.aio.Channel) -> None:
    def files(*named: tuple[str, bytes]) -> AsyncIterator[pb.UploadFilesRequest]:
        async def requests() -> AsyncIterator[pb.UploadFilesRequest]:
            yield pb.UploadFilesRequest(header=pb.UploadFilesHeader(**NAMES, auto_process=True))
            for name, content in named:
                header = pb.FileHeader(filename=name)
                if name == "odd.txt":
                    header.parser_overrides["chunk_size"] = "many"
                yield pb.UploadFilesRequest(file=header)
                yield pb.UploadFilesRequest(chunk=content[:5])
                yield pb.UploadFilesRequest(chunk=content[5:])

        return requests()

    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    answer = await stub.UploadFiles(files(("gate.txt", TEXT), ("odd.txt", b"odd text"), ("again.txt", TEXT)))
    assert (answer.uploaded, answer.skipped, answer.failed, answer.status) == (1, 1, 1, "processing")
    assert [(file.filename, file.status) for file in answer.files] == [
        ("gate.txt", "uploaded"),
        ("odd.txt", "failed"),
        ("gate.txt", "skipped"),
    ]
    assert "parser_overrides.chunk_size" in answer.files[1].error
    request = task_pb2.WatchTaskRequest(namespace=REF.namespace, project=REF.name, task_id=answer.task_id)
    states = [task.state async for task in task_pb2_grpc.TaskServiceStub(channel).WatchTask(request)]
    assert states[-1] == "SUCCESS"


async def test_a_dataset_is_created_and_deleted(channel: grpc.aio.Channel) -> None:
    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    request = pb.CreateDatasetRequest(namespace=REF.namespace, project=REF.name, name="more")
    created = as_json(await stub.CreateDataset(request))["dataset"]
    documented = {"name": "more", "database": "main_db", "data_processing_strategy": "universal_processor"}
    assert created == {**documented, "files": [], "auto_process": False}
    deleted = await stub.DeleteDataset(
        pb.DeleteDatasetRequest(namespace=REF.namespace, project=REF.name, dataset="more")
    )
    assert deleted.dataset.name == "more"


async def test_a_client_that_goes_away_leaves_no_upload_behind(channel: grpc.aio.Channel, parts: Stack) -> None:
    call = dataset_pb2_grpc.DatasetServiceStub(channel).UploadFile()
    await call.write(pb.UploadFileRequest(header=pb.UploadFileHeader(**NAMES, filename="gate.txt")))
    incoming = parts.folder / "projects" / "my-org" / "shop" / "lf_data" / "incoming"
    for _ in range(20):
        await call.write(pb.UploadFileRequest(chunk=b"x" * 500_000))
    assert len(list(incoming.iterdir())) == 1
    call.cancel()
    for _ in range(500):
        if not list(incoming.iterdir()):
            break
        await asyncio.sleep(0.01)
    assert await parts.left() == (0, 0, 0)
