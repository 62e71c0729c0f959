"""What the domain needs from the world, as protocols; `adapters` implements them, `app` joins them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.models.generation import (
    GenerationEvent,
    GenerationRequest,
    Message,
    ModelCard,
    TokenCount,
)
from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.names import ProjectRef

Clock = Callable[[], float]
"""Seconds since the epoch; tests pass a fake one."""


class Engine(Protocol):
    """One loaded model."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def context_length(self) -> int: ...

    @property
    def native_tool_calls(self) -> bool:
        """Whether `generate` gives calls as `ToolCalled`, instead of the text the model writes for them."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Runs one completion: `Started`, then `Delta`s and `ToolCalled`s, then `Finished`.

        Closing the iterator or cancelling its task frees the engine's slot at once.

        Raises:
            ContextLengthExceeded: The prompt leaves no room; raised before `Started`.
            Overloaded: The engine's queue is full; raised before any work.
            EngineFailed: The worker died or hung.
        """
        ...

    async def count_tokens(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> TokenCount: ...


class ModelRegistry(Protocol):
    """The models installed here and the ones loaded now."""

    @property
    def default_model(self) -> str: ...

    @property
    def active_model(self) -> str | None: ...

    def list_models(self) -> Sequence[ModelCard]: ...

    def resolve(self, name: str | None) -> ModelCard:
        """Finds a model by name, path or alias; `None` is the default.

        Raises:
            ModelNotFound: The message names the installed models and how to pull or alias one.
        """
        ...

    def lease(self, name: str | None, *, keeper: Keeper | None = None) -> AbstractAsyncContextManager[Engine]:
        """Holds a model loaded while the block runs, loading it first if needed; `keeper` may keep it beyond."""
        ...

    async def load(self, name: str, *, context_length: int | None = None) -> ModelCard:
        """Loads a model unless it is loaded, with another window if one is given.

        Raises:
            Conflict: It is in use with another window.
        """
        ...

    async def unload(self, name: str | None) -> Sequence[ModelCard]:
        """Unloads one model, or all, when the requests it answers have ended or had their time."""
        ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of length 1 in the order of their texts, and the tokens of all texts."""

    vectors: Sequence[Sequence[float]]
    tokens: int


class Embedder(Protocol):
    """Turns text into unit vectors."""

    @property
    def model(self) -> str: ...

    async def installed(self) -> Sequence[str]:
        """Names of the embedding models that are on this machine."""
        ...

    def using(self, model: str) -> Embedder:
        """The same embedder with another of its installed models."""
        ...

    async def dimension(self) -> int: ...

    async def embed_query(self, text: str) -> Sequence[float]: ...

    async def embed_passages(self, texts: Sequence[str]) -> Sequence[Sequence[float]]: ...

    async def embed_counted(self, texts: Sequence[str]) -> Embedded:
        """Embeds texts for a client; one longer than the model's window is an `InvalidRequest`, not cut off."""
        ...

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Sequence[float]:
        """Scores documents in [0, 1] by a cross-encoder."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: what is embedded, found and quoted.

    `id` is derived from dataset, file and position, so that processing a file again overwrites its chunks.
    """

    id: str
    dataset: str
    file_hash: str
    filename: str
    ordinal: int
    text: str
    page: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """A chunk a search found, with the search's own score (cosine, or BM25)."""

    chunk_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Collection:
    """A vector collection: one per project database."""

    project: ProjectRef
    database: str
    dimension: int
    metric: str = "cosine"


class VectorStore(Protocol):
    """Vectors and the keyword index over the same chunks. Writes to one collection are serialised."""

    async def create(self, collection: Collection) -> None:
        """Makes the collection unless it exists."""
        ...

    async def drop(self, project: ProjectRef, database: str | None = None) -> None:
        """Removes one collection, or all of a project's."""
        ...

    async def upsert(
        self, collection: Collection, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]
    ) -> None: ...

    async def delete_file(self, project: ProjectRef, database: str, dataset: str, file_hash: str | None) -> None:
        """Removes a file's chunks, or with `None` the whole dataset's."""
        ...

    async def search_vector(
        self,
        collection: Collection,
        vector: Sequence[float],
        limit: int,
        filters: Mapping[str, Any],
        *,
        without: Iterable[str] = (),
    ) -> Sequence[Match]:
        """The chunks nearest to the vector, none of the datasets `without`."""
        ...

    async def search_keyword(
        self,
        collection: Collection,
        query: str,
        limit: int,
        filters: Mapping[str, Any],
        *,
        without: Iterable[str] = (),
    ) -> Sequence[Match]:
        """The chunks that share words with the query, none of the datasets `without`."""
        ...

    async def vector_scores(
        self, collection: Collection, vector: Sequence[float], chunk_ids: Sequence[str]
    ) -> Mapping[str, float]:
        """Cosine of the query vector with each given chunk's vector."""
        ...

    async def count(self, project: ProjectRef, database: str) -> int:
        """Chunks in the collection; 0 when there is none."""
        ...

    async def size_bytes(self, project: ProjectRef, database: str) -> int:
        """Estimated bytes the collection takes on disk."""
        ...


