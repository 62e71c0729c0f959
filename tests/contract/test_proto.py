"""The contract in proto/ keeps the promises of both API documents and of the generated files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from openapi_spec_validator import validate

ROOT = Path(__file__).resolve().parents[2]
HTTP: Any = annotations_pb2.http
FIELD_BEHAVIOR: Any = field_behavior_pb2.field_behavior
PROJECT = "/v1/projects/{namespace}/{project}"

LLAMAFARM = f"""
GET /
GET /info
GET /health
GET /health/liveness
GET /v1/projects/{{namespace}}
POST /v1/projects/{{namespace}}
GET {PROJECT}
PUT {PROJECT}
DELETE {PROJECT}
GET {PROJECT}/models
POST {PROJECT}/chat/completions
GET {PROJECT}/chat/sessions/{{session_id}}/history
DELETE {PROJECT}/chat/sessions/{{session_id}}
DELETE {PROJECT}/chat/sessions
GET {PROJECT}/datasets
POST {PROJECT}/datasets
GET {PROJECT}/datasets/strategies
DELETE {PROJECT}/datasets/{{dataset}}
POST {PROJECT}/datasets/{{dataset}}/data
POST {PROJECT}/datasets/{{dataset}}/process
DELETE {PROJECT}/datasets/{{dataset}}/data/{{file_hash}}
POST {PROJECT}/rag/query
GET {PROJECT}/rag/health
GET {PROJECT}/tasks/{{task_id}}
GET /v1/examples
POST /v1/examples/{{example_id}}/import-project
POST /v1/examples/{{example_id}}/import-data
""".strip().splitlines()

LLAMAHOME = """
POST /api/process
POST /api/stream
GET /api/models
POST /api/config
POST /api/configure_model
GET /api/get_config
POST /api/save_config
POST /api/reset_config
GET /api/health_check
GET /api/logs
POST /api/clear_cache
GET /api/metrics
GET /api/diagnostics
POST /api/shutdown
POST /api/load_model
POST /api/unload_model
POST /api/process_prompt
""".strip().splitlines()

NOT_ALIASED = {"GET /", "GET /metrics"}
WIDE = {
    FieldDescriptorProto.TYPE_INT64,
    FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_SINT64,
    FieldDescriptorProto.TYPE_FIXED64,
    FieldDescriptorProto.TYPE_SFIXED64,
}


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    environment = {**os.environ, "PATH": path}
    return subprocess.run(["buf", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def build(out: Path, *options: str) -> FileDescriptorSet:
    done = buf("build", "--as-file-descriptor-set", "--path=proto/llamastead/v1", f"--output={out}", *options)
    assert done.returncode == 0, done.stderr
    return FileDescriptorSet.FromString(out.read_bytes())


@pytest.fixture(scope="module")
def commented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("descriptors") / "commented.binpb"
    build(out)
    return out


@pytest.fixture(scope="module")
def files(commented: Path) -> list[FileDescriptorProto]:
    every = FileDescriptorSet.FromString(commented.read_bytes()).file
    return [file for file in every if file.package == "llamastead.v1"]


@pytest.fixture(scope="module")
def messages(files: list[FileDescriptorProto]) -> dict[str, DescriptorProto]:
    found: dict[str, DescriptorProto] = {}

    def collect(scope: str, nested: Any) -> None:
        for message in nested:
            found[f"{scope}.{message.name}"] = message
            collect(f"{scope}.{message.name}", message.nested_type)

    for file in files:
        collect(f".{file.package}", file.message_type)
    return found


def methods(files: list[FileDescriptorProto]) -> Iterator[MethodDescriptorProto]:
    for file in files:
        for service in file.service:
            yield from service.method


def bindings(method: MethodDescriptorProto) -> list[str]:
    if not method.options.HasExtension(HTTP):
        return []
    rule = method.options.Extensions[HTTP]
    pairs = ((one.WhichOneof("pattern"), one) for one in (rule, *rule.additional_bindings))
    return [f"{verb.upper()} {getattr(one, verb)}" for verb, one in pairs]


def all_bindings(files: list[FileDescriptorProto]) -> list[str]:
    return [bound for method in methods(files) for bound in bindings(method)]


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and the source path of everything in a file that needs a comment."""
    for i, service in enumerate(file.service):
        yield service.name, (6, i)
        for j, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (6, i, 2, j)
    for i, message in enumerate(file.message_type):
        yield message.name, (4, i)
        for j, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", (4, i, 2, j)


def sentences(comment: str) -> bool:
    lines = [line.strip() for line in comment.strip().splitlines() if "buf:lint:ignore" not in line]
    return bool(lines) and (lines[-1].endswith(".") or lines[-1].startswith("- "))


