"""Requests nobody sends by accident: each gets a clear refusal in its path's family, and the server lives."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest

from tests.running_server import RunningServer

PROJECT = "/v1/projects/default/quickstart"
CHAT = f"{PROJECT}/chat/completions"
QUERY = f"{PROJECT}/rag/query"
JSON = {"content-type": "application/json"}


def refused(answer: httpx.Response, *statuses: int) -> str:
    """The message of a refusal, which has to be whole."""
    assert answer.status_code in statuses, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    path = answer.request.url.path
    if path.startswith(("/api/", "/v1/api/")) and not path.startswith("/api/v1/"):
        assert set(body) == {"error"}
        assert set(body["error"]) == {"code", "message", "details"}
    else:
        assert set(body) == {"detail", "error"}
        assert body["detail"] == body["error"]["message"]
        assert {"message", "type", "code"} <= set(body["error"])
    message: str = body["error"]["message"]
    assert message.endswith((".", "…", "Not Found", "Method Not Allowed")) or "cannot be read" in message, message
    assert len(message) < 1200
    return message


@pytest.fixture
def client(http: httpx.Client) -> httpx.Client:
    """Sees that the server answers after each test as before."""
    yield http  # type: ignore[misc]
    assert http.get("/health").json()["status"] == "healthy"


NAMES = {
    "a NUL": "%00",
    "an escaped NUL within": "a%00b",
    "a line": "a%0D%0Ab",
    "a space": "a%20b",
    "an escaped slash": "..%2F..%2Fetc",
    "an escaped backslash": "..%5Cetc",
    "no UTF-8": "%FF%FE",
    "an overlong slash": "%C0%AF",
    "a surrogate": "%ED%A0%80",
    "another script": "%E6%BC%A2%E5%AD%97",
    "a right-to-left override": "%E2%80%AEgnp.exe",
    "dots and more": "...",
    "a leading dot": ".git",
    "a device": "CON.txt",
    "a length": "x" * 5000,
    "an escaped percent": "a%252Fb",
    "a shell": "$(reboot)",
    "SQL": "'%20OR%201=1--",
    "markup": "%3Cscript%3E",
    "a template": "%7B%7B7*7%7D%7D",
}


# A session's id is never a path.
SOUND_SESSION_IDS = {"CON.txt"}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_hostile_name_is_refused_wherever_it_stands(client: httpx.Client, name: str) -> None:
    for prefix in ("", "/api"):
        for path in (
            f"/v1/projects/{name}",
            f"/v1/projects/{name}/p",
            f"/v1/projects/default/{name}",
            f"/v1/projects/default/{name}/datasets",
            f"{PROJECT}/tasks/{name}",
            f"{PROJECT}/rag/health?database={name}",
        ):
            refused(client.get(prefix + path), 400, 404)
        if name not in SOUND_SESSION_IDS:
            refused(client.get(f"{prefix}{PROJECT}/chat/sessions/{name}/history"), 400)
        for path in (f"{PROJECT}/datasets/{name}", f"{PROJECT}/datasets/handbook/data/{name}"):
            refused(client.delete(prefix + path), 400, 404)


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".%2E", "a/../../.."])
def test_a_way_up_ends_at_another_path_or_nowhere(server: RunningServer, client: httpx.Client, name: str) -> None:
    for path in (f"{PROJECT}/chat/sessions/{name}", f"{PROJECT}/datasets/{name}", f"{PROJECT}/tasks/{name}/x"):
        answer = raw(server, f"PATCH {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert answer.status_code in (404, 405)
        assert answer.headers["x-request-id"]


BODIES: dict[str, bytes] = {
    "nothing of JSON": b"hello",
    "half of JSON": b'{"messages": [',
    "an array": b"[]",
    "a number": b"7",
    "no UTF-8": b'{"model": "\xff\xfe"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "a huge number": b'{"temperature": 1e999}',
    "a negative count": b'{"max_tokens": -1}',
    "a count with a fraction": b'{"max_tokens": 1.5}',
    "a count that is too large": b'{"max_tokens": 4294967296}',
    "text for a count": b'{"max_tokens": "many"}',
    "an object for text": b'{"model": {}}',
    "an array for text": b'{"model": ["a"]}',
    "text for an array": b'{"messages": "hello"}',
    "a string for a message": b'{"messages": ["hello"]}',
    "the project of another": b'{"project": "other", "messages": []}',
    "a field twice": b'{"model": "a", "model": "b", "messages": []}',
    "too many levels": b'{"variables": ' + b'{"a":' * 65 + b"1" + b"}" * 65 + b', "messages": []}',
    "far too many levels": b'{"variables": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "no bytes": b"",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_hostile_body_is_refused(client: httpx.Client, body: bytes) -> None:
    for path in (CHAT, f"/api{CHAT}", f"{CHAT}/"):
        refused(client.post(path, content=body, headers=JSON), 400, 422)
    answer = client.post("/api/load_model", content=body, headers=JSON)
    refused(answer, 400, 404, 422, 501)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty"]),
        (CHAT, ["max_tokens", "max_completion_tokens", "n", "top_logprobs", "rag_top_k", "rag_score_threshold"]),
        (CHAT, ["sources_limit"]),
        (QUERY, ["top_k", "score_threshold", "hybrid_alpha", "max_tokens"]),
    ],
)
def test_no_number_is_too_strange_to_be_answered(client: httpx.Client, path: str, fields: list[str]) -> None:
    sound = {"messages": [{"role": "user", "content": "Hi"}], "query": "moon", "rag_enabled": False}
    for field in fields:
        for value in (
            "-1",
            "1e9",
            "-1e308",
            "1e400",
            "NaN",
            "-Infinity",
            '"NaN"',
            '"Infinity"',
            "4294967295",
            "1e-320",
        ):
            body = json.dumps(sound)[:-1] + f', "max_tokens": 1, "{field}": {value}}}'
            answer = client.post(path, content=body.encode(), headers=JSON)
            if answer.status_code != 200:
                refused(answer, 400, 422)


def test_a_large_body_is_413_and_a_deep_one_near_it_is_answered(client: httpx.Client) -> None:
    padding = b'{"user": "' + b"x" * 3_000_000 + b'", "messages": []}'
    refused(client.post(CHAT, content=padding, headers=JSON), 400, 422)
    with socket_to(client) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + b"content-length: 5242880\r\n\r\n")
        refused(response(connection, CHAT), 413)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/octet-stream", "a\tb", "ü"],
)
def test_another_content_type_is_415(client: httpx.Client, kind: str) -> None:
    headers = [(b"content-type", kind.encode("latin-1"))]
    for path in (CHAT, "/v1/projects/default", "/api/load_model", "/v1/api/load_model"):
        refused(client.post(path, content=b"{}", headers=headers), 415)
    data = f"{PROJECT}/datasets/handbook/data"
    refused(client.post(data, content=b"{}", headers=JSON), 415)


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "PROPFIND", "OPTIONS"])
def test_another_method_is_refused(server: RunningServer, client: httpx.Client, method: str) -> None:
    for path in ("/health", PROJECT, CHAT, "/api/models", "/nope"):
        answer = raw(server, f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(), path)
        refused(answer, 404 if path == "/nope" else 405)
        assert path == "/nope" or answer.headers["allow"]


MALFORMED = {
    "a header without a colon": b"GET /health HTTP/1.1\r\nhost: localhost\r\nbroken header\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two lengths": b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}" % CHAT.encode(),
    "a length and chunks": (
        b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        % CHAT.encode()
    ),
    "a negative length": b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n" % CHAT.encode(),
    "a NUL in a header": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
    "a method in lower case": b"get /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a method of no protocol": b"CONNECTX /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "another version": b"GET /health HTTP/9.9\r\nhost: localhost\r\n\r\n",
    "a bare line feed in a path": b"GET /hea\nlth HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "nothing of HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_http_is_refused_with_an_id(
    server: RunningServer, client: httpx.Client, request_bytes: bytes
) -> None:
    refused(raw(server, request_bytes), 400, 404, 426, 505)


def test_a_flag_in_the_query_is_one_flag(client: httpx.Client) -> None:
    for query in (
        "include_extra_details=maybe",
        "include_extra_details=",
        "include_extra_details=1&include_extra_details=0",
    ):
        refused(client.get(f"{PROJECT}/datasets?{query}"), 400)


def raw(server: RunningServer, request: bytes, path: str = "/") -> httpx.Response:
    """Sends bytes as they are."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        return response(connection, path)


