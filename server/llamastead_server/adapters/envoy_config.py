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

import yaml
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

_PACKAGE = Path(__file__).parent.parent
# Links into the source tree; files in an installed package.
_TEMPLATES = _PACKAGE / "envoy"
DESCRIPTORS = _PACKAGE / "descriptors.binpb"
"""Descriptors of the public contract."""

_VERBS = ("get", "put", "post", "delete", "patch")
_VARIABLE = re.compile(r"\{([A-Za-z0-9_]+)(?:=[^}]*)?\}")
_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?"
# Names nobody can register and point at this machine: addresses, names without a dot, and reserved ends.
_OWN_HOSTS = (
    r"(?i)(([a-z0-9_-]+\.)*(localhost|local|internal)|[a-z0-9_-]+|[0-9]+(\.[0-9]+){3}|\[[0-9a-f:.]+\])\.?(:[0-9]+)?"
)


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What differs from one gateway to another.

    Args:
        host: IP address or name to listen on.
        port: Port to listen on.
        upstream: Where the gRPC server is: the path of a Unix socket, or `host:port`.
        max_body_bytes: Largest JSON body.
        cors_origins: Web origins that may call, beside loopback ones; `*` for any.
        websocket_port: Loopback port of the WebSocket server; None when there is none.
        max_connections: Most client connections at once.
    """

    host: str
    port: int
    upstream: Path | str
    max_body_bytes: int = 4 << 20
    cors_origins: tuple[str, ...] = ()
    websocket_port: int | None = None
    max_connections: int = 4096


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST path of the contract.

    Args:
        template: The path, with variables in braces.
        method: HTTP method, in upper case.
        raw: Whether the body is taken as it is, and not as JSON.
    """

    template: str
    method: str
    raw: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(_VARIABLE.findall(self.template))

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
            yield "[^/]+"
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
                    rule = method.options.Extensions[annotations_pb2.http]
                    for each in (rule, *rule.additional_bindings):
                        bindings += _binding(each, bodies[method.input_type])
        return cls(tuple(services), tuple(bindings))


def _binding(rule: http_pb2.HttpRule, fields: Mapping[str, str]) -> Iterator[Binding]:
    verb = rule.WhichOneof("pattern")
    if verb in _VERBS:
        raw = fields.get(rule.body) == ".google.api.HttpBody"
        yield Binding(getattr(rule, verb), verb.upper(), raw)


def render(options: GatewayOptions, admin_address: Mapping[str, Any], descriptors: str | Path = DESCRIPTORS) -> str:
    """Makes the configuration, as JSON.

    Args:
        options: What to listen on, and where the server is.
        admin_address: Envoy's `Address` of the admin interface.
        descriptors: Path of the descriptors as Envoy sees it.
    """
    contract = Contract.read(DESCRIPTORS)
    origins = _origins(options.cors_origins)
    has_websocket = options.websocket_port is not None
    websocket = {"socket_address": {"address": "127.0.0.1", "port_value": options.websocket_port}}
    values = {
        "admin_address": admin_address,
        "host": "127.0.0.1" if options.host == "localhost" else options.host,
        "port": options.port,
        "max_connections": options.max_connections,
        "max_body_bytes": options.max_body_bytes,
        "cors_origins": origins,
        "origin_rules": [{"header": {"name": "origin", "string_match": match}} for match in origins],
        "hosts": _OWN_HOSTS if _is_loopback(options.host) else ".*",
        "lua": _lua(contract),
        "descriptors": str(descriptors),
        "services": contract.services,
        "path_variables": sorted({name for binding in contract.bindings for name in binding.variables}),
        "raw_body_paths": "|".join(binding.regex for binding in contract.bindings if binding.raw) or "/-",
        "upstream_discovery": "STRICT_DNS" if isinstance(options.upstream, str) else "STATIC",
        "upstream_address": _address(options.upstream),
        "websocket_cluster": "websocket" if has_websocket else "none",
        "websocket_endpoints": [{"lb_endpoints": [{"endpoint": {"address": websocket}}]}] if has_websocket else [],
    }
    template = Template((_TEMPLATES / "envoy.yaml").read_text("utf-8"))
    filled = template.substitute({name: json.dumps(value) for name, value in values.items()})
    return json.dumps(yaml.safe_load(filled), indent=2)


def _lua(contract: Contract) -> str:
    """The script, with the table of endpoints it works from."""
    methods: dict[str, list[Binding]] = {}
    for binding in contract.bindings:
        methods.setdefault(binding.lua_pattern, []).append(binding)
    rows = [
        f"  {{{json.dumps(pattern)}, {{{', '.join(json.dumps(each.method) for each in bindings)}}}, "
        f"{json.dumps(any(each.raw for each in bindings))}}},"
        for pattern, bindings in methods.items()
    ]
    table = "\n".join(["local ENDPOINTS = {", *rows, "}"])
    return f"{table}\n{(_TEMPLATES / 'http_status.lua').read_text('utf-8')}"


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
        given.host, given.port, given.upstream, given.max_body_bytes, cors_origins=tuple(given.cors_origin)
    )
    admin = {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}
    sys.stdout.write(render(options, admin, given.descriptors) + "\n")


if __name__ == "__main__":
    main()
