"""LlamaHome's document, sections "Authentication" and "Rate Limiting", and the statuses that they add to every call."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.contract.test_home_prompts import PROMPT, assert_home_error
from tests.running_server import running


def test_401_403_and_429_come_in_the_documented_envelope(tmp_path: Path) -> None:
    settings = {"LLAMASTEAD_API_TOKENS": "root", "LLAMASTEAD_RATE_LIMIT_REQUESTS": "4"}
    with running(tmp_path, settings=settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:

        def ask(token: str, path: str = "/api/process_prompt") -> httpx.Response:
            return http.post(path, json=PROMPT, headers={"Authorization": f"Bearer {token}"})

        def made(name: str, **restriction: str) -> str:
            body = {"name": name, "scope": "read", **restriction}
            answer = http.post("/v1/tokens", json=body, headers={"Authorization": "Bearer root"})
            return str(answer.json()["secret"])

        reader, restricted = made("reader"), made("restricted", project="default/mine")
        missing = http.post("/api/process_prompt", json=PROMPT)
        for answer in (missing, ask("wrong")):
            assert assert_home_error(answer, 401)["code"] == "unauthenticated"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert assert_home_error(ask(restricted), 403)["code"] == "permission_denied"
        assert assert_home_error(ask(reader, "/api/shutdown"), 403)["details"]["required_scope"] == "admin"
        allowed = [ask(reader) for _ in range(4)]
        assert [answer.headers.get("x-ratelimit-remaining") for answer in allowed] == ["3", "2", "1", "0"]
        assert [answer.status_code for answer in allowed] == [200] * 4
        limited = ask(reader)
        assert assert_home_error(limited, 429)["code"] == "rate_limited"
        assert limited.headers["x-ratelimit-limit"] == "4"
        assert 1 <= int(limited.headers["retry-after"]) <= 60
        healthy = http.get("/api/health_check", headers={"Authorization": f"Bearer {reader}"})
        assert healthy.status_code == 200


def test_who_follows_the_log_or_the_metrics_is_shown_no_more_once_the_token_is_revoked(tmp_path: Path) -> None:
    admin = {"Authorization": "Bearer root"}
    settings = {"LLAMASTEAD_API_TOKENS": "root", "LLAMASTEAD_RATE_LIMIT_REQUESTS": "0"}
    with running(tmp_path, settings=settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        for path in ("/api/logs?follow=true", "/api/metrics?stream=true&interval_seconds=0.5"):
            made = http.post("/v1/tokens", json={"name": "passing", "scope": "admin"}, headers=admin).json()
            with http.stream("GET", path, headers={"Authorization": f"Bearer {made['secret']}"}) as answer:
                lines = answer.iter_lines()
                assert next(lines)
                assert http.delete("/v1/tokens/passing", headers=admin).status_code == 200
                *_, last = (line for line in lines if line)
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unauthenticated"
