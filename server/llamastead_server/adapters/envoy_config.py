"""Envoy's configuration, made from the template in `envoy/` and the contract's descriptors.

`python -m llamastead_server.adapters.envoy_config --help` prints one for an Envoy in a container.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

_PACKAGE = Path(__file__).parent.parent
# Links into the source tree; files in an installed package.
TEMPLATE = _PACKAGE / "envoy" / "envoy.yaml"
"""The configuration's template."""
DESCRIPTORS = _PACKAGE / "descriptors.binpb"
"""Descriptors of the public contract."""

_VERBS = ("get", "put", "post", "delete", "patch")
_VARIABLE = re.compile(r"\{([A-Za-z0-9_]+)(=\*\*)?\}")
_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?"
# Names nobody can register and point at this machine: addresses, names without a dot, and reserved ends.
_OWN_HOSTS = (
    r"(?i)(([a-z0-9_-]+\.)*(localhost|local|internal)|[a-z0-9_-]+|[0-9]+(\.[0-9]+){3}|\[[0-9a-f:.]+\])\.?(:[0-9]+)?"
)


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the gateway's configuration is made from.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        server_socket: Where the gRPC server is: its Unix socket, or `host:port`.
        folder: Private folder for the configuration and the admin socket.
        template: `envoy/envoy.yaml`; `http_status.lua` lies beside it.
        descriptors: Descriptor set of the public services.
        max_body_bytes: Largest JSON body.
        cors_origins: Web origins allowed beside loopback ones; `*` allows any.
        websocket_socket: Unix socket of the WebSocket server; None when there is none.
        max_connections: Most client connections at once.
        start_timeout: Longest time until it answers, in seconds.
    """

    host: str
    port: int
    server_socket: Path | str
    folder: Path
    template: Path = TEMPLATE
    descriptors: Path = DESCRIPTORS
    max_body_bytes: int = 4 << 20
    cors_origins: Sequence[str] = ()
    websocket_socket: Path | None = None
    max_connections: int = 4096
    start_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST path of the contract.

    Args:
        template: The path, with variables in braces.
        method: HTTP method, in upper case.
        raw: Whether the body is taken as it is, and not as JSON.
        streams: Whether the answer is a stream.
    """

    template: str
    method: str
    raw: bool
    streams: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(variable[1] for variable in _VARIABLE.finditer(self.template))

    @property
    def takes_slashes(self) -> bool:
        """Whether a variable may span segments of the path."""
        return "=**}" in self.template

    @property
    def regex(self) -> str:
        """A regular expression for the path, with or without a slash at its end."""
        return "".join(self._parts(re.escape)) + "/?"

    @property
    def lua_pattern(self) -> str:
        """A Lua pattern for the whole path."""
        return "^" + "".join(self._parts(lambda text: re.sub(r"([^A-Za-z0-9/_])", r"%\1", text))) + "$"

    def _parts(self, literal: Any) -> Iterator[str]:
        end = 0
        for variable in _VARIABLE.finditer(self.template):
            yield literal(self.template[end : variable.start()])
            yield ".+" if variable[2] else "[^/]+"
            end = variable.end()
        yield literal(self.template[end:])


@dataclass(frozen=True, slots=True)
class Contract:
    """The parts of the descriptors the gateway needs."""

    services: tuple[str, ...]
    bindings: tuple[Binding, ...]

    @classmethod
    def read(cls, path: Path) -> Contract:
        """Reads a file of descriptors."""
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
        bodies = {
            f".{file.package}.{message.name}": {field.name: field.type_name for field in message.field}
            for file in files
            for message in file.message_type
        }
        services: list[str] = []
        bindings: list[Binding] = []
        for file in files:
            for service in file.service:
                services.append(f"{file.package}.{service.name}")
                for method in service.method:
                    rule: http_pb2.HttpRule = method.options.Extensions[annotations_pb2.http]  # type: ignore[index]
                    for each in (rule, *rule.additional_bindings):
                        bindings += _binding(each, bodies[method.input_type], method.server_streaming)
        return cls(tuple(services), tuple(bindings))


def _binding(rule: http_pb2.HttpRule, fields: Mapping[str, str], streams: bool) -> Iterator[Binding]:
    verb = rule.WhichOneof("pattern")
    if verb in _VERBS:
        raw = fields.get(rule.body) == ".google.api.HttpBody"
        yield Binding(getattr(rule, verb), verb.upper(), raw, streams)


