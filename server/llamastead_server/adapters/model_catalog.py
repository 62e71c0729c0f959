"""Which models lie in the models folder, read from names and headers without loading anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamastead_server.domain.errors import ModelNotFound
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.models.gguf_header import BadGguf, read_header
from llamastead_server.domain.names import path_inside

DEFAULT_ALIASES = ("llama3.3", "llama3.2:3b", "llama3.2:70b")
"""Names that the documents' examples use; each leads to the default model unless a model or alias has it."""

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})")
_GENERATES = re.compile("CausalLM|ConditionalGeneration|LMHead")
_DEEPEST = 5
_ON_BOARD = "on-board"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """An installed model: its card and where it lies (a file, of a split model the first; or a folder)."""

    card: ModelCard
    location: Path


class ModelCatalog:
    """Finds models by name, path or alias.

    Scanning costs one `stat` per file; headers are read once per file and change.

    Args:
        models_dir: Folder of the installed models; it need not exist.
        on_board_dir: Folder of the models that ship with the server.
        default_model: Name of the model for requests that name none; `None` is the one on board.
        aliases: Other names for models.
        gpu: Whether the GPU engine can run here; then it takes unquantised folders too.
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        on_board_dir: Path | None = None,
        default_model: str | None = None,
        aliases: Mapping[str, str] | None = None,
        gpu: bool = False,
    ) -> None:
        self._models_dir = models_dir
        self._on_board_dir = on_board_dir
        self._default_model = default_model
        self._aliases = dict(aliases or {})
        self._gpu = gpu
        self._known: dict[Path, tuple[tuple[int, int], tuple[int | None, int | None]]] = {}

    @property
    def default_model(self) -> str:
        """Name of the default model; empty when nothing is installed."""
        return self._default(self._scan()) or ""

    def choose_default(self, name: str | None) -> None:
        """Makes another model the default one; `None` stands for the one on board."""
        self._default_model = name

    def entries(self) -> Sequence[CatalogEntry]:
        """Every installed model, the default one first, then by name; cards carry their aliases."""
        found = self._scan()
        default = self._default(found)
        aliases: dict[str, list[str]] = {}
        for alias, target in self._aliases.items():
            if (entry := _match(found, target)) is not None:
                aliases.setdefault(entry.card.name, []).append(alias)
        for alias in DEFAULT_ALIASES:
            if default and alias not in self._aliases and _match(found, alias) is None:
                aliases.setdefault(default, []).append(alias)
        named = [
            replace(entry, card=replace(entry.card, aliases=tuple(aliases.get(entry.card.name, ())))) for entry in found
        ]
        return sorted(named, key=lambda entry: (entry.card.name != default, entry.card.name.lower()))

    def find(self, name: str | None) -> CatalogEntry:
        """Finds a model by name, path inside the models folder or alias; `None` is the default one.

        Raises:
            ModelNotFound: The message names the installed models and how to get others.
            InvalidRequest: The name is a path that leads outside the models folder.
        """
        entries = self.entries()
        wanted = name or self._default(entries)
        if wanted:
            if "/" in wanted or "\\" in wanted or wanted.startswith("."):
                path_inside(self._models_dir, wanted)
            for candidate in (wanted, self._aliases.get(wanted)):
                if candidate and (entry := _match(entries, candidate)) is not None:
                    return entry
            for entry in entries:
                if wanted in entry.card.aliases:
                    return entry
        installed = ", ".join(entry.card.name for entry in entries) or "none"
        raise ModelNotFound(
            f"Model {wanted or '(default)'!r} is not installed here. Installed: {installed}. Get one with "
            "`llamastead pull <org/repo>`, put a .gguf file into the models folder, or give an installed model this "
            "name in LLAMASTEAD_MODEL_ALIASES.",
            details={"model": wanted or ""},
        )

    def _default(self, entries: Sequence[CatalogEntry]) -> str | None:
        if self._default_model:
            wanted = self._aliases.get(self._default_model, self._default_model)
            entry = _match(entries, wanted)
            return entry.card.name if entry else self._default_model
        on_board = next((entry for entry in entries if entry.card.on_board), None)
        first = on_board or next(iter(entries), None)
        return first.card.name if first else None

    def _scan(self) -> list[CatalogEntry]:
        found = list(self._walk(self._models_dir, "", on_board=False))
        if self._on_board_dir is not None:
            found.extend(self._walk(self._on_board_dir, _ON_BOARD, on_board=True))
        taken: set[str] = set()
        entries = []
        for entry in sorted(
            found, key=lambda entry: (entry.card.on_board, entry.card.path.count("/"), entry.card.path)
        ):
            name = entry.card.name
            if name in taken:
                name = entry.card.path.removesuffix(".gguf")
            taken.add(name)
            entries.append(replace(entry, card=replace(entry.card, name=name)))
        return entries

    def _walk(self, folder: Path, prefix: str, *, on_board: bool) -> Iterator[CatalogEntry]:
        if prefix.count("/") >= _DEEPEST:
            return
        try:
            with os.scandir(folder) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError:
            return
        names = {item.name for item in items}
        if prefix and "config.json" in names and any(name.endswith(".safetensors") for name in names):
            if (entry := self._folder(folder, prefix, items, on_board)) is not None:
                yield entry
            return
        sizes = {item.name: item.stat().st_size for item in items if item.name.endswith(".gguf") and item.is_file()}
        for item in items:
            if item.name.startswith("."):
                continue
            path = f"{prefix}/{item.name}" if prefix else item.name
            if item.is_dir():
                yield from self._walk(folder / item.name, path, on_board=on_board)
            elif item.name in sizes and not item.name.startswith("mmproj"):
                entry = self._file(folder / item.name, path, sizes, on_board)
                if entry is not None:
                    yield entry

    def _file(self, file: Path, path: str, sizes: Mapping[str, int], on_board: bool) -> CatalogEntry | None:
        stem, size = file.stem, sizes[file.name]
        if (part := _PART.fullmatch(stem)) is not None:
            if int(part["part"]) != 1:
                return None
            stem, count = part["stem"], int(part["parts"])
            parts = [f"{stem}-{index:05}-of-{part['parts']}.gguf" for index in range(1, count + 1)]
            if any(name not in sizes for name in parts):
                return None
            size = sum(sizes[name] for name in parts)
        context_length, parameters = self._header(file)
        return CatalogEntry(
            ModelCard(
                stem, path, "gguf", "llamacpp", size,
                context_length=context_length, parameters=parameters, on_board=on_board,
            ),
            file,
        )  # fmt: skip

    def _header(self, file: Path) -> tuple[int | None, int | None]:
        status = file.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(file)
        if known is None or known[0] != stamp:
            try:
                header = read_header(file)
                facts = (header.context_length, None if _PART.fullmatch(file.stem) else header.parameters)
            except (BadGguf, OSError):
                facts = (None, None)
            known = self._known[file] = (stamp, facts)
        return known[1]

    def _folder(
        self, folder: Path, path: str, items: Sequence[os.DirEntry[str]], on_board: bool
    ) -> CatalogEntry | None:
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            config = {}
        architectures = config.get("architectures") or []
        if architectures and not any(_GENERATES.search(str(name)) for name in architectures):
            # An embedding model or a cross-encoder, which the embedder finds by itself.
            return None
        method = str((config.get("quantization_config") or {}).get("quant_method", ""))
        quantised = method if method in ("exl2", "gptq") else ""
        window = config.get("max_position_embeddings")
        return CatalogEntry(
            ModelCard(
                folder.name,
                path,
                quantised or "safetensors",
                "exllamav2" if quantised or self._gpu else "llamacpp",
                sum(item.stat().st_size for item in items if item.is_file()),
                context_length=window if isinstance(window, int) else None,
                on_board=on_board,
            ),
            folder,
        )


def _match(entries: Sequence[CatalogEntry], name: str) -> CatalogEntry | None:
    """The entry of that name or path; a difference in case only is forgiven when nothing else fits."""
    for entry in entries:
        if name in (entry.card.name, entry.card.path):
            return entry
    folded = name.lower()
    return next((entry for entry in entries if entry.card.name.lower() == folded), None)
