"""`llamastead tokens`, on a stopped server and beside a running one."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.running_server import running
from tests.test_cli import llamastead


def tokens(data: Path, *arguments: str) -> str:
    done = llamastead(data, "tokens", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(url: str, secret: str | None, status: int) -> httpx.Response:
    """Asks until the answer has a status."""
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    deadline = time.monotonic() + 20
    while (answer := httpx.get(url, headers=headers)).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer


def test_a_running_server_takes_over_what_the_command_line_does(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    early = tokens(data, "create", "--name", "early", "--scope", "admin")
    with running(tmp_path) as server:
        url = f"{server.url}/v1/projects/acme"
        assert "Bearer <token>" in server.log
        assert httpx.get(url).status_code == 401
        answer = until(url, early, 200)
        assert answer.headers["x-ratelimit-limit"] == "60"
        late = tokens(data, "create", "--name", "late", "--scope", "read", "--project", "acme/*")
        until(url, late, 200)
        assert (
            httpx.get(f"{server.url}/v1/projects/other", headers={"authorization": f"Bearer {late}"}).status_code == 403
        )
        tokens(data, "revoke", "early")
        until(url, early, 401)
        assert "stays closed" in tokens(data, "revoke", "late")
        until(url, late, 401)
        until(url, None, 401)
        assert early not in server.log
        assert late not in server.log


def test_an_open_server_closes_with_the_first_token(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        url = f"{server.url}/v1/projects/acme"
        answer = httpx.get(url)
        assert answer.status_code == 200
        assert "x-ratelimit-limit" not in answer.headers
        secret = httpx.post(f"{server.url}/v1/tokens", json={"name": "first", "scope": "admin"}).json()["secret"]
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_any_other_address_opens_with_a_token_made_before(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    tokens(data, "create", "--name", "expired", "--scope", "admin", "--expires-in", "1s")
    time.sleep(1.1)
    refused = llamastead(data, "serve", LLAMASTEAD_HOST="0.0.0.0")
    assert refused.returncode == 1
    assert "tokens create" in refused.stderr
    secret = tokens(data, "create", "--name", "ci", "--scope", "read")
    with running(tmp_path, settings={"LLAMASTEAD_HOST": "0.0.0.0"}) as server:
        assert httpx.get(f"{server.url}/info").status_code == 401
        assert httpx.get(f"{server.url}/info", headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_tokens_are_listed_without_their_secrets(tmp_path: Path) -> None:
    secret = tokens(tmp_path, "create", "--name", "ci", "--scope", "write", "--project", "a/b", "--expires-in", "90d")
    listed = tokens(tmp_path, "list")
    assert secret not in listed
    head, row = listed.splitlines()
    assert head.split() == ["NAME", "SCOPE", "PROJECT", "CREATED", "EXPIRES"]
    assert row.split()[:3] == ["ci", "write", "a/b"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "a/b", "--scope", "read"),
        ("create", "--name", "x", "--scope", "read", "--project", "acme"),
        ("create", "--name", "x", "--scope", "admin", "--project", "a/b"),
        ("create", "--name", "x", "--scope", "read", "--expires-in", "soon"),
        ("create", "--name", "x", "--scope", "read", "--expires-in", "0s"),
        ("revoke", "absent"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = llamastead(tmp_path, "tokens", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("llamastead: ")
    assert "Traceback" not in done.stderr
