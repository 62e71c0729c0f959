"""ExampleService: ready-made projects."""

from __future__ import annotations

import grpc

from llamastead.v1 import example_pb2 as pb
from llamastead.v1 import example_pb2_grpc as pb_grpc
from llamastead_server.domain.names import project_ref
from llamastead_server.domain.projects.examples import Example, ExampleDataset, Examples

_KINDS = {
    ".pdf": "pdf",
    ".csv": "csv",
    ".md": "markdown",
    ".markdown": "markdown",
    ".json": "json",
    ".txt": "text",
    ".html": "html",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff"), "images"),
}


class ExampleServicer(pb_grpc.ExampleServiceServicer):
    """Examples over gRPC and, through the gateway, REST."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    async def ListExamples(
        self, request: pb.ListExamplesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListExamplesResponse:
        """Lists the examples."""
        found = await self._examples.list_examples()
        return pb.ListExamplesResponse(examples=[example_message(example) for example in found])

    async def ImportProject(
        self, request: pb.ImportProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ImportProjectResponse:
        """Makes a project from an example."""
        imported = await self._examples.import_project(
            request.example_id,
            project_ref(request.namespace, request.name),
            process=request.process or not request.HasField("process"),
        )
        return pb.ImportProjectResponse(
            project=imported.project.name,
            namespace=imported.project.namespace,
            datasets=imported.datasets,
            task_ids=imported.task_ids,
        )

    async def ImportData(
        self, request: pb.ImportDataRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ImportDataResponse:
        """Adds an example's datasets to a project."""
        imported = await self._examples.import_data(
            request.example_id,
            project_ref(request.namespace, request.project),
            include_strategies=request.include_strategies or not request.HasField("include_strategies"),
            process=request.process or not request.HasField("process"),
        )
        return pb.ImportDataResponse(
            project=imported.project.name,
            namespace=imported.project.namespace,
            datasets=imported.datasets,
            task_ids=imported.task_ids,
        )

    async def ListExampleDatasets(
        self, request: pb.ListExampleDatasetsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListExampleDatasetsResponse:
        """Lists the datasets of one example, or of all."""
        if request.example_id:
            examples = [await self._examples.get(request.example_id)]
        else:
            examples = [*await self._examples.list_examples()]
        return pb.ListExampleDatasetsResponse(
            datasets=[dataset_message(example, dataset) for example in examples for dataset in example.datasets]
        )

    async def ImportDataset(
        self, request: pb.ImportDatasetRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ImportDatasetResponse:
        """Adds one dataset of an example to a project."""
        imported, files = await self._examples.import_dataset(
            request.example_id,
            request.dataset,
            project_ref(request.namespace, request.project),
            target=request.target_dataset or None,
            include_strategies=request.include_strategies or not request.HasField("include_strategies"),
            process=request.process or not request.HasField("process"),
        )
        return pb.ImportDatasetResponse(
            project=imported.project.name,
            namespace=imported.project.namespace,
            dataset=imported.datasets[0],
            file_count=files,
            task_id=next(iter(imported.task_ids), None),
        )


def example_message(example: Example) -> pb.Example:
    """An example as the API shows it."""
    return pb.Example(
        id=example.id,
        slug=example.slug,
        title=example.title,
        description=example.description,
        primaryModel=example.primary_model,
        tags=example.tags,
        dataset_count=len(example.datasets),
        data_size_bytes=example.data_size_bytes,
        data_size_human=human_size(example.data_size_bytes),
        project_size_bytes=example.project_size_bytes,
        project_size_human=human_size(example.project_size_bytes),
        updated_at=example.updated_at.isoformat(timespec="seconds"),
    )


def dataset_message(example: Example, dataset: ExampleDataset) -> pb.ExampleDataset:
    """A dataset of an example as the API shows it."""
    kinds = {_KINDS.get(file.suffix.lower()) for file in dataset.files}
    return pb.ExampleDataset(
        example_id=example.id,
        example_title=example.title,
        name=dataset.name,
        strategy=dataset.strategy,
        database=dataset.database,
        kind=kinds.pop() if len(kinds) == 1 else None,
        ingest=dataset.patterns,
        file_count=len(dataset.files),
        size_bytes=dataset.size_bytes,
        size_human=human_size(dataset.size_bytes),
    )


def human_size(size: float) -> str:
    """A number of bytes for people, such as `2.0MB`."""
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}GB"
