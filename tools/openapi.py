"""Writes the OpenAPI document of the REST face: `openapi.py DESCRIPTORS OUT`.

Everything in it comes from the descriptors and their comments. Beside prose, a comment may hold

- in a field: `Range: a to b.`, `Default: x.`, `at least n`, and `a whole number` for a double that is one;
- in an RPC: the lists `Headers:`, `Response headers:`, `Content types:`, `Request content type:` and `Errors:`,
  each of `- key: text` items.

A path's further bindings are listed as `x-aliases` instead of being repeated.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.api import annotations_pb2, field_behavior_pb2, http_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

Json = dict[str, Any]

BASE = Path(__file__).with_name("openapi_base.yaml")
PACKAGE = "llamastead.v1"
HTTP: Any = annotations_pb2.http
FIELD_BEHAVIOR: Any = field_behavior_pb2.field_behavior
HTTP_BODY = ".google.api.HttpBody"
WELL_KNOWN: dict[str, Json] = {
    ".google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    ".google.protobuf.Value": {},
}
SCALARS: dict[FieldDescriptorProto.Type.ValueType, Json] = {
    FieldDescriptorProto.TYPE_STRING: {"type": "string"},
    FieldDescriptorProto.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptorProto.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptorProto.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptorProto.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptorProto.TYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0},
}
NUMBER = r"(-?\d+(?:\.\d+)?)"

COMMON_ERRORS = {
    "401": "The token is missing or wrong.",
    "429": "Too many requests; `Retry-After` says when to try again.",
    "500": "A defect of the server.",
}
RETRY_AFTER: Json = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


@dataclass
class Comment:
    """A comment, split into prose and lists."""

    text: str = ""
    lists: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: str) -> Comment:
        """Parses a leading comment as protoc hands it over."""
        comment, paragraphs = cls(), []
        lines = [line.strip() for line in raw.splitlines() if "buf:lint:ignore" not in line]
        for block in re.split(r"\n{2,}", "\n".join(lines).strip()):
            title, _, items = block.partition(":\n- ")
            if not items:
                paragraphs.append(" ".join(block.split("\n")))
                continue
            pairs = (" ".join(item.split()).partition(": ") for item in items.split("\n- "))
            comment.lists[title] = {key: text for key, _, text in pairs}
        comment.text = "\n\n".join(paragraphs)
        return comment

    def rules(self, schema: Json) -> Json:
        """Adds what the prose says about a field's values to its schema."""
        schema = dict(schema)
        if self.text:
            schema["description"] = self.text
        if "a whole number" in self.text and schema.get("type") == "number":
            schema |= {"type": "integer", "format": "int64"}
        if found := re.search(rf"Range: {NUMBER} to {NUMBER}\.(?!\d)", self.text):
            schema |= {"minimum": yaml.safe_load(found[1]), "maximum": yaml.safe_load(found[2])}
        if found := re.search(r"at least (\d+)\b", self.text):
            schema["minimum"] = int(found[1])
        if schema.get("type") == "string" and re.search("not blank|at least one character", self.text):
            schema["minLength"] = 1
        if found := re.search(rf"Default: (?:{NUMBER}|(true|false)|`([^`]+)`)\.(?!\d)", self.text):
            schema["default"] = found[3] or yaml.safe_load(found[1] or found[2])
        return schema