@dataclass(frozen=True, slots=True)
class ParsedPiece:
    """A chunk as the document reader cut it, and where it stands in the document's text."""

    text: str
    page: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document cut into chunks.

    `metadata` is what every chunk is to know, `facts` what extractors found in the file as a whole; `text` is
    empty unless it was asked for, and is what the pieces' `start` and `end` are about.
    """

    parser: str
    pieces: Sequence[ParsedPiece]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    extractors: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


class DocumentReader(Protocol):
    """Parses and chunks a hostile file in a child process with time and memory limits."""

    async def read(
        self, path: Path, filename: str, settings: ReadSettings, *, with_text: bool = False
    ) -> ParsedDocument:
        """Raises `domain.datasets.files.DocumentError` with a reason a user understands when the file can't be read."""
        ...


@dataclass(frozen=True, slots=True)
class Project:
    """A project as its llamafarm.yaml describes it.

    `validation_error` is set, and `config` is None, when the file was broken by hand; `raw` always
    holds what the file says.
    """

    ref: ProjectRef
    config: ProjectConfig | None
    raw: Mapping[str, Any]
    validation_error: str | None = None
    last_modified: datetime | None = None


class ProjectStore(Protocol):
    """Projects on disk: `{data_dir}/projects/{namespace}/{project}/llamafarm.yaml`."""

    async def list_projects(self, namespace: str) -> Sequence[Project]: ...

    async def get(self, ref: ProjectRef) -> Project:
        """Raises `NotFound` when there is no such project."""
        ...

    async def config(self, ref: ProjectRef) -> ProjectConfig:
        """The valid configuration; raises `NotFound`, or `Conflict` naming what is wrong with the file."""
        ...

    async def create(self, ref: ProjectRef, config: ProjectConfig) -> Project: ...

    async def replace(self, ref: ProjectRef, config: ProjectConfig) -> Project: ...

    async def update(self, ref: ProjectRef, change: Callable[[ProjectConfig], ProjectConfig]) -> Project:
        """Applies a change under the project's lock, so that concurrent changes are all kept."""
        ...

    async def delete(self, ref: ProjectRef) -> None:
        """Removes the project's folder."""
        ...


class ProjectResource(Protocol):
    """Something that belongs to projects and must go when one is deleted."""

    async def delete_project(self, ref: ProjectRef) -> None: ...


TaskFunction = Callable[[ProjectRef, Mapping[str, Any], "TaskProgress"], Awaitable[Mapping[str, Any]]]
"""What a task runs: project, arguments, progress → result. It may run again after a crash: idempotent."""


class TaskProgress(Protocol):
    """Where a running task says how far it is."""

    async def report(
        self, current: int, total: int, message: str = "", files: Sequence[Mapping[str, Any]] = ()
    ) -> None: ...
