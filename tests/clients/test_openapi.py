"""What the OpenAPI document promises holds for answers to whatever schemathesis thinks of, sound and unsound."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.running_server import RunningServer, running

DOCUMENT = Path(__file__).resolve().parents[2] / "gen" / "openapi.yaml"
OPERATIONS = [
    (verb.upper(), path, operation)
    for path, operations in yaml.safe_load(DOCUMENT.read_text("utf-8"))["paths"].items()
    for verb, operation in operations.items()
    if path != "/api/shutdown"
]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
# Unwritten calls say 501 and a busy server says 503; status_code_conformance holds both to what is documented.
CONFIGURATION = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 501, 503]
"""
# Names that exist, so that answers come from behind the gate that refuses names.
EXISTING_NAMES = """
[parameters]
"path.namespace" = "default"
"path.project" = "quickstart"
"path.dataset" = "handbook"
"path.example_id" = "quickstart_rag"
"""


@pytest.fixture(scope="module")
def expendable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own: what runs here deletes and unloads as it likes."""
    with running(tmp_path_factory.mktemp("expendable"), "--example", "quickstart_rag") as server:
        yield server


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", ["any", "existing"])
def test_no_answer_is_undocumented(expendable: RunningServer, tmp_path: Path, names: str) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION + (EXISTING_NAMES if names == "existing" else ""))
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", configuration,
        "run", f"{expendable.url}/openapi.json", "--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS),
        # It ends the server, and with it the run; its own tests are elsewhere.
        "--exclude-path", "/api/shutdown",
        "--max-examples", "15", "--generation-deterministic", "--continue-on-failure", "--no-color",
        # With existing names few values of some calls are left to vary.
        "--suppress-health-check", "filter_too_much", "--warnings", "off",
    ]  # fmt: skip
    if names == "existing":
        command += ["--exclude-operation-id", "ProjectService_DeleteProject"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr
    with httpx.Client(base_url=expendable.url, timeout=30) as client:
        assert client.get("/health").json()["status"] == "healthy"
    assert "Traceback" not in expendable.log


def test_what_says_that_it_is_not_implemented_is_not(http: httpx.Client) -> None:
    for verb, path, operation in OPERATIONS:
        if operation["responses"].get("501", {}).get("description") == "Not implemented yet.":
            answer = http.request(verb, path, json={} if verb == "POST" else None)
            assert answer.status_code == 501, f"{verb} {path}: take `501: Not implemented yet.` out of its comment"


@pytest.mark.parametrize(("verb", "path", "operation"), OPERATIONS, ids=[f"{one[0]} {one[1]}" for one in OPERATIONS])
def test_a_call_is_served_under_each_prefix_with_and_without_a_slash(
    expendable: RunningServer, verb: str, path: str, operation: dict[str, Any]
) -> None:
    form = "multipart/form-data" in operation.get("requestBody", {}).get("content", {})
    with httpx.Client(base_url=expendable.url, timeout=60) as client:
        for template in (path, *operation.get("x-aliases", ())):
            # No project has this name: the call is understood, and refused before it does anything.
            address = re.sub(r"{\w+}", "-", template)
            for url in (address, f"{address}/"):
                body: dict[str, Any] = {"files": {"file": b"x"}} if form else {"json": {}}
                with client.stream(verb, url, **(body if "requestBody" in operation else {})) as answer:
                    assert answer.headers["x-request-id"]
                    assert answer.status_code != 405, url
                    if answer.status_code < 400:
                        continue
                    content = json.loads(answer.read())
                    is_home = template.startswith(("/api/", "/v1/api/")) and not template.startswith("/api/v1/")
                    assert set(content) == ({"error"} if is_home else {"detail", "error"})
                    assert content["error"]["message"] != "Not Found", url


def test_every_call_but_the_bare_ones_has_both_prefixes() -> None:
    bare = [path for _, path, operation in OPERATIONS if "x-aliases" not in operation]
    assert bare == ["/", "/metrics"]
    for _, path, operation in OPERATIONS:
        if path not in bare:
            assert ("/v1" if path.startswith("/api/") else "/api") + path in operation["x-aliases"]


def test_a_query_survives_prefix_and_slash(http: httpx.Client) -> None:
    datasets = "/v1/projects/default/quickstart/datasets"
    for address in (datasets, f"{datasets}/", f"/api{datasets}", f"/api{datasets}/"):
        for wanted in ("true", "false"):
            answer = http.get(f"{address}?include_extra_details={wanted}")
            assert ("details" in answer.json()["datasets"][0]) == (wanted == "true")
