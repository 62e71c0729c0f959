"""Every RPC declares in the contract who may call it, and what that comes to is written down here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from llamastead.v1 import access_pb2, chat_pb2, dataset_pb2, prompt_pb2
from llamastead_server.domain.access.rights import Principal, ProjectPattern, Scope
from llamastead_server.domain.errors import PermissionDenied
from llamastead_server.services.method_access import MethodAccess, access
from llamastead_server.services.server import SERVICE_NAMES

BOT = Principal("token:bot", Scope.WRITE, ProjectPattern("acme", "bot"))


def methods() -> Iterator[MethodDescriptor]:
    pool: Any = descriptor_pool.Default()
    for name in SERVICE_NAMES:
        yield from pool.FindServiceByName(name).methods


ALL = {f"{method.containing_service.name}.{method.name}": method for method in methods()}


def rules(name: str) -> MethodAccess:
    return access("/llamastead.v1." + name.replace(".", "/"))


def request(name: str, namespace: str = "", project: str = "") -> Message:
    message: Any = message_factory.GetMessageClass(ALL[name].input_type)()
    found = rules(name)
    if namespace:
        named = getattr(message, found.holder) if found.holder else message
        named.namespace = namespace
        if found.project:
            setattr(named, found.project, project)
    return message


@pytest.mark.parametrize("name", ALL)
def test_every_rpc_declares_its_scope(name: str) -> None:
    declared = ALL[name].GetOptions().Extensions[access_pb2.access]
    assert declared.scope != access_pb2.SCOPE_UNSPECIFIED


def test_what_declares_nothing_is_for_administrators() -> None:
    for method in ("/llamastead.v1.NoService/None", "/other.v1.Service/Method", ""):
        assert access(method).scope is Scope.ADMIN


def test_only_what_says_nothing_about_the_machine_needs_no_token() -> None:
    assert {name for name in ALL if rules(name).scope is None} == {
        "SystemService.GetRoot",
        "SystemService.GetHealth",
        "SystemService.GetLiveness",
        "SystemService.GetOpenApi",
        "SystemService.GetOpenApiYaml",
    }


def test_what_operates_the_server_is_for_administrators() -> None:
    administration = {
        "ConfigService.Config", "ConfigService.ConfigureModel", "ConfigService.SaveConfig", "ConfigService.ResetConfig",
        "ConfigService.ConfigHttp", "ConfigService.ConfigureModelHttp", "ConfigService.SaveConfigHttp",
        "ConfigService.ResetConfigHttp",
        "ModelService.LoadModel", "ModelService.UnloadModel",
        "OperationsService.ClearCache", "OperationsService.Shutdown", "OperationsService.GetLogs",
        "OperationsService.GetLogsHttp", "OperationsService.GetDiagnostics", "OperationsService.GetDiagnosticsHttp",
        "TokenService.CreateToken", "TokenService.ListTokens", "TokenService.RevokeToken",
    }  # fmt: skip
    assert administration <= {name for name in ALL if rules(name).scope is Scope.ADMIN}


def test_what_changes_or_deletes_needs_more_than_read() -> None:
    verbs = ("Create", "Delete", "Update", "Remove", "Upload", "Import", "Cancel", "Process", "Run")
    asking = {"ChatService", "OpenAIService", "PromptService"}
    changing = {name for name in ALL if name.split(".")[1].startswith(verbs) and name.split(".")[0] not in asking}
    assert len(changing) >= 12
    assert [name for name in changing if rules(name).scope is Scope.READ] == []


def test_a_chat_client_needs_no_more_than_read() -> None:
    chatting = (
        "ChatService.CreateChatCompletionHttp",
        "ChatService.StreamChatCompletion",
        "ChatService.GetChatHistory",
    )
    for name in (*chatting, "PromptService.ProcessHttp", "RetrievalService.Query"):
        assert rules(name).scope is Scope.READ


@pytest.mark.parametrize("name", ALL)
def test_a_restricted_token_reaches_its_project_and_nothing_else(name: str) -> None:
    found = rules(name)
    beyond = [request(name)]
    if found.namespaced:
        found.demand_project(BOT, request(name, "acme", "bot"))
        beyond.append(request(name, "other", "bot"))
    if found.project:
        beyond.append(request(name, "acme", "other"))
    for message in beyond:
        if found.scope is None or found.any_project:
            found.demand_project(BOT, message)
        else:
            with pytest.raises(PermissionDenied, match="acme/bot"):
                found.demand_project(BOT, message)


def test_what_a_restricted_token_may_call_beside_its_project_is_little() -> None:
    assert {name for name in ALL if rules(name).any_project} == {
        "ExampleService.ListExampleDatasets",
        "ExampleService.ListExamples",
        "ModelService.ListModels",
        "OpenAIService.GetOpenAIModel",
        "OpenAIService.ListOpenAIModels",
        "OperationsService.HealthCheck",
        "SystemService.CheckVersion",
    }


def test_the_project_is_found_wherever_a_request_names_it() -> None:
    assert rules("ProjectService.CreateProject").project == "name"
    assert rules("ExampleService.ImportProject").project == "name"
    assert rules("DatasetService.CreateDataset").project == "project"
    assert rules("ProjectService.ListProjects").project == ""
    assert rules("DatasetService.UploadFile").holder == "header"
    named = {name for name in ALL if rules(name).namespaced}
    assert {name for name in named if rules(name).project == "name"} == {
        "ProjectService.CreateProject",
        "ExampleService.ImportProject",
    }
    assert {name for name in named if not rules(name).project} == {"ProjectService.ListProjects"}


def test_a_request_that_could_name_a_project_does_not_when_the_call_is_server_wide() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/server_wide.proto",
        package="tests.v1",
        syntax="proto3",
        dependency=["llamastead/v1/chat.proto", "llamastead/v1/access.proto"],
    )
    method = file.service.add(name="S").method.add(
        name="M",
        input_type=".llamastead.v1.CreateChatCompletionRequest",
        output_type=".llamastead.v1.ChatCompletion",
    )
    declared: Any = method.options.Extensions[access_pb2.access]
    declared.scope, declared.server_wide = access_pb2.SCOPE_READ, True
    pool: Any = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = access("/tests.v1.S/M")
    assert found.scope is Scope.READ
    with pytest.raises(PermissionDenied):
        found.demand_project(BOT, chat_pb2.CreateChatCompletionRequest(namespace="acme", project="bot"))


def test_later_parts_of_an_upload_need_not_name_the_project_but_cannot_name_another() -> None:
    upload = rules("DatasetService.UploadFile")
    upload.demand_project(BOT, dataset_pb2.UploadFileRequest(chunk=b"x"), first=False)
    with pytest.raises(PermissionDenied):
        upload.demand_project(BOT, dataset_pb2.UploadFileRequest(chunk=b"x"), first=True)
    with pytest.raises(PermissionDenied):
        upload.demand_project(BOT, request("DatasetService.UploadFile", "acme", "other"), first=False)


def test_streams_are_told_from_single_answers() -> None:
    http = rules("ChatService.CreateChatCompletionHttp")
    assert http.is_stream(chat_pb2.CreateChatCompletionRequest(stream=True))
    assert not http.is_stream(chat_pb2.CreateChatCompletionRequest(stream=False))
    assert not http.is_stream(chat_pb2.CreateChatCompletionRequest())
    assert not rules("ChatService.CreateChatCompletion").is_stream(chat_pb2.CreateChatCompletionRequest(stream=True))
    assert rules("ChatService.StreamChatCompletion").is_stream(chat_pb2.CreateChatCompletionRequest())
    assert not rules("PromptService.ProcessHttp").is_stream(prompt_pb2.ProcessPromptRequest())
    assert rules("PromptService.StreamHttp").is_stream(prompt_pb2.ProcessPromptRequest())
    assert rules("TaskService.WatchTask").streams == "always"


def test_heavy_work_counts_as_batch_operations() -> None:
    batch = {name for name in ALL if rules(name).batch}
    assert {"DatasetService.ProcessDataset", "DatasetService.RunDatasetAction", "ExampleService.ImportProject",
            "ExampleService.ImportData"} <= batch  # fmt: skip


def test_health_metrics_and_the_openapi_document_are_not_counted() -> None:
    unlimited = {name for name in ALL if rules(name).unlimited or rules(name).scope is None}
    assert unlimited == {
        "OperationsService.GetPrometheusMetrics",
        "OperationsService.HealthCheck",
        "SystemService.GetHealth",
        "SystemService.GetLiveness",
        "SystemService.GetOpenApi",
        "SystemService.GetOpenApiYaml",
        "SystemService.GetRoot",
    }
