"""Templates that new projects are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llamastead_server.domain import names
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import Conflict, NotFound, ValidationFailed
from llamastead_server.domain.names import ProjectRef

DEFAULT = "default"
_ALIASES: Mapping[str, str] = {"advanced": "rag"}


class TemplateSource(Protocol):
    """Where templates come from: the ones on board and the operator's own."""

    async def available(self) -> Sequence[str]:
        """Their names."""
        ...

    async def read(self, name: str) -> Mapping[str, Any]:
        """The content of one that is available."""
        ...


class Templates:
    """Makes first configurations. `${name}`, `${namespace}` and `${model}` are filled in wherever they stand."""

    def __init__(self, source: TemplateSource) -> None:
        self._source = source

    async def render(self, template: str | None, ref: ProjectRef, *, model: str) -> ProjectConfig:
        """The configuration of a new project; LlamaFarm's `advanced` is another name of `rag`.

        Raises:
            NotFound: There is no such template; the message lists them.
            Conflict: The operator's template makes no valid configuration.
        """
        wanted = names.segment("template", template or DEFAULT)
        available = await self._source.available()
        if wanted not in available:
            wanted = _ALIASES.get(wanted, wanted)
        if wanted not in available:
            raise NotFound(
                f"Template {wanted!r} not found. Available: {', '.join(available)}.", details={"template": wanted}
            )
        values = {"${name}": ref.name, "${namespace}": ref.namespace, "${model}": model}
        filled = _filled(await self._source.read(wanted), values)
        try:
            return ProjectConfig.parse({**filled, "name": ref.name, "namespace": ref.namespace})
        except ValidationFailed as error:
            raise Conflict(f"Template {wanted!r} is wrong. {error.message}", details=error.details) from None


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(entry, values) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry, values) for entry in value]
    if isinstance(value, str):
        for place, text in values.items():
            value = value.replace(place, text)
    return value
