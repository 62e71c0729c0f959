"""LlamaHome's document, section "Utilities"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.shape import assert_shape
from tests.contract.test_home_prompts import PREFIXES, assert_home_error, events
from tests.running_server import RunningServer, running, wait_until_gone

DONE = {"status": "success", "message": "…"}
ENTRY = {"timestamp": "…", "level": "INFO", "logger": "…", "message": "…"}
PROMPT = {"prompt": "Hello!", "max_tokens": 8, "temperature": 0}
CHECKS = {
    "python",
    "disk_space",
    "data_folder",
    "memory",
    "models",
    "embedder",
    "vector_store",
    "database",
    "gateway",
    "gpu",
}


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


@PREFIXES
def test_health_check_answers_the_documented_body(http: httpx.Client, prefix: str) -> None:
    answer = http.get(f"{prefix}/health_check")
    assert answer.status_code == 200
    assert_shape({"status": "success", "message": "…", "model_loaded": True, "uptime": 1}, answer.json())
    assert (answer.json()["status"], answer.json()["message"]) == ("success", "API is healthy")


@PREFIXES
def test_logs_are_lines_of_json_with_request_ids(http: httpx.Client, prefix: str) -> None:
    http.get("/info", headers={"X-Request-ID": f"log{prefix.count('/')}"})
    found = lines(http.get(f"{prefix}/logs"))
    for entry in found:
        assert_shape(ENTRY, entry)
    assert f"log{prefix.count('/')}" in {entry.get("request_id") for entry in found}


def test_logs_are_filtered_by_level_limit_and_time(http: httpx.Client) -> None:
    for _ in range(3):
        http.get("/info")
    assert len(lines(http.get("/api/logs", params={"limit": 2}))) == 2
    severe = lines(http.get("/api/logs", params={"level": "error"}))
    assert {entry["level"] for entry in severe} <= {"ERROR", "CRITICAL"}
    now = datetime.now(UTC)
    later, earlier = ((now + timedelta(hours=hours)).isoformat() for hours in (1, -1))
    assert lines(http.get("/api/logs", params={"start_time": later})) == []
    assert lines(http.get("/api/logs", params={"end_time": earlier})) == []
    assert lines(http.get("/api/logs", params={"start_time": earlier, "end_time": later}))


@pytest.mark.parametrize(
    "wrong",
    [{"level": "LOUD"}, {"limit": 0}, {"limit": 10_001}, {"start_time": "yesterday"}, {"end_time": "2026-13-01"}],
    ids=str,
)
def test_a_wrong_log_query_is_400_and_names_the_field(http: httpx.Client, wrong: dict[str, Any]) -> None:
    error = assert_home_error(http.get("/api/logs", params=wrong), 400)
    assert error["details"]["field"] in wrong


def test_following_the_log_shows_what_comes(http: httpx.Client, server: RunningServer) -> None:
    with http.stream("GET", "/api/logs", params={"follow": "true", "limit": 1}) as answer:
        entries = answer.iter_lines()
        next(entries)
        httpx.get(f"{server.url}/info", headers={"X-Request-ID": "followed"})
        assert any(json.loads(entry).get("request_id") == "followed" for entry in entries)


def test_following_a_log_that_is_silent_is_answered_at_once(http: httpx.Client, server: RunningServer) -> None:
    with http.stream("GET", "/api/logs", params={"follow": "true", "level": "CRITICAL"}, timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"


@PREFIXES
def test_metrics_are_given_once_as_json(http: httpx.Client, prefix: str) -> None:
    http.post("/api/process_prompt", json=PROMPT)
    answer = http.get(f"{prefix}/metrics")
    assert answer.headers["content-type"] == "application/json"
    resources = {"cpu_usage": 1.0, "memory_usage": 1.0, "disk_usage": 1.0, "network_io": {}}
    model = {"model": "x", "request_count": 1, "generated_tokens": 1, "active_requests": 0, "memory_bytes": 1}
    documented = {
        "timestamp": 1.0,
        "resources": resources,
        "error_count": 0,
        "request_count": 1,
        "average_response_time": 0.1,
        "inference_latency": 0.1,
        "token_throughput": 0.1,
        "cache_hit_rate": 0.1,
        "models": [model],
    }
    assert_shape(documented, answer.json())
    assert answer.json()["models"][0]["memory_bytes"] > 1 << 20
    assert answer.json()["models"][0]["generated_tokens"] > 0


def test_metrics_are_streamed_when_asked(http: httpx.Client) -> None:
    with http.stream("GET", "/api/metrics", params={"stream": "true", "interval_seconds": 0.5}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = (line for line in answer.iter_lines() if line.startswith("data: "))
        first, second = (json.loads(next(blocks).removeprefix("data: ")) for _ in range(2))
    assert second["timestamp"] > first["timestamp"]
    assert_home_error(http.get("/api/metrics", params={"interval_seconds": 0.1}), 400)


def test_prometheus_reads_the_metrics_and_they_count(http: httpx.Client) -> None:
    def value(name: str, **labels: str) -> float:
        answer = http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        samples = [one for family in text_string_to_metric_families(answer.text) for one in family.samples]
        found = [one for one in samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, f"{name} is missing"
        return sum(one.value for one in found)

    http.post("/api/process_prompt", json=PROMPT)
    method = "/llamastead.v1.PromptService/ProcessPrompt"
    names = {
        "llamastead_requests_total": {"method": method, "code": "OK"},
        "llamastead_request_duration_seconds_count": {"method": method},
        "llamastead_time_to_first_token_seconds_count": {},
        "llamastead_inter_token_latency_seconds_count": {},
        "llamastead_prompt_tokens_total": {},
        "llamastead_generation_tokens_total": {},
        "llamastead_generations_total": {},
    }
    before = {name: value(name, **labels) for name, labels in names.items()}
    http.post("/api/process_prompt", json=PROMPT)
    after = {name: value(name, **labels) for name, labels in names.items()}
    assert all(after[name] > before[name] for name in names), (before, after)
    for name in ("requests_running", "requests_waiting", "model_loaded", "prompt_tokens_cached_total"):
        value(f"llamastead_{name}")
    assert value("llamastead_worker_memory_bytes", worker="embedder") > 1 << 20
    assert value("process_resident_memory_bytes") > 1 << 20
    http.post("/api/process_prompt", json={})
    assert value("llamastead_requests_total", method=method, code="INVALID_ARGUMENT") >= 1


@PREFIXES
def test_diagnostics_are_named_checks(http: httpx.Client, prefix: str) -> None:
    answer = http.get(f"{prefix}/diagnostics")
    check = {"name": "python", "status": "ok", "detail": "…"}
    device = {"name": "x", "kind": "cpu", "memory_total_bytes": 1, "memory_free_bytes": 1}
    assert_shape({**DONE, "checks": [check], "versions": {"python": "3"}, "devices": [device]}, answer.json())
    assert {check["name"] for check in answer.json()["checks"]} == CHECKS
    assert [check for check in answer.json()["checks"] if check["status"] == "error"] == []


def test_diagnostics_are_streamed_when_asked(http: httpx.Client) -> None:
    *checks, whole, done = events(http.get("/api/diagnostics", params={"stream": "true"}))
    assert done == "[DONE]"
    assert {check["name"] for check in checks} == {check["name"] for check in whole["checks"]} == CHECKS


@PREFIXES
@pytest.mark.parametrize("kind", ["prompt", "embedding", "uploads", "all", None])
def test_caches_are_cleared_by_kind(http: httpx.Client, prefix: str, kind: str | None) -> None:
    answer = http.post(f"{prefix}/clear_cache", json={} if kind is None else {"cache_type": kind})
    assert answer.status_code == 200, answer.text
    assert_shape({**DONE, "freed_bytes": 0, "cleared": ["prompt"]}, answer.json())
    assert answer.json()["cleared"] == (["prompt", "embedding", "uploads"] if kind in ("all", None) else [kind])


def test_clearing_frees_bytes_and_touches_nothing_of_the_user(http: httpx.Client, server: RunningServer) -> None:
    query = {"query": "When does the barn gate close?"}
    found = http.post("/v1/projects/default/quickstart/rag/query", json=query).json()["total_results"]
    project = server.data_dir / "projects" / "default" / "quickstart"
    (project / "lf_data" / "incoming").mkdir(exist_ok=True)
    (project / "lf_data" / "incoming" / "left-behind").write_bytes(b"x" * 1000)
    blobs = sorted(path for path in project.rglob("*") if path.is_file() and "incoming" not in path.parts)
    assert http.post("/api/clear_cache", json={"cache_type": "embedding"}).json()["freed_bytes"] > 0
    assert http.post("/api/clear_cache", json={"cache_type": "uploads"}).json()["freed_bytes"] == 1000
    assert sorted(path for path in project.rglob("*") if path.is_file() and "incoming" not in path.parts) == blobs
    assert http.post("/v1/projects/default/quickstart/rag/query", json=query).json()["total_results"] == found


def test_an_unknown_cache_is_400(http: httpx.Client) -> None:
    error = assert_home_error(http.post("/api/clear_cache", json={"cache_type": "weights"}), 400)
    assert error["details"] == {"field": "cache_type"}


class TestAServerThatStops:
    """Shutdown, and secrets in its log."""

    TOKEN = "a-token-nobody-may-read"

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[RunningServer]:
        with running(tmp_path, settings={"LLAMASTEAD_API_TOKENS": self.TOKEN}) as server:
            yield server

    def test_it_answers_first_then_finishes_what_runs_and_ends(self, server: RunningServer) -> None:
        headers = {"Authorization": f"Bearer {self.TOKEN}"}
        children = server.descendants()
        with httpx.Client(base_url=server.url, timeout=30, headers=headers) as client:
            log = client.get("/api/logs").text
            assert log
            assert self.TOKEN not in log
            assert_home_error(client.post("/api/shutdown", json={"grace_seconds": -1}), 400)
            body = {"prompt": "Count.", "max_tokens": 60, "temperature": 2}
            with (
                client.stream("GET", "/api/logs", params={"follow": True, "level": "CRITICAL"}) as log_lines,
                client.stream("GET", "/api/metrics", params={"stream": True, "interval_seconds": 60}) as measurements,
                client.stream("POST", "/api/stream", json=body) as running_answer,
            ):
                pieces = running_answer.iter_lines()
                next(pieces)
                with httpx.Client(base_url=server.url, timeout=60, headers=headers) as other:
                    answer = other.post("/api/shutdown", json={"grace_seconds": 120})
                assert answer.status_code == 200
                assert_shape(DONE, answer.json())
                # What would never end does so, without an error, long before the grace does.
                assert log_lines.read().strip() == b""
                assert measurements.read().count(b"data: ") == 1
                assert [line for line in pieces if line][-1] == "data: [DONE]"
        assert server.process is not None
        assert server.process.wait(60) == 0
        assert wait_until_gone(children) == []
