"""What of a request reaches the server, what does not, and which headers come back."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
import yaml

from llamastead_server.domain.errors import NotFound
from llamastead_server.services import interceptors
from tests.gateway import Running, ScriptedChat, running

HISTORY = "/v1/projects/a/b/chat/sessions/c/history"
CHAT = "/v1/projects/a/b/chat/completions"
OPENAPI = Path(__file__).parents[2] / "gen/openapi.yaml"
CHANGES = {"content-type": "application/json"}


async def names(gateway: Running, path: str) -> list[str]:
    answer = await gateway.http.get(path)
    assert answer.status_code == 200, answer.text
    return [message["role"] for message in answer.json()["messages"]]


@pytest.mark.parametrize("path", [HISTORY, f"{HISTORY}/", f"/api{HISTORY}", f"/api{HISTORY}/"])
async def test_a_path_answers_under_its_alias_and_with_a_slash_at_its_end(gateway: Running, path: str) -> None:
    assert await names(gateway, path) == ["a", "b", "c"]


async def test_the_query_cannot_override_the_path(gateway: Running) -> None:
    query = "?namespace=evil&project=evil&session_id=evil&unknown=1"
    assert await names(gateway, HISTORY + query) == ["a", "b", "c"]


@pytest.mark.parametrize("field", ["namespace", "project"])
async def test_the_body_cannot_override_the_path(gateway: Running, chat: ScriptedChat, field: str) -> None:
    answer = await gateway.http.post(CHAT, json={field: "evil"})
    assert answer.status_code == 400
    assert field in answer.json()["detail"]
    assert not chat.requests


async def test_unknown_fields_of_the_body_are_ignored(gateway: Running, chat: ScriptedChat) -> None:
    assert (await gateway.http.post(CHAT, json={"unknown": {"a": [1]}, "user": "me"})).status_code == 200
    assert (chat.requests[0].namespace, chat.requests[0].project, chat.requests[0].user) == ("a", "b", "me")


@pytest.mark.parametrize("slash", ["%2F", "%2f", "%5C"])
async def test_a_slash_hidden_in_a_name_is_refused(gateway: Running, slash: str) -> None:
    path = f"/v1/projects/a/b/chat/sessions/..{slash}..{slash}c/history"
    answer = await gateway.http.get(path, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (400, "mine")
    assert answer.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("dots", ["..", "%2e%2e", "%2E."])
async def test_a_parent_folder_in_a_path_never_reaches_the_server_as_a_name(gateway: Running, dots: str) -> None:
    answer = await gateway.http.get(f"/v1/projects/a/b/chat/sessions/{dots}/history")
    assert answer.status_code == 404


async def test_names_are_unescaped_once(gateway: Running) -> None:
    assert await names(gateway, "/v1/projects/a%20b/c%252Fd/chat/sessions/%C3%A9/history") == ["a b", "c%2Fd", "é"]


async def test_headers_that_only_the_gateway_sets_cannot_be_sent(gateway: Running, chat: ScriptedChat) -> None:
    chat.error = NotFound("No.")
    forged = {
        "X-HTTP-Status": "200",
        "X-HTTP-Body": "forged",
        "X-Envoy-Original-Path": "/api/forged",
        "X-Envoy-Original-Method": "FORGED",
        "X-Envoy-Upstream-RQ-Timeout-MS": "1",
    }
    answer = await gateway.http.post(CHAT, json={}, headers=forged)
    assert (answer.status_code, answer.json()["detail"]) == (404, "No.")
    seen = chat.metadata[0]
    assert seen["x-envoy-original-path"] == CHAT
    assert seen["x-envoy-original-method"] == "POST"
    assert "forged" not in str(seen)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Envoy-Upstream-RQ-Timeout-MS": "20", "X-Envoy-Upstream-RQ-Per-Try-Timeout-MS": "20"},
        # gRPC's header, which the gateway would honour with a bare text.
        {"grpc-timeout": "20m"},
        {"grpc-timeout": "soon"},
    ],
    ids=str,
)
async def test_a_client_cannot_shorten_the_gateways_timeout(
    gateway: Running, chat: ScriptedChat, headers: dict[str, str]
) -> None:
    chat.pause = 0.1
    answer = await gateway.http.post(CHAT, json={"stream": True}, headers=headers)
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_the_end_user_that_a_request_names_is_in_the_log(
    gateway: Running, chat: ScriptedChat, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "llamastead.access"):
        for user in ("u-1", "x" * 1000, ""):
            await gateway.http.post(CHAT, json={"user": user})
        await gateway.http.get(HISTORY)
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "llamastead.access"]
    assert [line.get("user") for line in lines] == ["u-1", "x" * 200, None, None]


@pytest.mark.parametrize("path", [CHAT, "/api/process_prompt"])
async def test_a_body_that_never_ends_is_408_in_the_paths_shape(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(interceptors, "_LONGEST_PAUSE", 0.2)

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    writer.write(head.encode() + b"{")
    async with asyncio.timeout(20):
        status, _, rest = (await reader.read()).decode().partition("\r\n")
    writer.close()
    await writer.wait_closed()
    assert status == "HTTP/1.1 408 Request Timeout"
    body = json.loads(rest.partition("\r\n\r\n")[2])
    assert body["error"]["code"] == "request_timeout"
    assert ("detail" in body) == (path == CHAT)


async def test_answers_show_nothing_of_the_machinery(gateway: Running) -> None:
    for path in (HISTORY, "/nope", "/api/models"):
        headers = (await gateway.http.get(path)).headers
        assert not [name for name in headers if name.startswith(("grpc-", "x-envoy", "x-http", "server"))]
        assert headers["x-content-type-options"] == "nosniff"


async def test_a_sane_request_id_is_kept_returned_and_logged(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "llamastead.access"):
        answer = await gateway.http.get(HISTORY, headers={"X-Request-ID": "mine-1"})
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
        answer = await gateway.http.get("/nope", headers={"X-Request-ID": "mine-2"})
        assert answer.headers.get_list("x-request-id") == ["mine-2"]
    lines = [record for record in caplog.records if record.name == "llamastead.access"]
    assert len(lines) == 1
    assert lines[0].getMessage().startswith(f"GET {HISTORY} /llamastead.v1.ChatService/GetChatHistory OK ")
    fields = lines[0].__dict__["fields"]
    assert (fields["status"], fields["path"]) == ("OK", HISTORY)


@pytest.mark.parametrize("offered", [None, "has spaces", "x" * 200, "<script>"])
async def test_another_request_id_is_made(gateway: Running, offered: str | None) -> None:
    headers = {} if offered is None else {"X-Request-ID": offered}
    made = (await gateway.http.get(HISTORY, headers=headers)).headers.get_list("x-request-id")
    assert len(made) == 1
    assert made[0] not in ("", offered)


async def test_the_access_log_tells_failures(
    gateway: Running, chat: ScriptedChat, caplog: pytest.LogCaptureFixture
) -> None:
    chat.error = NotFound("No.")
    with caplog.at_level(logging.INFO, "llamastead.access"):
        await gateway.http.get(f"{HISTORY}?token=secret")
        # An error leaves for the caller before its call has ended and can be logged.
        async with asyncio.timeout(10):
            while not any(record.name == "llamastead.access" for record in caplog.records):
                await asyncio.sleep(0.01)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "llamastead.access"]
    assert " NOT_FOUND " in line
    assert "secret" not in line


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"])
async def test_pages_on_this_machine_may_call_and_read_our_headers(gateway: Running, origin: str) -> None:
    preflight = await gateway.http.options(CHAT, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code in (200, 204)
    assert preflight.headers["access-control-allow-origin"] == origin
    allowed = set(preflight.headers["access-control-allow-methods"].split(", "))
    assert allowed >= {
        method.upper() for path in yaml.safe_load(OPENAPI.read_text("utf-8"))["paths"].values() for method in path
    }
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for answer in (
        await gateway.http.post(CHAT, json={}, headers={"Origin": origin}),
        await gateway.http.get("/nope", headers={"Origin": origin}),
        await gateway.http.get("/api/models", headers={"Origin": origin}),
    ):
        assert answer.headers["access-control-allow-origin"] == origin
        exposed = answer.headers["access-control-expose-headers"]
        assert {"x-session-id", "x-request-id", "retry-after", "x-llamastead-trimmed"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example:80", "null"]
)
async def test_other_pages_may_neither_read_nor_change_anything(
    gateway: Running, chat: ScriptedChat, origin: str
) -> None:
    headers = {"Origin": origin}
    assert "access-control-allow-origin" not in (await gateway.http.get(HISTORY, headers=headers)).headers
    answer = await gateway.http.post(CHAT, content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert (await gateway.http.delete("/v1/projects/a/b", headers=headers)).status_code == 403
    assert not chat.requests


async def test_configured_origins_may_call(chat: ScriptedChat) -> None:
    async with running([chat], cors_origins=("https://ours.example",)) as gateway:
        for origin, status in (("https://ours.example", 200), ("http://localhost:1", 200), ("https://o.example", 403)):
            assert (await gateway.http.post(CHAT, json={}, headers={"Origin": origin})).status_code == status
    async with running([chat], cors_origins=("*",)) as gateway:
        answer = await gateway.http.post(CHAT, json={}, headers={"Origin": "https://any.example"})
        assert answer.headers["access-control-allow-origin"] == "https://any.example"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.io"])
async def test_a_foreign_name_pointed_at_this_machine_is_refused(gateway: Running, host: str) -> None:
    answer = await gateway.http.get(HISTORY, headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "[::1]:8000", "box", "box.local", "10.0.0.7:80"])
async def test_names_of_this_machine_are_served(gateway: Running, host: str) -> None:
    assert (await gateway.http.get(HISTORY, headers={"Host": host})).status_code == 200


async def test_tokens_guard_all_but_what_says_that_the_server_lives(chat: ScriptedChat) -> None:
    async with running([chat], tokens=["right"]) as gateway:
        for path in ("/", "/health", "/health/liveness"):
            assert (await gateway.http.get(path)).status_code == 501
        for path in (HISTORY, "/info", "/metrics", "/api/models"):
            answer = await gateway.http.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            wrong = await gateway.http.get(path, headers={"Authorization": "Bearer wrong"})
            assert wrong.status_code == 401
        assert (await gateway.http.get(HISTORY, headers={"Authorization": "Bearer right"})).status_code == 200
        assert (await gateway.http.post(CHAT, json={"stream": True})).status_code == 401
    assert not chat.requests


async def test_what_the_gateway_refuses_is_worded_as_the_path_documents_errors(gateway: Running) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        for path in ("/api/process_prompt", "/v1/api/process_prompt"):
            answer = await gateway.http.post(path, json={"prompt": "x"}, headers=headers)
            assert (answer.status_code, set(answer.json())) == (403, {"error"})
            assert set(answer.json()["error"]) == {"code", "message", "details"}
        answer = await gateway.http.post(CHAT, json={}, headers=headers)
        assert (answer.status_code, set(answer.json())) == (403, {"detail", "error"})