def configuration(
    options: GatewayOptions, admin_address: Mapping[str, Any], descriptors: str | Path | None = None
) -> str:
    """The template with every placeholder filled in by a JSON value, which YAML reads as it is.

    Args:
        options: What to listen on, and where the server is.
        admin_address: Envoy's `Address` of its admin interface.
        descriptors: Path of the descriptors as Envoy sees it, if it sees another one.
    """
    contract = Contract.read(options.descriptors)
    origins = _origins(options.cors_origins)
    websocket = options.websocket_socket
    values = {
        "admin_address": admin_address,
        "host": options.host,
        "port": options.port,
        "max_connections": options.max_connections,
        "max_body_bytes": options.max_body_bytes,
        "cors_origins": origins,
        "origin_rules": [{"header": {"name": "origin", "string_match": match}} for match in origins],
        "hosts": _OWN_HOSTS if _is_loopback(options.host) else ".*",
        "http_status_lua": _script(options.template.with_name("http_status.lua"), contract),
        "descriptors": str(descriptors or options.descriptors),
        "services": contract.services,
        "path_variables": sorted({name for binding in contract.bindings for name in binding.variables}),
        "raw_body_paths": "|".join(binding.regex for binding in contract.bindings if binding.raw),
        "server_discovery": "STATIC" if isinstance(options.server_socket, Path) else "STRICT_DNS",
        "server_address": _address(options.server_socket),
        "websocket_cluster": "nowhere" if websocket is None else "websocket",
        "websocket_endpoints": []
        if websocket is None
        else [{"lb_endpoints": [{"endpoint": {"address": _address(websocket)}}]}],
    }
    template = Template(options.template.read_text("utf-8"))
    return template.substitute({name: json.dumps(value) for name, value in values.items()})


def _script(path: Path, contract: Contract) -> str:
    """The script, with the table of endpoints it works from."""
    found: dict[str, list[Binding]] = {}
    for binding in contract.bindings:
        found.setdefault(binding.lua_pattern, []).append(binding)
    rows = [
        f"  {{{json.dumps(pattern)}, {{{', '.join(json.dumps(method) for method in _methods(bindings))}}}, "
        f"{json.dumps(any(each.raw for each in bindings))}, "
        f"{json.dumps(any(each.takes_slashes for each in bindings))}}},"
        for pattern, bindings in found.items()
    ]
    table = "\n".join(["local ENDPOINTS = {", *rows, "}"])
    return f"{table}\n{path.read_text('utf-8')}"


def _methods(bindings: Sequence[Binding]) -> Iterator[str]:
    for binding in bindings:
        yield binding.method
        # To learn the length of a stream, HEAD would have to wait for its end.
        if binding.method == "GET" and not binding.streams:
            yield "HEAD"


def _origins(configured: Sequence[str]) -> list[dict[str, Any]]:
    if "*" in configured:
        return [{"safe_regex": {"regex": ".*"}}]
    return [{"safe_regex": {"regex": _LOOPBACK_ORIGIN}}, *({"exact": origin.rstrip("/")} for origin in configured)]


def _address(upstream: Path | str) -> dict[str, Any]:
    if isinstance(upstream, Path):
        return {"pipe": {"path": str(upstream)}}
    host, _, port = upstream.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a configuration."""
    parser = argparse.ArgumentParser(prog="python -m llamastead_server.adapters.envoy_config", description=__doc__)
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT", help="where the gRPC server listens")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--descriptors", required=True, help="path of gen/descriptors.binpb as Envoy will see it")
    parser.add_argument("--cors-origin", action="append", default=[], help="web origin that may call; repeatable")
    parser.add_argument("--max-body-bytes", type=int, default=4 << 20, help="largest JSON body (default: 4 MiB)")
    given = parser.parse_args(arguments)
    options = GatewayOptions(
        given.host,
        given.port,
        given.upstream,
        Path(),
        max_body_bytes=given.max_body_bytes,
        cors_origins=tuple(given.cors_origin),
    )
    admin = {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}
    sys.stdout.write(configuration(options, admin, given.descriptors))


if __name__ == "__main__":
    main()
