"""What can be said of a database: how it is configured, what that comes to, and what it holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llamastead_server.domain.config.rag import DATABASE_TYPE, Database
from llamastead_server.domain.names import ProjectRef


@dataclass(frozen=True, slots=True)
class Document:
    """A file with chunks in a database, however many datasets hold it.

    Attributes:
        hash: SHA-256 of the content, in hex.
        filename: Its name.
        chunk_count: Its chunks in the database.
        size: Bytes.
        parser: What read it.
        ingested_at: When its vectors were last made, in seconds since the epoch; `None` while they are made anew.
        datasets: The datasets of the database that hold it.
        mime_type: Media type.
        metadata: What is known about it.
    """

    hash: str
    filename: str
    chunk_count: int
    size: int
    parser: str | None
    ingested_at: float | None
    datasets: Sequence[str]
    mime_type: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """How much text a database holds.

    Attributes:
        documents: Different files.
        chunks: Chunks.
        newest: When vectors were last made for one of the files, in seconds since the epoch.
    """

    documents: int
    chunks: int
    newest: float | None


class DatabaseContents(Protocol):
    """What databases hold."""

    async def contents(self, ref: ProjectRef, database: str, *, without: Collection[str] = ()) -> Contents:
        """How much a database holds, the datasets `without` left out."""
        ...

    async def documents(
        self, ref: ProjectRef, database: str, limit: int, offset: int, *, without: Collection[str] = ()
    ) -> Sequence[Document]:
        """A part of a database's documents, by name, the datasets `without` left out."""
        ...

    async def remove_database(self, ref: ProjectRef, database: str) -> int:
        """Removes a database's chunks; its files count as only uploaded. Returns how many chunks there were."""
        ...


@dataclass(frozen=True, slots=True)
class DatabaseView:
    """A database as it is configured, and what that comes to.

    Attributes:
        config: Its configuration, with the components it refers to.
        is_default: Whether requests mean it that name none.
        datasets: The datasets that go into it.
        embedding_model: The model in use; `None` if that can't be told.
        notes: What is served in another way than the configuration says, one sentence each.
    """

    config: Database
    is_default: bool
    datasets: Sequence[str]
    embedding_model: str | None
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Stats:
    """How much a database holds.

    Attributes:
        config: Its configuration.
        contents: Its text.
        vectors: Vectors in the vector store.
        size: Bytes on disk, estimated.
        model: Embedding model.
        dimension: Length of vectors.
    """

    config: Database
    contents: Contents
    vectors: int
    size: int
    model: str
    dimension: int


def served_otherwise(database: Database) -> Sequence[str]:
    """What of a database's configuration is served in another way than it says, one sentence each."""
    notes = []
    if database.type != DATABASE_TYPE:
        notes.append(f"The type {database.type!r} is kept, and the server's Milvus holds the collection.")
    if database.ineffective:
        notes.append(
            f"config.{', config.'.join(database.ineffective)} has no effect: the server keeps the collection itself."
        )
    embedding = database.embedding
    if embedding is not None and embedding.ineffective:
        notes.append(
            f"embedding strategy {embedding.name!r}: config.{', config.'.join(embedding.ineffective)} has no effect: "
            "texts are embedded inside this server."
        )
    for strategy in database.retrieval_strategies:
        if strategy.kind == "MultiTurnRAGStrategy" and strategy.config.get("model_name"):
            notes.append(
                f"retrieval strategy {strategy.name!r}: questions are divided by rules, not by the model "
                f"{strategy.config['model_name']!r}."
            )
    return notes
