"""Statuses and bodies of errors, in the shapes of both path families."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http.client import HTTPResponse

import httpx
import pytest

from llamastead_server.domain import errors
from llamastead_server.services.server import ServerLimits
from tests.gateway import Running, ScriptedChat, ScriptedUploads, running

HISTORY = "/v1/projects/a/b/chat/sessions/c/history"
CHAT = "/v1/projects/a/b/chat/completions"


def farm_error(answer: httpx.Response) -> dict[str, str]:
    """The error of a LlamaFarm body, which has to be complete."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert set(body) == {"detail", "error"}
    assert body["detail"] == body["error"]["message"] != ""
    assert {"message", "type", "code"} <= set(body["error"])
    return dict(body["error"])


def home_error(answer: httpx.Response) -> dict[str, str]:
    """The error of a LlamaHome body, which has to be complete."""
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "details"}
    return dict(answer.json()["error"])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequest("No."), 400, "invalid_request"),
        (errors.ValidationFailed("No.", details={"a": "b"}), 422, "validation_failed"),
        (errors.ContextLengthExceeded(9, 8), 400, "context_length_exceeded"),
        (errors.Unauthenticated("No."), 401, "unauthenticated"),
        (errors.PermissionDenied("No."), 403, "permission_denied"),
        (errors.NotFound('No "ü漢".'), 404, "not_found"),
        (errors.ModelNotFound("No."), 404, "model_not_found"),
        (errors.AlreadyExists("No."), 409, "already_exists"),
        (errors.Conflict("No."), 409, "conflict"),
        (errors.PayloadTooLarge("No."), 413, "payload_too_large"),
        (errors.UnsupportedMediaType("No."), 415, "unsupported_media_type"),
        (errors.RequestTimeout("No."), 408, "request_timeout"),
        (errors.RateLimited("No.", retry_after=7), 429, "rate_limited"),
        (errors.Overloaded("No.", retry_after=7), 503, "overloaded"),
        (errors.EngineFailed("No."), 503, "engine_failed"),
        (errors.NotSupported("No."), 501, "not_supported"),
        (errors.Internal("No."), 500, "internal"),
    ],
)
async def test_an_error_of_the_server_has_its_status_and_body(
    gateway: Running, chat: ScriptedChat, error: errors.LlamasteadError, status: int, code: str
) -> None:
    chat.error = error
    for answer in (
        await gateway.http.get(HISTORY),
        await gateway.http.get(f"/api{HISTORY}"),
        await gateway.http.post(CHAT, json={}),
        await gateway.http.post(CHAT, json={"stream": True}),
    ):
        assert answer.status_code == status
        assert farm_error(answer)["code"] == code
        assert answer.json()["detail"] == error.message
        assert answer.headers.get("retry-after", "2") == ("7" if error.retry_after else "2")
        assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_an_unexpected_error_names_the_request_and_leaks_nothing(
    gateway: Running, chat: ScriptedChat, caplog: pytest.LogCaptureFixture
) -> None:
    chat.error = ZeroDivisionError("secret")
    answer = await gateway.http.get(HISTORY, headers={"X-Request-ID": "find-me"})
    assert answer.status_code == 500
    assert "find-me" in farm_error(answer)["message"]
    assert "secret" not in answer.text
    assert any(record.exc_info for record in caplog.records)


async def test_headers_set_before_an_error_do_not_make_it_a_success(gateway: Running, chat: ScriptedChat) -> None:
    chat.headers = [("x-session-id", "s")]
    chat.error = errors.NotFound("No.")
    assert (await gateway.http.post(CHAT, json={"stream": True})).status_code == 404


async def test_what_this_server_does_not_offer_is_501_and_says_so(gateway: Running) -> None:
    home = await gateway.http.get("/api/models")
    farm = await gateway.http.get("/v1/examples")
    assert (home.status_code, farm.status_code) == (501, 501)
    assert (
        home_error(home)["message"] == "ModelService.ListModels is in the contract, but this server does not offer it."
    )
    assert (
        farm_error(farm)["message"]
        == "ExampleService.ListExamples is in the contract, but this server does not offer it."
    )


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/api/v1/nope", "/llamastead.v1.ChatService/GetChatHistory"])
async def test_an_unknown_path_is_404(gateway: Running, path: str) -> None:
    answer = await gateway.http.get(path)
    assert (answer.status_code, farm_error(answer)["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/api/nope", "/v1/api/nope"])
async def test_an_unknown_home_path_is_404_in_its_shape(gateway: Running, path: str) -> None:
    answer = await gateway.http.get(path)
    assert (answer.status_code, home_error(answer)["code"]) == (404, "not_found")


async def test_a_wrong_method_is_405_and_names_the_right_ones(gateway: Running) -> None:
    answer = await gateway.http.patch("/v1/projects/a/b/?x=1", json={})
    assert (answer.status_code, farm_error(answer)["code"]) == (405, "method_not_allowed")
    assert {method.strip() for method in answer.headers["allow"].split(",")} == {"GET", "HEAD", "PUT", "DELETE"}
    answer = await gateway.http.delete("/api/models")
    assert (answer.status_code, home_error(answer)["code"]) == (405, "method_not_allowed")


async def test_head_answers_as_get_does_without_the_body(gateway: Running, chat: ScriptedChat) -> None:
    for _ in range(2):
        chat.error = None
        whole, head = await gateway.http.get(HISTORY), await gateway.http.head(HISTORY)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length"):
            assert head.headers[name] == whole.headers[name]
        chat.error = errors.NotFound("No.")
        head = await gateway.http.head(f"/api{HISTORY}/")
        assert (head.status_code, head.content, head.headers["content-type"]) == (404, b"", "application/json")
        assert (await gateway.http.head("/nope")).status_code == 404
        assert (await gateway.http.get(HISTORY)).status_code == 404


