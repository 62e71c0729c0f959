"""The saved run-time configuration: `settings.yaml` in the data folder, which people may edit by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamastead_server.adapters import yaml_files
from llamastead_server.domain.errors import Conflict, Internal, InvalidRequest

FILE_NAME = "settings.yaml"


class ConfigurationFile:
    """`domain.runtime_settings.ConfigurationStore` over one file.

    Args:
        folder: The data folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    async def read(self) -> Mapping[str, Any] | None:
        """What was saved; None if nothing was."""
        return await asyncio.to_thread(self._read)

    async def write(self, content: Mapping[str, Any]) -> None:
        """Changes the file by one rename; comments on what stays are kept."""
        try:
            await asyncio.to_thread(yaml_files.revise, self._path, content)
        except OSError as error:
            raise Internal(f"The configuration can't be saved to {self._path.name}: {error.strerror}.") from None

    def _read(self) -> Mapping[str, Any] | None:
        for left in self._path.parent.glob(f"{yaml_files.TEMPORARY}*"):
            left.unlink(missing_ok=True)
        try:
            return yaml_files.parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, InvalidRequest) as error:
            raise Conflict(f"The saved configuration {self._path} can't be read: {error}") from None
