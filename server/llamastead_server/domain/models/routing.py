"""Which engine answers for an entry of `runtime.models`: a model installed here, or a host that the operator allows.

A project's `base_url` alone opens no connection: whoever may edit a project could otherwise make the server call any
address. The operator lists the hosts; an entry of any other host is answered by an installed model of its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from llamastead_server.domain.config.runtime import RuntimeModel
from llamastead_server.domain.errors import Conflict, ModelNotFound
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Engine, ModelRegistry

DEFAULT_URLS: Mapping[str, str] = {"openai": "https://api.openai.com/v1", "ollama": "http://localhost:11434/v1"}
"""Where a provider is when an entry does not say."""

SETTING = "LLAMASTEAD_REMOTE_HOSTS"
_LARGEST_EXTRA = 16 << 10
_OF_REQUESTS = {
    "model", "messages", "n", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "seed", "max_tokens", "max_completion_tokens", "stop", "logit_bias",
    "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format",
}  # fmt: skip
_PORTS = {"http": 80, "https": 443}
_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that another server holds.

    Attributes:
        model: Its name there.
        base_url: Address of that server's OpenAI-compatible API.
        host: Host and port of it, for messages.
        api_key: Bearer token; empty for none.
        extra: Fields that its requests carry beside the server's own.
    """

    model: str
    base_url: str
    host: str
    api_key: str = field(default="", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)


class RemoteEngines(Protocol):
    """Engines of other servers."""

    def lease(self, model: RemoteModel) -> AbstractAsyncContextManager[Engine]:
        """An engine for one turn."""
        ...


class NoRemoteEngines:
    """A server that calls no other."""

    def lease(self, model: RemoteModel) -> AbstractAsyncContextManager[Engine]:
        """Never called: no host is allowed."""
        raise AssertionError(f"{model.host} is not allowed")


class ModelRouter:
    """Finds the engine behind an entry.

    Args:
        models: The installed models.
        remote: Engines of other servers.
        allowed_hosts: Their hosts, as `host` (at the scheme's own port) or `host:port`.
        environment: Variables that `api_key: ${env:NAME}` may name.
    """

    def __init__(
        self,
        models: ModelRegistry,
        remote: RemoteEngines | None = None,
        allowed_hosts: Collection[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._models = models
        self._remote = remote or NoRemoteEngines()
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._environment = environment or {}

    def find(self, entry: RuntimeModel) -> ModelCard | RemoteModel:
        """What answers for an entry.

        Raises:
            ModelNotFound: Neither a model installed here nor an allowed host; the message says how to get one.
            Conflict: The entry's `base_url`, `api_key` or `extra_body` is wrong.
        """
        url = entry.base_url or DEFAULT_URLS.get(entry.provider)
        host = None if url is None else _host(entry, url)
        if url is not None and host is not None and host in self._allowed_with_ports(url):
            return RemoteModel(entry.model, url.rstrip("/"), host, self._api_key(entry), _extra(entry))
        try:
            return self._models.resolve(entry.model)
        except ModelNotFound as error:
            if entry.base_url is None:
                raise
            raise ModelNotFound(
                f"{error.message} This project's entry {entry.name!r} names the server {host}, which is not called "
                f"unless the operator lists it in {SETTING}.",
                details=error.details,
            ) from None

    def lease(self, entry: RuntimeModel, project: ProjectRef | None = None) -> AbstractAsyncContextManager[Engine]:
        """Holds the engine of a project's entry while the block runs; raises what `find` does."""
        found = self.find(entry)
        if isinstance(found, RemoteModel):
            return self._remote.lease(found)
        keeper = None if project is None else Keeper(project, entry.name, entry.keep_loaded)
        return self._models.lease(entry.model, keeper=keeper)

    def _allowed_with_ports(self, url: str) -> Collection[str]:
        port = _PORTS[urlsplit(url).scheme]
        return [host if _has_port(host) else f"{host}:{port}" for host in self._allowed]

    def _api_key(self, entry: RuntimeModel) -> str:
        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            # The server's own settings hold its tokens: they are for nobody else.
            if name.startswith(("LLAMASTEAD_", "LF_")) or name not in self._environment:
                raise Conflict(
                    f"The project's runtime.models[{entry.name}].api_key names the environment variable {name}, which "
                    "the server does not have or does not give away."
                )
            return self._environment[name]

        key = _REFERENCE.sub(value, entry.api_key or "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise Conflict(f"The project's runtime.models[{entry.name}].api_key holds characters that no key has.")
        return key


def _extra(entry: RuntimeModel) -> Mapping[str, Any]:
    """Further fields for an entry's server: any but those that the request itself decides."""
    extra = {} if entry.extra_body is None else entry.extra_body.model_dump(mode="json", exclude_unset=True)
    place = f"The project's runtime.models[{entry.name}].extra_body"
    if own := sorted(_OF_REQUESTS & extra.keys()):
        raise Conflict(
            f"{place} holds {', '.join(own)}, which requests say themselves. Leave that out, or give defaults in "
            "model_api_parameters."
        )
    if len(json.dumps(extra)) > _LARGEST_EXTRA:
        raise Conflict(f"{place} is larger than {_LARGEST_EXTRA} bytes.")
    return extra


def _host(entry: RuntimeModel, url: str) -> str:
    """Host and port of an entry's server."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise Conflict(
            f"The project's runtime.models[{entry.name}].base_url must be http://host[:port]/path or https://…, "
            "without a user, query or fragment."
        )
    port = parts.port or _PORTS[parts.scheme]
    host = str(parts.hostname)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
