"""What LlamaFarm's command line does over HTTP: its requests, and the answers it can live with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from tests.clients.go_json import ANY, BOOL, FLOAT, INT, STRING, TIME, Map, decode

COMPONENT = {"name": STRING, "status": STRING, "message": STRING, "latency_ms": INT, "details": Map(ANY)}
HEALTH = {
    "status": STRING,
    "summary": STRING,
    "components": [COMPONENT],
    "seeds": [{**COMPONENT, "runtime": Map(ANY)}],
    "timestamp": INT,
}
PROJECT = {"project": {"namespace": STRING, "name": STRING, "config": Map(ANY)}}
FILE = {
    "original_file_name": STRING,
    "resolved_file_name": STRING,
    "timestamp": FLOAT,
    "size": INT,
    "mime_type": STRING,
    "hash": STRING,
}
DATASET = {
    "name": STRING,
    "data_processing_strategy": STRING,
    "database": STRING,
    "files": [STRING],
    "details": {"files_metadata": [FILE]},
}
DATASETS = {"total": INT, "datasets": [DATASET]}
STRATEGIES = {"data_processing_strategies": [STRING], "databases": [STRING]}
UPLOAD = {"filename": STRING, "hash": STRING, "processed": BOOL, "skipped": BOOL, "task_id": STRING, "status": STRING}
BULK = {"uploaded": INT, "skipped": INT, "failed": INT, "task_id": STRING, "status": STRING}
ACTION = {"message": STRING, "task_uri": STRING, "task_id": STRING}
TASK = {
    "task_id": STRING,
    "state": STRING,
    "meta": {"current": INT, "total": INT, "message": STRING},
    "result": ANY,
    "error": STRING,
    "traceback": STRING,
}
# Read out of a value of no type, where every number is a float64.
FILE_RESULT: dict[str, type] = {
    "hash": str,
    "filename": str,
    "status": str,
    "parser": str,
    "extractors": list,
    "chunks": float,
    "chunk_size": float,
    "embedder": str,
    "error": str,
    "reason": str,
}
MODELS = {
    "total": INT,
    "models": [{"name": STRING, "description": STRING, "provider": STRING, "model": STRING, "default": BOOL}],
}
QUERY = {
    "query": STRING,
    "results": [
        {"content": STRING, "score": FLOAT, "metadata": Map(ANY), "chunk_id": STRING, "document_id": STRING},
    ],
    "total_results": INT,
    "processing_time_ms": FLOAT,
    "retrieval_strategy_used": STRING,
    "database_used": STRING,
}
RAG_HEALTH = {
    "status": STRING,
    "database": STRING,
    "components": Map({"name": STRING, "status": STRING, "latency_ms": FLOAT, "message": STRING}),
    "last_check": TIME,
    "issues": [STRING],
}
RAG_STATS = {
    "database": STRING,
    "vector_count": INT,
    "document_count": INT,
    "chunk_count": INT,
    "collection_size_bytes": INT,
    "index_size_bytes": INT,
    "embedding_dimension": INT,
    "distance_metric": STRING,
    "last_updated": TIME,
    "metadata": Map(ANY),
}
DOCUMENTS = [
    {
        "id": STRING,
        "filename": STRING,
        "chunk_count": INT,
        "size_bytes": INT,
        "parser_used": STRING,
        "date_ingested": TIME,
        "metadata": Map(ANY),
    }
]
DATABASES = {
    "databases": [
        {
            "name": STRING,
            "type": STRING,
            "is_default": BOOL,
            "embedding_strategies": [{"name": STRING, "type": STRING, "priority": INT, "is_default": BOOL}],
            "retrieval_strategies": [{"name": STRING, "type": STRING, "is_default": BOOL}],
        }
    ],
    "default_database": STRING,
}
COMPLETION = {"choices": [{"message": {"role": STRING, "content": STRING}}]}
CHUNK = {"choices": [{"delta": {"content": STRING, "tool_calls": [ANY]}, "finish_reason": STRING}]}
HISTORY = {"messages": [{"role": STRING, "content": STRING, "tool_calls": [ANY]}]}


class CliError(Exception):
    """What the command line would print before it ends."""


class FarmCli:
    """The command line, pointed at one project."""

    def __init__(self, url: str, namespace: str, project: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)
        self.namespace, self.project = namespace, project
        self.base = f"/v1/projects/{namespace}/{project}"

    def __enter__(self) -> FarmCli:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(self, method: str, path: str, kind: Any, *, statuses: Sequence[int] = (200,), **request: Any) -> Any:
        """Sends a request, insists on its status and decodes its answer."""
        answer = self.http.request(method, path, **request)
        if answer.status_code not in statuses:
            raise CliError(f"{answer.status_code}: {error_text(answer.text)}")
        return decode(answer.text, kind)

    def require_healthy(self, *names: str) -> dict[str, Any]:
        """The gate before every command."""
        answer = self.http.get("/health", timeout=10)
        assert answer.is_success
        health: dict[str, Any] = decode(answer.text, HEALTH)
        assert health["status"].lower() == "healthy", health["summary"]
        components = {component["name"]: component for component in health["components"]}
        for name in ("server", *names):
            assert components[name]["status"].lower() == "healthy"
        for component in health["components"]:
            details = component["details"]
            # Type assertions without a check: anything else ends the command line with a panic.
            assert isinstance(details.get("pid", 0.0), float)
            assert isinstance(details.get("log_file", ""), str)
            assert "uptime" not in details
        return health

    def deploy(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Updates the project, which is created first where it does not exist."""
        answer = self.http.put(self.base, json={"config": config})
        if answer.status_code == 404:
            name = {"name": self.project}
            self.call("POST", f"/v1/projects/{self.namespace}", PROJECT, statuses=(200, 201), json=name)
        deployed: dict[str, Any] = self.call("PUT", self.base, PROJECT, json={"config": config})
        return deployed

    def wait_for(self, task_id: str, pause: float = 0.1) -> list[dict[str, Any]]:
        """Polls a task to its end and gives its files; the command line pauses for two seconds each time."""
        for _ in range(600):
            task = self.call("GET", f"{self.base}/tasks/{task_id}", TASK)
            if task["state"] == "SUCCESS":
                return file_results(task["result"])
            if task["state"] == "FAILURE":
                raise CliError(task["error"])
            assert task["state"] in ("PENDING", "STARTED", "RETRY", "PROGRESS")
            time.sleep(pause)
        raise CliError("timed out")

    def stream(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, str]:
        """Chats and gives the answer with the session's id."""
        url, sent = f"{self.base}/chat/completions", {"Accept": "text/event-stream", **headers}
        with self.http.stream("POST", url, json={"stream": True, "rag_enabled": False, **body}, headers=sent) as answer:
            if answer.status_code != 200:
                raise CliError(error_text(answer.read().decode()))
            return "".join(deltas(answer.iter_lines())), answer.headers.get("X-Session-ID", "")


