"""Project templates as YAML files: the ones on board, and the operator's own beside or over them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamastead_server.adapters import yaml_files
from llamastead_server.domain.errors import Conflict, InvalidRequest

_ON_BOARD = Path(__file__).parent.parent / "templates"


class ProjectTemplates:
    """Implements `domain.templates.TemplateSource`; `folder` holds the operator's own `<name>.yaml` files."""

    def __init__(self, folder: Path) -> None:
        self._folders = (folder, _ON_BOARD)

    async def available(self) -> Sequence[str]:
        """Names of all templates, sorted."""
        return await asyncio.to_thread(
            lambda: sorted({path.stem for folder in self._folders for path in folder.glob("*.yaml")})
        )

    async def read(self, name: str) -> Mapping[str, Any]:
        """The content of an available template.

        Raises:
            Conflict: The file is not valid YAML.
        """
        return await asyncio.to_thread(self._read, name)

    def _read(self, name: str) -> Mapping[str, Any]:
        path = next(path for folder in self._folders if (path := folder / f"{name}.yaml").exists())
        try:
            return yaml_files.parse(path.read_bytes())
        except InvalidRequest as error:
            raise Conflict(f"Template {name!r} is wrong. {error.message}") from None
