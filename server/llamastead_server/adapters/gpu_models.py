"""How each model is loaded onto GPUs: the server's settings and the model's own `llamastead.yaml`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from llamastead_server.adapters import yaml_files
from llamastead_server.adapters.gpu import GpuHost
from llamastead_server.adapters.model_catalog import CatalogEntry, ModelCatalog
from llamastead_server.domain.errors import Conflict, InvalidRequest, LlamasteadError, Unavailable
from llamastead_server.domain.models.gpu_settings import PAGE, GpuSettings
from llamastead_server.domain.names import path_inside
from llamastead_server.domain.validation import reasons, summary

FILE_NAME = "llamastead.yaml"
"""A file in a model's folder with any of the fields of `GpuSettings`."""


@dataclass(frozen=True, slots=True)
class GpuLaunch:
    """What starts a worker for a model.

    Attributes:
        settings: How it is loaded.
        arguments: Of the engine worker.
        weight_bytes: Size of what is loaded.
    """

    settings: GpuSettings
    arguments: Sequence[str]
    weight_bytes: int


class GpuModels:
    """Prepares workers of the GPU engine.

    Args:
        catalog: Where draft models are found.
        host: This machine's GPUs.
        defaults: The server's settings.
        extensions_dir: Folder of the engine's compiled CUDA extensions; made when first needed.
    """

    def __init__(self, catalog: ModelCatalog, host: GpuHost, defaults: GpuSettings, extensions_dir: Path) -> None:
        self._catalog = catalog
        self._host = host
        self._defaults = defaults
        self._extensions_dir = extensions_dir

    async def free_bytes(self) -> int | None:
        """Free GPU memory; `None` when it is not known."""
        return await self._host.free_bytes()

    async def launch(self, entry: CatalogEntry, context_length: int | None = None) -> GpuLaunch:
        """Says how to start a worker for a model, with another window than its settings have if one is given.

        Raises:
            Unavailable: This machine cannot run it; the message names what is missing.
            Conflict: Its `llamastead.yaml` is wrong; the message says where.
        """
        if missing := self._host.missing():
            card = entry.card
            raise Unavailable(
                f"The model {card.name!r} is in {card.format.upper()} format, which needs {missing}. "
                "Without it, use a .gguf model."
            )
        return await asyncio.to_thread(self._launch, entry, context_length)

    def _launch(self, entry: CatalogEntry, context_length: int | None) -> GpuLaunch:
        name, folder = entry.card.name, entry.location
        settings = self._settings(name, folder)
        if context_length is not None:
            settings = settings.model_copy(update={"context_length": max(PAGE, context_length)})
        size = entry.card.size_bytes
        arguments = [
            "--engine", "exllamav2", "--model", str(folder), "--settings", settings.model_dump_json(),
            "--extensions", str(self._extensions_dir),
        ]  # fmt: skip
        try:
            for lora in settings.loras:
                if not (path_inside(folder, lora.path) / "adapter_config.json").is_file():
                    raise InvalidRequest(f"{lora.path!r} holds no adapter_config.json")
            if settings.draft_model is not None:
                draft = self._catalog.find(settings.draft_model)
                if not draft.location.is_dir():
                    raise InvalidRequest(f"the draft model {draft.card.name!r} is not a folder of safetensors")
                arguments += ["--draft", str(draft.location)]
                size += draft.card.size_bytes
        except LlamasteadError as error:
            raise Conflict(f"The file {FILE_NAME} of model {name!r} is wrong: {error.message}") from None
        return GpuLaunch(settings, arguments, size)

    def _settings(self, name: str, folder: Path) -> GpuSettings:
        try:
            own = yaml_files.parse((folder / FILE_NAME).read_bytes())
        except FileNotFoundError:
            return self._defaults
        except (InvalidRequest, OSError) as error:
            raise Conflict(f"The file {FILE_NAME} of model {name!r} is wrong: {error}") from None
        try:
            return GpuSettings.model_validate({**self._defaults.model_dump(), **own})
        except ValidationError as error:
            found = reasons(error, root="file")
            raise Conflict(
                f"The file {FILE_NAME} of model {name!r} is wrong: {summary(found)}.", details=found
            ) from None
