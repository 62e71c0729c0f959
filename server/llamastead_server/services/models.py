"""ModelService over the model registry."""

from __future__ import annotations

import re
from typing import Any

import grpc

from llamastead.v1 import model_pb2, model_pb2_grpc
from llamastead_server.domain import names
from llamastead_server.domain.config.runtime import RuntimeModel
from llamastead_server.domain.errors import (
    Conflict,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    NotFound,
    Overloaded,
    Unavailable,
)
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.models.routing import ModelRouter, RemoteModel
from llamastead_server.domain.models.runtime_settings import RuntimeSettings
from llamastead_server.domain.ports import ModelRegistry, ProjectStore
from llamastead_server.services import plain

_GIGA = 1024**3
_SMALLEST_WINDOW = 128
_LARGEST_WINDOW = 1 << 20
_VERSION = re.compile(r"(?<![\d.])\d{1,2}\.\d{1,2}(?![\d.]|[bB])")


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Lists, loads and unloads models."""

    def __init__(
        self,
        projects: ProjectStore,
        models: ModelRegistry,
        settings: RuntimeSettings,
        router: ModelRouter | None = None,
    ) -> None:
        self._projects = projects
        self._models = models
        self._settings = settings
        self._router = router or ModelRouter(models)

    async def ListProjectModels(
        self, request: model_pb2.ListProjectModelsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> model_pb2.ListProjectModelsResponse:
        """Lists the models a project configures."""
        config = await self._projects.config(names.project_ref(request.namespace, request.project))
        default = config.runtime.select(None).name
        entries = config.runtime.all_models()
        return model_pb2.ListProjectModelsResponse(
            total=len(entries),
            models=[self._project_model(entry, default) for entry in entries],
            object="list",
            data=[
                model_pb2.ModelListEntry(id=entry.name, object="model", created=0, owned_by=entry.provider)
                for entry in entries
            ],
        )

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> model_pb2.ListModelsResponse:
        """Lists the installed models."""
        cards = sorted(self._models.list_models(), key=lambda card: card.name)
        return model_pb2.ListModelsResponse(
            models=map(_model, cards), active_model=self._models.active_model, default_model=self._models.default_model
        )

    async def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> model_pb2.LoadModelResponse:
        """Loads a model and answers when it is ready."""
        given = plain.given(request)
        path, window = given.pop("model_path", ""), given.pop("context_length", None)
        if not path:
            raise InvalidRequest(
                "Give model_path: the name, path or alias of an installed model.", details={"field": "model_path"}
            )
        if window is not None and not _SMALLEST_WINDOW <= window <= _LARGEST_WINDOW:
            raise InvalidRequest(
                f"context_length must be between {_SMALLEST_WINDOW} and {_LARGEST_WINDOW}.",
                details={"field": "context_length"},
            )
        if given:
            self._settings.configure_model(path, given)
        try:
            card = await self._models.load(path, context_length=window)
        except Overloaded:
            raise
        except Unavailable as error:
            raise ModelLoadFailed(error.message, details=error.details) from None
        return model_pb2.LoadModelResponse(status="success", message="Model loaded successfully", model=card.name)

    async def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> model_pb2.UnloadModelResponse:
        """Unloads a model and frees its memory."""
        wanted = request.model or self._models.active_model
        unloaded = await self._models.unload(wanted) if wanted else ()
        if not unloaded:
            raise NotFound(f"Model {wanted!r} is not loaded." if wanted else "No model is loaded.")
        return model_pb2.UnloadModelResponse(
            status="success", message="Model unloaded successfully", model=unloaded[0].name
        )

    def _project_model(self, entry: RuntimeModel, default: str) -> model_pb2.ProjectModel:
        message = model_pb2.ProjectModel(
            name=entry.name,
            description=entry.description,
            provider=entry.provider,
            model=entry.model,
            default=entry.name == default,
            prompts=entry.prompts,
            tool_call_strategy=entry.tool_call_strategy,
            tools=[plain.to_struct(tool.model_dump(mode="json", exclude_unset=True)) for tool in entry.tools],
            keep_loaded=entry.keep_loaded,
            base_url=entry.base_url,
        )
        try:
            card = self._router.find(entry)
        except (ModelNotFound, Conflict) as error:
            message.runtime_status = "failed" if isinstance(error, Conflict) else "not_installed"
            message.runtime_message = error.message
            return message
        if isinstance(card, RemoteModel):
            message.runtime_status = "remote"
            message.runtime_host = card.host
            return message
        message.runtime_host = "localhost"
        message.runtime_running = card.state == "ready"
        message.runtime_details.CopyFrom(plain.to_struct(_details(card)))
        message.runtime_loaded = card.loaded
        message.runtime_status = "loaded" if card.loaded else card.state
        if card.loaded and card.memory_bytes is not None:
            message.memory_usage_bytes = card.memory_bytes
            message.memory_usage_human = f"{card.memory_bytes / _GIGA:.1f}GB"
        if card.loaded_seconds is not None:
            message.uptime_seconds = round(card.loaded_seconds, 3)
            message.uptime_human = _duration(int(card.loaded_seconds))
        return message


def _details(card: ModelCard) -> dict[str, Any]:
    window = {} if card.context_length is None else {"context_length": card.context_length}
    return {"name": card.name, "engine": card.engine, "format": card.format, **window}


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


def _model(card: ModelCard) -> model_pb2.Model:
    return model_pb2.Model(
        id=card.name,
        name=card.name,
        version=found[0] if (found := _VERSION.search(card.name)) else "",
        parameters=_parameters(card.parameters),
        context_length=card.context_length or 0,
        path=card.path,
        format=card.format,
        engine=card.engine,
        size_bytes=card.size_bytes,
        state=card.state,
        loaded=card.loaded,
        aliases=card.aliases,
        memory_bytes=card.memory_bytes if card.loaded else None,
    )


def _parameters(count: int | None) -> str:
    if not count:
        return ""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + letter
    return str(count)
