"""The OpenAPI document that was generated from the contract, as this server serves it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

OPENAPI = Path(__file__).parent.parent / "openapi.yaml"
"""The document: a link into the source tree, a file in an installed package."""


@dataclass(frozen=True, slots=True)
class _Texts:
    json: bytes
    yaml: bytes


class OpenApiDocument:
    """The document in both its forms, read when it is first asked for.

    Args:
        path: The generated document, in YAML.
    """

    def __init__(self, path: Path = OPENAPI) -> None:
        self._path = path
        self._texts: asyncio.Task[_Texts] | None = None

    async def json(self) -> bytes:
        """The document as JSON."""
        return (await self._read()).json

    async def yaml(self) -> bytes:
        """The document as YAML."""
        return (await self._read()).yaml

    async def _read(self) -> _Texts:
        if self._texts is None:
            # Read once for all who ask at once; one who goes away must not take it from the others.
            self._texts = asyncio.create_task(asyncio.to_thread(self._load))
        return await asyncio.shield(self._texts)

    def _load(self) -> _Texts:
        document = yaml.load(self._path.read_bytes(), Loader=yaml.CSafeLoader)
        # The generated document names the port of a fresh installation; this one is wherever it was fetched from.
        document["servers"] = [{"url": "/"}]
        return _Texts(
            json.dumps(document, ensure_ascii=False).encode(),
            yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=120).encode(),
        )
