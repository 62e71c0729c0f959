"""Who may call what: every RPC with every kind of token, on both ports and in every protocol."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from llamastead.v1 import dataset_pb2, dataset_pb2_grpc, project_pb2, project_pb2_grpc
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.project_templates import ProjectTemplates
from llamastead_server.adapters.token_store import SqlTokenStore
from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.domain.projects.projects import Projects
from llamastead_server.services.auth import BearerAuth
from llamastead_server.services.method_access import access
from llamastead_server.services.projects import ProjectServicer
from llamastead_server.services.server import SERVICE_NAMES
from llamastead_server.services.tokens import TokenServicer
from tests.gateway import Running, ScriptedUploads, running

PORTS = pytest.mark.parametrize("port", [0, 1], ids=["gateway", "bare"])
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
PROJECT = "/v1/projects/acme/bot"


class Closed:
    """A server that needs tokens, with one of each kind."""

    def __init__(self, running: Running, tokens: Tokens, secrets: dict[str, str]) -> None:
        self.running = running
        self.tokens = tokens
        self.secrets = secrets

    def header(self, kind: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets[kind]}"} if kind in self.secrets else {}


@pytest.fixture
async def closed(tmp_path: Path) -> AsyncIterator[Closed]:
    async with Database.in_folder(tmp_path / "data") as database:
        tokens = Tokens(SqlTokenStore(database), time.time)
        secrets = {"wrong": "lst_wrong"}
        for scope in Scope:
            _, secrets[str(scope)] = await tokens.create(str(scope), scope)
        _, secrets["bot"] = await tokens.create("bot", Scope.WRITE, ProjectPattern("acme", "bot"))
        _, secrets["acme"] = await tokens.create("acme", Scope.WRITE, ProjectPattern("acme"))
        _, secrets["revoked"] = await tokens.create("revoked", Scope.ADMIN)
        await tokens.revoke("revoked")
        projects = Projects(
            ProjectFiles(tmp_path / "projects"), ProjectTemplates(tmp_path / "templates"), lambda: "m", (), _not_filled
        )
        servicers = [ProjectServicer(projects), TokenServicer(tokens), ScriptedUploads()]
        async with running(servicers, layers=[BearerAuth(tokens)]) as started:
            yield Closed(started, tokens, secrets)


async def _not_filled(*_: Any) -> Any:
    return ()


def methods() -> list[MethodDescriptor]:
    pool: Any = descriptor_pool.Default()
    return [method for name in SERVICE_NAMES for method in pool.FindServiceByName(name).methods]


async def outcome(channel: grpc.aio.Channel, method: MethodDescriptor, headers: dict[str, str]) -> grpc.StatusCode:
    """How a call with an empty request ends."""
    # grpcio's client says INTERNAL when the end of a call comes before its message is away; what the server says
    # comes at the next attempt.
    for _ in range(5):
        code = await _outcome(channel, method, headers)
        if not (method.client_streaming and code is grpc.StatusCode.INTERNAL):
            break
    return code


async def _outcome(channel: grpc.aio.Channel, method: MethodDescriptor, headers: dict[str, str]) -> grpc.StatusCode:
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = tuple(headers.items())
    call: Any
    if method.client_streaming:

        async def requests() -> AsyncIterator[bytes]:
            yield b""

        call = channel.stream_unary(path)(requests(), metadata=metadata, timeout=20)
    elif method.server_streaming:
        call = channel.unary_stream(path)(b"", metadata=metadata, timeout=20)
    else:
        call = channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
    return await call.code()  # type: ignore[no-any-return]


@PORTS
@pytest.mark.parametrize("kind", ["none", "wrong", "revoked", "read", "write", "admin"])
async def test_every_rpc_lets_pass_the_scopes_that_it_declares(closed: Closed, port: int, kind: str) -> None:
    surprises = []
    async with grpc.aio.insecure_channel(closed.running.addresses[port]) as channel:
        for method in methods():
            needed = access(f"/{method.containing_service.full_name}/{method.name}").scope
            held = Scope[kind.upper()] if kind.upper() in Scope.__members__ else None
            code = await outcome(channel, method, closed.header(kind))
            if needed is None or (held is not None and held >= needed):
                as_declared = code not in REFUSED
            else:
                as_declared = code is REFUSED[held is not None]
            if not as_declared:
                surprises.append(f"{method.full_name}: {code}")
    assert surprises == []
    assert len(methods()) >= 55


@PORTS
async def test_a_restricted_token_gets_an_answer_about_its_project_alone(closed: Closed, port: int) -> None:
    async with grpc.aio.insecure_channel(closed.running.addresses[port]) as channel:
        stub = project_pb2_grpc.ProjectServiceStub(channel)

        async def create(kind: str, namespace: str, name: str) -> grpc.StatusCode:
            request = project_pb2.CreateProjectRequest(namespace=namespace, name=name)
            call = stub.CreateProject(request, metadata=tuple(closed.header(kind).items()), timeout=20)
            return await call.code()

        ok, refused = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
        assert await create("bot", "acme", "bot") is ok
        assert await create("bot", "acme", "other") is refused
        assert await create("acme", "acme", "other") is ok
        assert await create("acme", "elsewhere", "bot") is refused
        assert await create("write", "elsewhere", "bot") is ok


async def test_a_restricted_token_sees_its_projects_in_a_namespaces_list(closed: Closed) -> None:
    http = closed.running.http
    for name in ("bot", "other"):
        created = await http.post("/v1/projects/acme", json={"name": name}, headers=closed.header("write"))
        assert created.status_code == 200, created.text

    async def listed(kind: str) -> list[str]:
        answer = await http.get("/v1/projects/acme", headers=closed.header(kind))
        assert answer.json()["total"] == len(answer.json()["projects"])
        return [project["name"] for project in answer.json()["projects"]]

    assert await listed("read") == await listed("acme") == ["bot", "other"]
    assert await listed("bot") == ["bot"]
    assert (await http.get("/v1/projects/elsewhere", headers=closed.header("bot"))).status_code == 403


@PORTS
async def test_an_upload_cannot_change_its_project_on_the_way(closed: Closed, port: int) -> None:
    def header(project: str) -> dataset_pb2.UploadFileRequest:
        named = dataset_pb2.UploadFileHeader(namespace="acme", project=project, dataset="d", filename="f")
        return dataset_pb2.UploadFileRequest(header=named)

    async def upload(*requests: dataset_pb2.UploadFileRequest) -> grpc.StatusCode:
        async def parts() -> AsyncIterator[dataset_pb2.UploadFileRequest]:
            for request in requests:
                yield request
                # A write that meets the refusal on its way is an "internal error" to grpc.aio's client, which then
                # forgets the server's answer.
                await asyncio.sleep(0.1)

        async with grpc.aio.insecure_channel(closed.running.addresses[port]) as channel:
            metadata = tuple(closed.header("bot").items())
            call = dataset_pb2_grpc.DatasetServiceStub(channel).UploadFile(parts(), metadata=metadata, timeout=20)
            return await call.code()

    chunk = dataset_pb2.UploadFileRequest(chunk=b"x")
    assert await upload(header("bot"), chunk) is grpc.StatusCode.OK
    for requests in ([header("other"), chunk], [chunk, header("bot")], [header("bot"), chunk, header("other")]):
        assert await upload(*requests) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_rest_upload_to_another_project_is_refused(closed: Closed) -> None:
    for project, status in (("bot", 200), ("other", 403)):
        answer = await closed.running.http.post(
            f"/v1/projects/acme/{project}/datasets/d/data", files={"file": b"x"}, headers=closed.header("bot")
        )
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("method", "path", "kind", "status"),
    [
        ("GET", "/health", "none", 501),
        ("GET", "/health/liveness", "wrong", 501),
        ("GET", PROJECT, "none", 401),
        ("GET", PROJECT, "wrong", 401),
        ("GET", PROJECT, "revoked", 401),
        ("GET", PROJECT, "read", 404),
        ("DELETE", PROJECT, "read", 403),
        ("DELETE", PROJECT, "write", 404),
        ("GET", "/v1/projects/acme/other", "bot", 403),
        ("GET", "/info", "bot", 403),
        ("POST", "/api/load_model", "write", 403),
        ("POST", "/v1/api/shutdown", "write", 403),
        ("POST", "/api/shutdown", "admin", 501),
        ("GET", "/api/models", "none", 401),
        ("GET", "/api/models", "bot", 501),
        ("GET", "/v1/tokens", "write", 403),
        ("GET", "/metrics", "none", 401),
        ("GET", "/openapi.json", "none", 501),
        ("GET", "/openapi.yaml", "none", 501),
    ],
)
async def test_rest_answers_401_without_a_token_and_403_without_the_right(
    closed: Closed, method: str, path: str, kind: str, status: int
) -> None:
    body = {} if method == "POST" else None
    answer = await closed.running.http.request(method, path, json=body, headers=closed.header(kind))
    assert answer.status_code == status, answer.text
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    if status in (401, 403):
        assert answer.json()["error"]["code"] == {401: "unauthenticated", 403: "permission_denied"}[status]


@pytest.mark.parametrize(("kind", "status"), [("none", "16"), ("wrong", "16"), ("read", "7"), ("write", "12")])
async def test_grpc_web_is_held_to_the_same(closed: Closed, kind: str, status: str) -> None:
    answer = await closed.running.http.post(
        "/llamastead.v1.TaskService/CancelTask",
        content=struct.pack(">BI", 0, 0),
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **closed.header(kind)},
    )
    assert answer.headers["grpc-status"] == status


@PORTS
async def test_health_and_reflection_answer_without_a_token(closed: Closed, port: int) -> None:
    async with grpc.aio.insecure_channel(closed.running.addresses[port]) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert "llamastead.v1.TokenService" in await reflected(channel)


async def reflected(channel: grpc.aio.Channel) -> list[str]:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask(), timeout=20)
    return [service.name async for answer in call for service in answer.list_services_response.service]


@PORTS
async def test_reflection_can_be_switched_off(port: int) -> None:
    async with (
        running([], with_reflection=False) as started,
        grpc.aio.insecure_channel(started.addresses[port]) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reflected(channel)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_tokens_are_made_listed_and_revoked_over_rest(closed: Closed) -> None:
    http, admin = closed.running.http, closed.header("admin")
    body = {"name": "new", "scope": "read", "project": "acme/*", "expires_in_seconds": 3600}
    created = (await http.post("/v1/tokens", json=body, headers=admin)).json()
    secret = created["secret"]
    assert created["token"]["name"] == "new"
    assert (created["token"]["scope"], created["token"]["project"]) == ("read", "acme/*")
    assert created["token"]["expired"] is False
    mine = {"authorization": f"Bearer {secret}"}
    assert (await http.get("/v1/projects/acme", headers=mine)).status_code == 200
    listed = await http.get("/v1/tokens", headers=admin)
    names = [token["name"] for token in listed.json()["tokens"]]
    assert names == sorted(names)
    assert "new" in names
    assert secret not in listed.text
    assert (await http.post("/v1/tokens", json=body, headers=admin)).status_code == 409
    assert (await http.delete("/v1/tokens/new", headers=admin)).json()["token"]["name"] == "new"
    assert (await http.get("/v1/projects/acme", headers=mine)).status_code == 401
    assert (await http.delete("/v1/tokens/new", headers=admin)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"name": "x", "scope": "root"},
        {"name": "../x", "scope": "read"},
        {"name": "x", "scope": "read", "project": "acme"},
        {"name": "x", "scope": "admin", "project": "acme/bot"},
        {"name": "x", "scope": "read", "expires_in_seconds": 0},
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(closed: Closed, body: dict[str, Any]) -> None:
    answer = await closed.running.http.post("/v1/tokens", json=body, headers=closed.header("admin"))
    assert answer.status_code == 400, answer.text
