"""Writes the OpenAPI document of the REST face: `openapi.py DESCRIPTORS OUT`.

Everything in it comes from the descriptors and their comments. Beside prose, a comment may hold

- in a field: `Range: a to b.`, `Default: x.`, `at least n`, `a whole number` for a double that is one, and the rule
  for names that domain/names.py checks;
- in an RPC: the lists `Headers:`, `Response headers:`, `Content types:`, `Request content type:` and `Errors:`,
  each of `- key: text` items.

A path's further bindings are listed as `x-aliases` instead of being repeated.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
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

from llamastead.v1 import access_pb2
from openapi_comment import Comment, Json
from openapi_failures import RATE_LIMIT, REQUEST_ID, Failures

BASE = Path(__file__).with_name("openapi_base.yaml")
PACKAGE = "llamastead.v1"
HTTP: Any = annotations_pb2.http
FIELD_BEHAVIOR: Any = field_behavior_pb2.field_behavior
ACCESS: Any = access_pb2.access
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
    FieldDescriptorProto.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptorProto.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptorProto.TYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 4294967295},
}


class Generator:
    """Turns descriptors into one OpenAPI document."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.comments: dict[str, Comment] = {}
        self.services: list[tuple[str, ServiceDescriptorProto]] = []
        self.base: Json = yaml.safe_load(BASE.read_text("utf-8"))
        self.schemas: Json = dict(self.base["components"]["schemas"])
        self.failures = Failures()
        for file in files.file:
            raw = {tuple(spot.path): spot.leading_comments for spot in file.source_code_info.location}
            self._index(f".{file.package}", file.message_type, (4,), raw)
            for i, service in enumerate(file.service):
                name = f".{file.package}.{service.name}"
                self.services.append((name, service))
                self.comments[name] = Comment.parse(raw.get((6, i), ""))
                for j, method in enumerate(service.method):
                    self.comments[f"{name}.{method.name}"] = Comment.parse(raw.get((6, i, 2, j), ""))

        methods = [method for _, service in self.services for method in service.method if annotated(method)]
        asked = self._reachable(method.input_type for method in methods)
        self.answers = self._reachable(method.output_type for method in methods) - asked

    def _reachable(self, roots: Iterable[str]) -> set[str]:
        found: set[str] = set()
        todo = list(roots)
        while todo:
            name = todo.pop()
            if name in self.messages and name not in found:
                found.add(name)
                todo += [member.type_name for member in self.messages[name].field]
        return found

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
                if annotated(method):
                    rule = method.options.Extensions[HTTP]
                    verb, path = binding(rule)
                    paths.setdefault(path, {})[verb] = self.operation(name, service, method, rule)
        document = dict(self.base)
        components = document.pop("components")
        document["info"] = document["info"] | {"version": version}
        document |= {"tags": tags, "paths": dict(sorted(paths.items()))}
        components |= {"responses": self.failures.components, "schemas": self.schemas}
        sorts = ("responses", "schemas")
        return document | {"components": components | {each: dict(sorted(components[each].items())) for each in sorts}}

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
        access = method.options.Extensions[ACCESS]
        is_open = access.scope == access_pb2.SCOPE_OPEN
        is_limited = not (is_open or access.unlimited)
        failures = self.failures.of(
            path,
            comment.lists.get("Errors", {}),
            has_input=bool(rule.body or self.messages[method.input_type].field),
            has_body=bool(rule.body),
            is_open=is_open,
            is_limited=is_limited,
        )
        ((status, meaning),) = comment.lists.get("Success", {"200": "Success."}).items()
        success = self.success(path, method, comment, meaning, RATE_LIMIT if is_limited else {})
        operation["responses"] = {status: success} | failures
        if is_open:
            operation["security"] = [{}]
        else:
            operation["x-required-scope"] = access_pb2.Scope.Name(access.scope).removeprefix("SCOPE_").lower()
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
            # The file comes first; then the fields that go with it, all required.
            ((media_type, parts),) = uploads.items()
            part, *fields = parts.split(", ")
            file: Json = {"type": "string", "contentMediaType": "application/octet-stream", "description": "The file."}
            name = part.removesuffix("[]")
            value = file if name == part else {"type": "array", "items": file, "maxItems": 100}
            properties: Json = {name: value} | {field: {"type": "string"} for field in fields}
            form = {"type": "object", "required": [name, *fields], "properties": properties}
            return {"required": True, "content": {media_type: {"schema": form}}}
        if named := comment.lists.get("Request message"):
            # The server reads the JSON itself, to refuse what the message does not have.
            (name,) = named
            reference = self.reference(f".{PACKAGE}.{name}")
            needed = any(required(member) for member in self.messages[f".{PACKAGE}.{name}"].field)
            return {"required": needed, "content": {"application/json": {"schema": reference}}}
        if body != "*":
            member = self.member(method.input_type, body)
            if member.type_name == HTTP_BODY:
                raise ValueError(f"{method.name}: a body of any type needs a `Request content type:` list")
            schema = self.schema(method.input_type, member)
            return {"required": required(member), "content": {"application/json": {"schema": schema}}}
        reference = self.reference(method.input_type, skip=in_path)
        members = self.messages[method.input_type].field
        needed = any(required(member) for member in members if member.name not in in_path)
        return {"required": needed, "content": {"application/json": {"schema": reference}}}

    def member(self, type_name: str, name: str) -> FieldDescriptorProto:
        """The field of a message by its name."""
        return next(member for member in self.messages[type_name].field if member.name == name)

    def success(self, path: str, method: MethodDescriptorProto, comment: Comment, meaning: str, headers: Json) -> Json:
        """Describes a call's answer."""
        content = {}
        for media_type, name in comment.lists.get("Content types", {"application/json": ""}).items():
            if name in ("string", "object"):
                schema: Json = {"type": name}
            elif name.endswith("[]"):
                schema = {"type": "array", "items": self.reference(f".{PACKAGE}.{name[:-2]}")}
            else:
                schema = self.reference(f".{PACKAGE}.{name}" if name else method.output_type)
            if media_type in ("text/event-stream", "application/x-ndjson"):
                # What fails after the first event can only be told in one more.
                failure = {"$ref": f"#/components/schemas/{'ApiError' if path.startswith('/api/') else 'StreamError'}"}
                event = {"anyOf": [schema, failure]}
                schema = {"type": "string", "contentMediaType": "application/json", "contentSchema": event}
            content[media_type] = {"schema": schema}
        sent = comment.lists.get("Response headers", {})
        described = {name: {"description": text, "schema": {"type": "string"}} for name, text in sent.items()}
        return {"description": meaning, "headers": REQUEST_ID | headers | described, "content": content}

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
            answers = type_name in self.answers
            if needed := [member.name for member in members if required(member) or (answers and printed(member))]:
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
    """Returns a rule's HTTP method and path; OpenAPI has no word for a variable that may hold slashes."""
    verb = rule.WhichOneof("pattern") or ""
    return verb, str(getattr(rule, verb)).replace("=**}", "}")


def headers(comment: Comment) -> list[Json]:
    """Describes the request headers a comment lists."""
    listed = comment.lists.get("Headers", {}).items()
    return [{"name": k, "in": "header", "description": v, "schema": {"type": "string"}} for k, v in listed]


def annotated(method: MethodDescriptorProto) -> bool:
    """Tells whether an RPC has a REST face."""
    return bool(method.options.HasExtension(HTTP))


def printed(member: FieldDescriptorProto) -> bool:
    """Tells whether an answer holds a field whatever its value: the gateway leaves out only what can be absent."""
    if member.label == FieldDescriptorProto.LABEL_REPEATED:
        return True
    return member.type != FieldDescriptorProto.TYPE_MESSAGE and not member.HasField("oneof_index")


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