def deltas(lines: Iterator[str]) -> Iterator[str]:
    """Reads a stream: `data:` lines up to `[DONE]`; what is no JSON is passed over."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            chunk = decode(data, CHUNK)
        except (TypeError, ValueError):
            continue
        for choice in chunk["choices"][:1]:
            yield choice["delta"]["content"]


def file_results(result: Any) -> list[dict[str, Any]]:
    """The files of a task's result, in each of the three forms that servers have given it."""
    details = result.get("details", []) if isinstance(result, dict) else result
    found = []
    for detail in details:
        if isinstance(detail, list):
            ok, facts = detail
            assert isinstance(ok, bool)
            inner = facts.get("result")
            facts = {**facts, "filename": facts.get("filename") or (inner or {}).get("filename", "")}
            facts = {**facts, "hash": facts.get("hash") or facts.get("file_hash", "")}
        else:
            facts = detail
        for key, kind in FILE_RESULT.items():
            assert isinstance(facts.get(key) or kind(), kind), f"{key} is {facts[key]!r}"
        found.append(facts)
    return found


def error_text(body: str) -> str:
    """The sentence of an error body: `detail`, else `message`, else `error`."""
    try:
        content = json.loads(body)
    except ValueError:
        return body
    if not isinstance(content, dict):
        return body
    detail = content.get("detail")
    for entry in detail if isinstance(detail, list) else [detail]:
        if isinstance(entry, dict):
            entry = entry.get("message") or entry.get("detail")
        if isinstance(entry, str):
            return entry
    return next((content[key] for key in ("message", "error") if isinstance(content.get(key), str)), body)
