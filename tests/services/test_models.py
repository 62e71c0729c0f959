from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from llamastead.v1 import model_pb2
from llamastead_server.domain.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, NotFound, Unavailable
from llamastead_server.services.models import ModelServicer
from tests.chat_stack import REF, ChatStack, chat_stack

# These calls use nothing of their context.
CONTEXT = cast("grpc.aio.ServicerContext[Any, Any]", None)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ChatStack]:
    async with chat_stack(tmp_path) as stack:
        yield stack


@pytest.fixture
def service(stack: ChatStack) -> ModelServicer:
    return ModelServicer(stack.projects, stack.models, stack.settings)


async def test_a_projects_models_say_which_is_the_default_and_what_is_missing(
    stack: ChatStack, service: ModelServicer
) -> None:
    models = [
        {"name": "fast", "provider": "ollama", "model": "llama3.2:3b", "description": "Quick."},
        {"name": "smart", "provider": "ollama", "model": "llama3.2:70b"},
    ]
    await stack.project(runtime={"models": models, "default_model": "smart"})
    request = model_pb2.ListProjectModelsRequest(namespace=REF.namespace, project=REF.name)
    answer = await service.ListProjectModels(request, CONTEXT)
    fast, smart = answer.models
    assert (answer.total, [entry.id for entry in answer.data]) == (2, ["fast", "smart"])
    assert (fast.model, fast.description, fast.default, fast.runtime_status) == (
        "llama3.2:3b",
        "Quick.",
        False,
        "loaded",
    )
    assert (smart.default, smart.runtime_status, smart.runtime_loaded) == (True, "not_installed", False)
    assert "llama3.2:70b" in smart.runtime_message


async def test_models_are_listed_loaded_and_unloaded(service: ModelServicer) -> None:
    listed = await service.ListModels(model_pb2.ListModelsRequest(), CONTEXT)
    assert ([model.id for model in listed.models], listed.active_model, listed.default_model) == (
        ["fake"],
        "fake",
        "fake",
    )
    unloaded = await service.UnloadModel(model_pb2.UnloadModelRequest(), CONTEXT)
    assert (unloaded.status, unloaded.message, unloaded.model) == ("success", "Model unloaded successfully", "fake")
    assert not (await service.ListModels(model_pb2.ListModelsRequest(), CONTEXT)).HasField("active_model")
    with pytest.raises(NotFound, match="No model is loaded"):
        await service.UnloadModel(model_pb2.UnloadModelRequest(), CONTEXT)
    loaded = await service.LoadModel(model_pb2.LoadModelRequest(model_path="llama3.2:3b"), CONTEXT)
    assert (loaded.status, loaded.message, loaded.model) == ("success", "Model loaded successfully", "fake")


async def test_what_cannot_be_loaded_is_refused(service: ModelServicer) -> None:
    with pytest.raises(InvalidRequest, match="model_path"):
        await service.LoadModel(model_pb2.LoadModelRequest(), CONTEXT)
    with pytest.raises(ModelNotFound):
        await service.LoadModel(model_pb2.LoadModelRequest(model_path="absent"), CONTEXT)
    with pytest.raises(InvalidRequest, match="context_length"):
        await service.LoadModel(model_pb2.LoadModelRequest(model_path="fake", context_length=1), CONTEXT)
    with pytest.raises(InvalidRequest, match="temperature"):
        await service.LoadModel(model_pb2.LoadModelRequest(model_path="fake", temperature=3), CONTEXT)


async def test_a_load_sets_the_models_defaults_and_its_window(stack: ChatStack, service: ModelServicer) -> None:
    request = model_pb2.LoadModelRequest(model_path="fake", context_length=512, temperature=0, max_tokens=7)
    await service.LoadModel(request, CONTEXT)
    assert stack.engine.card.context_length == 512
    assert stack.settings.parameters("fake")["temperature"] == 0
    assert stack.settings.token_limit(None) == 7


async def test_a_load_that_fails_is_an_error_of_the_server(
    stack: ChatStack, service: ModelServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(name: str, **options: Any) -> None:
        raise Unavailable("The file is damaged.")

    monkeypatch.setattr(stack.models, "load", broken)
    with pytest.raises(ModelLoadFailed, match="damaged"):
        await service.LoadModel(model_pb2.LoadModelRequest(model_path="fake"), CONTEXT)