def response(connection: socket.socket, path: str) -> httpx.Response:
    """Reads one answer."""
    answer = HTTPResponse(connection)
    answer.begin()
    headers: Any = answer.getheaders()
    request = httpx.Request("GET", f"http://localhost{path}")
    return httpx.Response(answer.status, headers=headers, content=answer.read(), request=request)


def socket_to(client: httpx.Client) -> socket.socket:
    """A bare connection to where a client connects."""
    return socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20)


FILE_NAMES = (
    "../../../evil.md",
    "..\\..\\evil.md",
    "/etc/evil.md",
    "a\x00b.md",
    "x" * 300 + ".md",
    "CON",
    "..",
    "\u202egnp.md",
)


def test_a_hostile_file_name_stays_a_name(client: httpx.Client, server: RunningServer) -> None:
    project = "/v1/projects/hostile/names"
    client.delete(project)
    client.post("/v1/projects/hostile", json={"name": "names", "config_template": "rag"})
    client.post(f"{project}/datasets", json={"name": "d"})
    before = {path.name for path in server.folder.rglob("*evil*")}
    for number, name in enumerate(FILE_NAMES):
        disposition = b'content-disposition: form-data; name="file"; filename="%b"' % name.encode()
        body = b"--x\r\n%b\r\n\r\n# %d\r\n--x--\r\n" % (disposition, number)
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = client.post(f"{project}/datasets/d/data", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        shown = answer.json()["filename"]
        assert len(shown.encode()) <= 255
        assert not set("/\\\x00\u202e") & set(shown)
    assert {path.name for path in server.folder.rglob("*evil*")} == before
    client.delete(project)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n',
            400,
        ),
        ("multipart/form-data; boundary=x", b"no form at all", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="other"\r\n\r\n1\r\n--x--\r\n',
            422,
        ),
        ("application/octet-stream", b"data", 415),
    ],
)
def test_a_broken_form_is_refused(client: httpx.Client, kind: str, body: bytes, status: int) -> None:
    headers = {"content-type": kind}
    refused(client.post(f"{PROJECT}/datasets/handbook/data", content=body, headers=headers), status)