class Generator:
    """Turns descriptors into one OpenAPI document."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.comments: dict[str, Comment] = {}
        self.services: list[tuple[str, ServiceDescriptorProto]] = []
        self.base: Json = yaml.safe_load(BASE.read_text("utf-8"))
        self.schemas: Json = dict(self.base["components"]["schemas"])
        for file in files.file:
            raw = {tuple(spot.path): spot.leading_comments for spot in file.source_code_info.location}
            self._index(f".{file.package}", file.message_type, (4,), raw)
            for i, service in enumerate(file.service):
                name = f".{file.package}.{service.name}"
                self.services.append((name, service))
                self.comments[name] = Comment.parse(raw.get((6, i), ""))
                for j, method in enumerate(service.method):
                    self.comments[f"{name}.{method.name}"] = Comment.parse(raw.get((6, i, 2, j), ""))

    def _index(
        self, scope: str, messages: Iterable[DescriptorProto], path: tuple[int, ...], raw: dict[tuple[int, ...], str]
    ) -> None:
        for i, message in enumerate(messages):
            name, here = f"{scope}.{message.name}", (*path, i)
            self.messages[name] = message
            self.comments[name] = Comment.parse(raw.get(here, ""))
            for j, member in enumerate(message.field):
                self.comments[f"{name}.{member.name}"] = Comment.parse(raw.get((*here, 2, j), ""))
            self._index(name, message.nested_type, (*here, 3), raw)

    def document(self, version: str) -> Json:
        """Returns the whole document."""
        paths: Json = {}
        tags = []
        for name, service in sorted(self.services, key=lambda pair: pair[0]):
            tags.append({"name": service.name.removesuffix("Service"), "description": self.comments[name].text})
            for method in service.method:
                if method.options.HasExtension(HTTP):
                    rule = method.options.Extensions[HTTP]
                    verb, path = binding(rule)
                    paths.setdefault(path, {})[verb] = self.operation(name, service, method, rule)
        document = dict(self.base)
        components = document.pop("components")
        document["info"] = document["info"] | {"version": version}
        document |= {"tags": tags, "paths": dict(sorted(paths.items()))}
        return document | {"components": components | {"schemas": dict(sorted(self.schemas.items()))}}

    def operation(
        self, scope: str, service: ServiceDescriptorProto, method: MethodDescriptorProto, rule: http_pb2.HttpRule
    ) -> Json:
        """Describes the call of one RPC by its first binding."""
        comment = self.comments[f"{scope}.{method.name}"]
        _, path = binding(rule)
        in_path = re.findall(r"{(\w+)}", path)
        operation: Json = {
            "tags": [service.name.removesuffix("Service")],
            "operationId": f"{service.name}_{method.name.removesuffix('Http')}",
            "summary": re.split(r"[.:](?:\s|$)", comment.text, maxsplit=1)[0],
            "description": comment.text,
            "parameters": self.parameters(method, in_path, rule.body) + headers(comment),
        }
        if rule.body:
            operation["requestBody"] = self.body(method, in_path, rule.body, comment)
        operation["responses"] = self.responses(method, comment, "ApiError" if path.startswith("/api/") else "Error")
        if rule.additional_bindings:
            operation["x-aliases"] = [binding(other)[1] for other in rule.additional_bindings]
        return operation

    def parameters(self, method: MethodDescriptorProto, in_path: Sequence[str], body: str) -> list[Json]:
        """Describes the fields that a call carries in its path and its query."""
        found = []
        for member in self.messages[method.input_type].field:
            if member.name not in in_path and (body == "*" or member.name == body):
                continue
            schema = self.schema(method.input_type, member)
            place = "path" if member.name in in_path else "query"
            parameter: Json = {"name": member.name, "in": place, "required": place == "path" or required(member)}
            if text := schema.pop("description", ""):
                parameter["description"] = text
            found.append(parameter | {"schema": schema})
        return found

    def body(self, method: MethodDescriptorProto, in_path: Sequence[str], body: str, comment: Comment) -> Json:
        """Describes a call's body."""
        if uploads := comment.lists.get("Request content type"):
            ((media_type, part),) = uploads.items()
            file: Json = {"type": "string", "contentMediaType": "application/octet-stream", "description": "The file."}
            name = part.removesuffix("[]")
            value = file if name == part else {"type": "array", "items": file, "maxItems": 100}
            form = {"type": "object", "required": [name], "properties": {name: value}}
            return {"required": True, "content": {media_type: {"schema": form}}}
        if body != "*":
            raise ValueError(f"{method.name}: a body field needs a `Request content type:` list")
        reference = self.reference(method.input_type, skip=in_path)
        needed = any(required(member) for member in self.messages[method.input_type].field)
        return {"required": needed, "content": {"application/json": {"schema": reference}}}

    def responses(self, method: MethodDescriptorProto, comment: Comment, error: str) -> Json:
        """Describes a call's answers."""
        content = {}
        for media_type, name in comment.lists.get("Content types", {"application/json": ""}).items():
            if name == "string":
                schema: Json = {"type": "string"}
            else:
                schema = self.reference(f".{PACKAGE}.{name}" if name else method.output_type)
            if media_type in ("text/event-stream", "application/x-ndjson"):
                schema = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
            content[media_type] = {"schema": schema}
        answer: Json = {"description": "Success.", "content": content}
        if sent := comment.lists.get("Response headers"):
            answer["headers"] = {k: {"description": v, "schema": {"type": "string"}} for k, v in sent.items()}
        responses: Json = {"200": answer}
        for status, text in sorted((COMMON_ERRORS | comment.lists.get("Errors", {})).items()):
            reference = {"schema": {"$ref": f"#/components/schemas/{error}"}}
            responses[status] = {"description": text, "content": {"application/json": reference}}
            if status in ("429", "503"):
                responses[status]["headers"] = RETRY_AFTER
        return responses

    def reference(self, type_name: str, skip: Sequence[str] = ()) -> Json:
        """Refers to a message's schema, making it on first use, without the fields in `skip`."""
        if type_name in WELL_KNOWN:
            return dict(WELL_KNOWN[type_name])
        if type_name == HTTP_BODY:
            raise ValueError("a google.api.HttpBody needs a `Content types:` list")
        name = type_name.removeprefix(f".{PACKAGE}.")
        if name not in self.schemas:
            members = [member for member in self.messages[type_name].field if member.name not in skip]
            schema: Json = {"type": "object", "description": self.comments[type_name].text}
            self.schemas[name] = schema
            if needed := [member.name for member in members if required(member)]:
                schema["required"] = needed
            schema["properties"] = {member.name: self.schema(type_name, member) for member in members}
        return {"$ref": f"#/components/schemas/{name}"}

    def schema(self, owner: str, member: FieldDescriptorProto) -> Json:
        """Describes a field."""
        message = self.messages.get(member.type_name)
        if message is not None and message.options.map_entry:
            values = self.schema(member.type_name, message.field[1])
            schema: Json = {"type": "object", "additionalProperties": values}
        else:
            schema = self.reference(member.type_name) if message is not None else dict(SCALARS[member.type])
            if member.label == FieldDescriptorProto.LABEL_REPEATED:
                schema = {"type": "array", "items": schema}
        return self.comments.get(f"{owner}.{member.name}", Comment()).rules(schema)