async def test_head_is_405_where_there_is_nothing_to_get_or_no_end_of_it(gateway: Running) -> None:
    for path, allowed in ((CHAT, {"POST"}), ("/api/logs", {"GET"})):
        for _ in range(2):
            answer = await gateway.http.head(path)
            assert (answer.status_code, answer.content) == (405, b"")
            assert {method.strip() for method in answer.headers["allow"].split(",")} == allowed
    assert (await gateway.http.get(HISTORY)).status_code == 200


@pytest.mark.parametrize("body", [b"{bad", b"[1]", b'{"max_tokens": "many"}', b'{"messages": 7}', b"\xff\xfe"])
async def test_a_body_that_is_no_json_of_this_call_is_400(gateway: Running, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await gateway.http.post(CHAT, content=body, headers=headers)
    assert (answer.status_code, farm_error(answer)["code"]) == (400, "invalid_request")
    answer = await gateway.http.post("/api/process_prompt", content=b"{bad", headers=headers)
    assert (answer.status_code, home_error(answer)["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "x"])
async def test_a_body_that_does_not_say_json_is_415(gateway: Running, kind: str) -> None:
    answer = await gateway.http.post(CHAT, content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, farm_error(answer)["code"]) == (415, "unsupported_media_type")


async def test_a_form_where_json_belongs_is_415(gateway: Running) -> None:
    answer = await gateway.http.post("/api/process_prompt", files={"file": b"x"})
    assert (answer.status_code, home_error(answer)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", None])
async def test_json_by_any_of_its_names_is_read(gateway: Running, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert (await gateway.http.post(CHAT, content=b"{}", headers=headers)).status_code == 200


def post_all(port: int, path: str, head: bytes, parts: list[bytes]) -> httpx.Response:
    """Sends a body as curl does: on a refusal in its midst, the answer is read all the same."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\n".encode() + head + b"\r\n")
            for part in parts:
                connection.sendall(part)
        answer = HTTPResponse(connection)
        answer.begin()
        return httpx.Response(answer.status, headers=dict(answer.getheaders()), content=answer.read())


async def test_a_json_body_over_the_limit_is_413_with_or_without_its_length(gateway: Running) -> None:
    parts = [b" " * 100_000] * 60
    chunked = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    for head, body in ((b"content-length: 6000000", parts), (b"transfer-encoding: chunked", chunked)):
        head = b"content-type: application/json\r\n" + head + b"\r\n"
        answer = await asyncio.to_thread(post_all, gateway.port, CHAT, head, body)
        assert (answer.status_code, farm_error(answer)["code"]) == (413, "payload_too_large")


async def test_json_may_grow_on_its_way_to_the_server(gateway: Running) -> None:
    body = b'{"tools":[{"a":[' + b",".join([b"1"] * 1_000_000) + b"]}]}"
    answer = await gateway.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200


async def test_json_that_grows_past_grpcs_limit_is_413(chat: ScriptedChat) -> None:
    async with running([chat], limits=ServerLimits(message_bytes=100_000)) as small:
        answer = await small.http.post(CHAT, json={"messages": [{"role": "x" * 200_000}]})
        assert (answer.status_code, farm_error(answer)["code"]) == (413, "payload_too_large")


async def test_an_answer_over_the_limit_is_not_said_to_be_the_requests_fault(chat: ScriptedChat) -> None:
    async with running([chat], limits=ServerLimits(answer_bytes=100)) as small:
        assert (await small.http.get(HISTORY)).status_code == 200
        answer = await small.http.get(f"/v1/projects/a/b/chat/sessions/{'c' * 101}/history")
        assert answer.status_code == 500
        error = farm_error(answer)
        assert error["type"] == "server_error"
        assert error["message"] == "The answer is larger than this server gives at once: ask for less of it."


async def test_headers_over_the_limit_are_431(gateway: Running) -> None:
    # gRPC's own limit refuses at random well below it.
    for size in (10_000, *[40_000] * 15):
        assert (await gateway.http.get(HISTORY, headers={"x-long": "a" * size})).status_code == 200
    answer = await gateway.http.get(HISTORY, headers={"x-long": "a" * 60_000})
    assert (answer.status_code, farm_error(answer)["code"]) == (431, "headers_too_large")


async def test_bytes_that_are_no_http_are_answered_with_400(gateway: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET / HTTP/1.1\r\nbroken header\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nx-request-id: " in head
    assert b'"code":"invalid_request"' in body


async def test_a_server_that_is_gone_is_503_in_both_shapes_and_shows_nothing_of_the_inside(gateway: Running) -> None:
    await gateway.server.stop(0)
    farm, home = await gateway.http.get(HISTORY), await gateway.http.get("/api/models")
    assert (farm.status_code, home.status_code) == (503, 503)
    assert farm_error(farm)["code"] == home_error(home)["code"] == "unavailable"
    assert int(farm.headers["retry-after"]) > 0
    assert "sock" not in farm.text + home.text


async def test_an_upload_has_no_limit_but_the_servers(gateway: Running, uploads: ScriptedUploads) -> None:
    path = "/v1/projects/a/b/datasets/c/data"
    answer = await gateway.http.post(path, files={"file": b"x" * 20_000_000})
    assert answer.status_code == 200
    assert int(answer.json()["hash"]) > 20_000_000
    assert answer.json()["filename"].startswith("a/b/c multipart/form-data; boundary=")
    uploads.limit = 5_000_000
    head = b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 20000000\r\n"
    answer = await asyncio.to_thread(post_all, gateway.port, f"/api{path}/", head, [b"x" * 1_000_000] * 20)
    assert (answer.status_code, farm_error(answer)["code"]) == (413, "payload_too_large")
