"""What LlamaFarm's browser interface does over HTTP: a page of another origin, `/api/v1`, strict about streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx

ORIGIN = "http://localhost:5173"
# Headers that a page may send to another origin without asking first.
SIMPLE_HEADERS = {"accept", "content-type"}


class DesignerError(Exception):
    """What the interface would show."""


class Designer:
    """The interface, in a browser that keeps to CORS."""

    def __init__(self, url: str, namespace: str, project: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60, headers={"Origin": ORIGIN})
        self.namespace = namespace
        self.base = f"/api/v1/projects/{namespace}/{project}"

    def __enter__(self) -> Designer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Calls and gives the JSON of a 2xx answer."""
        answer = self.send(method, path, **request)
        if not answer.is_success:
            raise DesignerError(error_text(answer))
        return answer.json()

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Calls as a browser does: it asks first where it has to, and hands over what it may read."""
        headers = httpx.Headers(request.get("headers", {}))
        is_json = "json" in request
        if method not in ("GET", "HEAD", "POST") or is_json or set(headers) - SIMPLE_HEADERS:
            self._ask(method, path, [*headers, *(["content-type"] if is_json else [])])
        answer = self.http.request(method, path, **request)
        assert answer.headers["access-control-allow-origin"] in (ORIGIN, "*")
        return answer

    def _ask(self, method: str, path: str, headers: list[str]) -> None:
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ", ".join(headers)}
        answer = self.http.options(path, headers=asked)
        assert answer.is_success
        assert answer.headers["access-control-allow-origin"] in (ORIGIN, "*")
        assert method in answer.headers["access-control-allow-methods"]
        allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
        assert {header.lower() for header in headers} <= allowed

    def stream(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[list[Any], str | None]:
        """Chats and gives the stream's events with the session's id, which a page reads only where it is exposed."""
        path = f"{self.base}/chat/completions"
        self._ask("POST", path, [*headers, "content-type"])
        with self.http.stream("POST", path, json={**body, "stream": True}, headers=headers) as answer:
            if not answer.is_success:
                answer.read()
                raise DesignerError(error_text(answer))
            assert answer.headers["content-type"].startswith("text/event-stream")
            return list(events(answer.iter_text())), readable(answer, "x-session-id")

    def wait_for(self, task_id: str) -> dict[str, Any]:
        """Polls a task as the page of a dataset does, and gives its last state."""
        for _ in range(600):
            task: dict[str, Any] = self.call("GET", f"{self.base}/tasks/{task_id}")
            meta = task["meta"]
            assert 0 <= meta["current"] <= meta["total"]
            assert 0 <= meta["progress"] <= 100
            assert isinstance(meta["message"], str)
            for file in meta.get("files", []):
                states = ("pending", "processing", "processed", "success", "failed", "failure", "skipped")
                assert file["state"] in states
                assert isinstance(file["filename"], str)
            if task["state"] in ("SUCCESS", "FAILURE") or task.get("cancelled"):
                return task
            time.sleep(0.1)
        raise DesignerError("timed out")


def readable(answer: httpx.Response, name: str) -> str | None:
    """A header of an answer, where a page of another origin may read it."""
    exposed = {header.strip() for header in answer.headers.get("access-control-expose-headers", "").lower().split(",")}
    return answer.headers.get(name) if name in exposed or "*" in exposed else None


def events(texts: Iterator[str]) -> Iterator[Any]:
    """Reads a stream: exactly `data: ` before JSON, exactly `data: [DONE]` at the end, comments passed over."""
    waiting = ""
    for text in texts:
        waiting += text
        *lines, waiting = waiting.split("\n")
        for line in lines:
            if line == "data: [DONE]":
                return
            if line and not line.startswith(":"):
                assert line.startswith("data: "), line
                yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended without [DONE]")


def error_text(answer: httpx.Response) -> str:
    """The sentence of an error: `detail`, a string or a list of `{loc, msg}`."""
    detail = answer.json()["detail"]
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in detail)
    assert isinstance(detail, str)
    return f"{answer.status_code}: {detail}"