def binding(rule: http_pb2.HttpRule) -> tuple[str, str]:
    """Returns a rule's HTTP method and path."""
    verb = rule.WhichOneof("pattern") or ""
    return verb, str(getattr(rule, verb))


def headers(comment: Comment) -> list[Json]:
    """Describes the request headers a comment lists."""
    listed = comment.lists.get("Headers", {}).items()
    return [{"name": k, "in": "header", "description": v, "schema": {"type": "string"}} for k, v in listed]


def required(member: FieldDescriptorProto) -> bool:
    """Tells whether a field is annotated as required."""
    return bool(field_behavior_pb2.REQUIRED in member.options.Extensions[FIELD_BEHAVIOR])


class Dumper(yaml.SafeDumper):
    """Writes long texts as blocks and repeats rather than aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Spells shared objects out each time."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = ("|" if "\n" in text else ">") if len(text) > 90 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _text)


def main() -> None:
    """Reads the descriptors, writes the document."""
    source, out = map(Path, sys.argv[1:])
    version = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]["version"]
    document = Generator(FileDescriptorSet.FromString(source.read_bytes())).document(version)
    body = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    out.write_text(f"# Generated from proto/ by tools/openapi.py. Do not edit.\n{body}", "utf-8")


if __name__ == "__main__":
    main()