def test_lint_is_clean() -> None:
    done = buf("lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_format_is_clean() -> None:
    done = buf("format", "--diff", "--exit-code", "--exclude-path=proto/google")
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_commented_in_sentences(files: list[FileDescriptorProto]) -> None:
    bare = []
    for file in files:
        comments = {tuple(spot.path): spot.leading_comments for spot in file.source_code_info.location}
        bare += [f"{file.name}: {name}" for name, path in elements(file) if not sentences(comments.get(path, ""))]
    assert bare == []


def test_no_rest_message_holds_a_64_bit_integer(
    files: list[FileDescriptorProto], messages: dict[str, DescriptorProto]
) -> None:
    todo = [name for method in methods(files) if bindings(method) for name in (method.input_type, method.output_type)]
    # What a google.api.HttpBody holds is typed by the RPC's gRPC forms, so those count too.
    todo += [method.output_type for method in methods(files)]
    seen: set[str] = set()
    wide = []
    while todo:
        name = todo.pop()
        if name in seen or name not in messages:
            continue
        seen.add(name)
        wide += [f"{name}.{field.name}" for field in messages[name].field if field.type in WIDE]
        todo += [field.type_name for field in messages[name].field if field.type_name]
    assert len(seen) > 100
    assert wide == []


def test_absent_differs_from_zero_in_requests(
    files: list[FileDescriptorProto], messages: dict[str, DescriptorProto]
) -> None:
    blind = [
        f"{name}.{field.name}"
        for name in {method.input_type for method in methods(files)}
        for field in messages[name].field
        if field.label != FieldDescriptorProto.LABEL_REPEATED
        and field.type != FieldDescriptorProto.TYPE_MESSAGE
        and not field.HasField("oneof_index")
        and field_behavior_pb2.REQUIRED not in field.options.Extensions[FIELD_BEHAVIOR]
    ]
    assert blind == []


@pytest.mark.parametrize("endpoint", LLAMAFARM + LLAMAHOME)
def test_documented_endpoint_has_a_binding(endpoint: str, files: list[FileDescriptorProto]) -> None:
    assert all_bindings(files).count(endpoint) == 1


def test_every_binding_has_its_alias(files: list[FileDescriptorProto]) -> None:
    for method in methods(files):
        if not (bound := bindings(method)) or bound[0] in NOT_ALIASED:
            continue
        verb, path = bound[0].split(" ")
        prefix = "/v1" if path.startswith("/api/") else "/api"
        assert f"{verb} {prefix}{path}" in bound, method.name


def test_bindings_are_distinct_and_plain(
    files: list[FileDescriptorProto], messages: dict[str, DescriptorProto]
) -> None:
    shapes = [re.sub(r"{\w+(=\*\*)?}", "{}", bound) for bound in all_bindings(files)]
    assert len(shapes) == len(set(shapes))
    for method in methods(files):
        members = {field.name for field in messages[method.input_type].field}
        for bound in bindings(method):
            # Envoy answers a trailing slash by itself and refuses one in a template. Only a last name may hold slashes.
            assert re.fullmatch(r"[A-Z]+ (/|(/[\w.-]+|/{\w+})+(/{\w+=\*\*})?)", bound)
            assert set(re.findall(r"{(\w+)[=}]", bound)) <= members


def test_descriptors_for_envoy_are_current(tmp_path: Path) -> None:
    error_details = "--path=proto/google/rpc/error_details.proto"
    built = build(tmp_path / "built.binpb", error_details, "--exclude-source-info")
    committed = FileDescriptorSet.FromString((ROOT / "gen/descriptors.binpb").read_bytes())
    assert committed == built, "run `make generate`"
    names = {file.name for file in committed.file}
    assert "google/rpc/error_details.proto" in names
    assert not [name for name in names if "internal" in name]


def test_openapi_is_current_and_valid(commented: Path, tmp_path: Path) -> None:
    out = tmp_path / "openapi.yaml"
    subprocess.run([sys.executable, "tools/openapi.py", str(commented), str(out)], cwd=ROOT, check=True)
    text = (ROOT / "gen/openapi.yaml").read_text("utf-8")
    assert text == out.read_text("utf-8"), "run `make generate`"
    validate(yaml.safe_load(text))


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "gen/openapi.yaml").read_text("utf-8"))
    return document


@pytest.mark.parametrize("endpoint", LLAMAFARM + LLAMAHOME)
def test_openapi_has_every_documented_endpoint(endpoint: str, openapi: dict[str, Any]) -> None:
    verb, path = endpoint.split(" ")
    operation = openapi["paths"][path][verb.lower()]
    family = "ApiError" if path.startswith("/api/") else "Error"
    for status, answer in operation["responses"].items():
        if reference := answer.get("$ref"):
            answer = openapi["components"]["responses"][reference.rpartition("/")[2]]
        assert "X-Request-ID" in answer["headers"]
        if not status.startswith("2"):
            assert answer["content"]["application/json"]["schema"]["$ref"].endswith(f"/{family}")


def test_openapi_says_how_any_call_may_fail(openapi: dict[str, Any]) -> None:
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            expected = {"403", "500", "503"} | ({"401"} if "x-required-scope" in operation else set())
            if operation["parameters"] or "requestBody" in operation:
                expected |= {"400"}
            if "requestBody" in operation:
                expected |= {"413", "415"}
            assert expected <= set(operation["responses"]), path


def test_openapi_says_which_fields_answers_always_have(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    assert {"files", "name", "database"} <= set(schemas["Dataset"]["required"])
    assert not {"details", "auto_process"} & set(schemas["Dataset"]["required"])
    assert set(schemas["ChatMessage"]["required"]) == {"role"}


def test_openapi_says_ranges_defaults_and_requirements(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    query = schemas["QueryRequest"]
    assert query["required"] == ["query"]
    assert query["properties"]["query"]["minLength"] == 1
    top_k = query["properties"]["top_k"]
    assert (top_k["minimum"], top_k["maximum"], top_k["default"]) == (1, 100, 5)
    alpha = query["properties"]["hybrid_alpha"]
    assert (alpha["minimum"], alpha["maximum"], alpha["default"]) == (0, 1, 0.5)
    name = schemas["CreateProjectRequest"]["properties"]["name"]
    assert (name["pattern"], name["maxLength"]) == ("^[A-Za-z0-9][A-Za-z0-9._-]*$", 100)
    assert schemas["FileDetail"]["properties"]["size"]["type"] == "integer"
    upload = openapi["paths"][f"{PROJECT}/datasets/{{dataset}}/data"]["post"]["requestBody"]["content"]
    assert upload["multipart/form-data"]["schema"]["required"] == ["file"]
    chat = openapi["paths"][f"{PROJECT}/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(chat) == {"application/json", "text/event-stream"}
