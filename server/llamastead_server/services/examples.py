"""ExampleService: ready-made projects."""

from __future__ import annotations

import grpc

from llamastead.v1 import example_pb2 as pb
from llamastead.v1 import example_pb2_grpc as pb_grpc
from llamastead_server.domain.examples import Example, Examples
from llamastead_server.domain.names import project_ref


class ExampleServicer(pb_grpc.ExampleServiceServicer):
    """Examples over gRPC and, through the gateway, REST."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    async def ListExamples(  # noqa: N802
        self, request: pb.ListExamplesRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListExamplesResponse:
        """Lists the examples."""
        found = await self._examples.list_examples()
        return pb.ListExamplesResponse(examples=[example_message(example) for example in found])

    async def ImportProject(  # noqa: N802
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


def human_size(size: float) -> str:
    """A number of bytes for people, such as `2.0MB`."""
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}GB"
