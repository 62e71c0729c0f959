"""Which embedding model a database uses: the one it names, or the server's own, and never another one silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamastead_server.domain.config.rag import Database
from llamastead_server.domain.errors import Conflict
from llamastead_server.domain.ports import Embedder


@dataclass(frozen=True, slots=True)
class EmbeddingChoice:
    """The embedder of a database.

    Attributes:
        embedder: It embeds with the model that was chosen.
        note: One sentence for people when that is not the model the database names.
    """

    embedder: Embedder
    note: str | None = None


async def choose_embedder(embedder: Embedder, database: Database) -> EmbeddingChoice:
    """The embedder with the model that the database's embedding strategy names.

    A model that is not installed is replaced by the server's own, with a note, unless the strategy asks for
    vectors of another length than that one makes.

    Raises:
        Conflict: The model is not installed, and the server's own does not fit in its place.
        Unavailable: The embedder is down.
    """
    strategy = database.embedding
    if strategy is None or strategy.model is None:
        return EmbeddingChoice(embedder)
    found = _match(strategy.model, [embedder.model, *await embedder.installed()])
    if found is not None:
        return EmbeddingChoice(embedder if found == embedder.model else embedder.using(found))
    instead, dimension = embedder.model, await embedder.dimension()
    if strategy.dimension not in (None, dimension):
        raise Conflict(
            f"Database {database.name!r} asks for the embedding model {strategy.model!r} with {strategy.dimension} "
            f"dimensions, which is not installed, and the server's own {instead!r} makes {dimension}. Put the "
            f"sentence-transformers folder {strategy.model.rsplit('/')[-1]!r} into the models folder, or change the "
            "database's embedding strategy.",
            details={"database": database.name, "embedding_model": strategy.model},
        )
    return EmbeddingChoice(
        embedder,
        f"Database {database.name!r} is embedded with {instead!r}: {strategy.model!r}, which its configuration names, "
        "is not installed here.",
    )


def _match(wanted: str, installed: Sequence[str]) -> str | None:
    """The installed model that a name means: in full, or without its publisher and Ollama's tag."""
    bare = wanted.rsplit("/")[-1].removesuffix(":latest")
    for name in (wanted, bare):
        if name in installed:
            return name
    return next((name for name in installed if name.rsplit("/")[-1].lower() == bare.lower()), None)
