"""Vectors for clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain.errors import InvalidRequest, ModelNotFound, ValidationFailed
from llamastead_server.domain.ports import Embedded, Embedder

MOST_TEXTS = 2048
_MOST_CHARACTERS = 4_000_000
_ENCODINGS = ("float", "base64")


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to embed.

    Attributes:
        texts: The texts.
        model: The embedding model; None is the server's.
        base64: Whether vectors are wanted as base64.
        dimensions: Length the vectors must have.
    """

    texts: Sequence[str]
    model: str | None = None
    base64: bool = False
    dimensions: int | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> EmbeddingRequest:
        """Reads a request from plain data.

        Raises:
            InvalidRequest: The input is no text, or the encoding is unknown.
            ValidationFailed: There is no text, or too much.
        """
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if texts is None or texts == [] or texts == [""]:
            raise ValidationFailed("Invalid request: input: give text to embed.", details={"input": "empty"})
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest(
                "input must be a string or an array of strings: this server takes no tokens. With LangChain, set "
                "check_embedding_ctx_length=False.",
                details={"field": "input"},
            )
        if len(texts) > MOST_TEXTS or sum(map(len, texts)) > _MOST_CHARACTERS:
            reason = f"at most {MOST_TEXTS} texts of together {_MOST_CHARACTERS} characters are taken"
            raise ValidationFailed(f"Invalid request: input: {reason}.", details={"input": reason})
        for number, text in enumerate(texts):
            if not text.strip():
                raise ValidationFailed(
                    f"Invalid request: input.{number} is blank.", details={f"input.{number}": "blank"}
                )
        encoding = body.get("encoding_format") or "float"
        if encoding not in _ENCODINGS:
            raise InvalidRequest(
                f"encoding_format must be one of {', '.join(_ENCODINGS)}.", details={"field": "encoding_format"}
            )
        return cls(texts, body.get("model") or None, encoding == "base64", body.get("dimensions"))


class Embeddings:
    """Embeds texts with the server's embedding model.

    Args:
        embedder: The model.
        aliases: Other names for models.
    """

    def __init__(self, embedder: Embedder, aliases: Mapping[str, str]) -> None:
        self._embedder = embedder
        self._aliases = dict(aliases)

    @property
    def model(self) -> str:
        """Name of the embedding model."""
        return self._embedder.model

    def is_model(self, name: str) -> bool:
        """Whether a name stands for the embedding model."""
        return self._aliases.get(name, name) == self.model

    async def embed(self, request: EmbeddingRequest) -> Embedded:
        """Gives the vectors in the order of the texts.

        Raises:
            ModelNotFound: The request names another model.
            InvalidRequest: A text is longer than the model's window, or the dimensions are not the model's.
            Overloaded: Too many texts wait.
            Unavailable: The embedder is down.
        """
        if request.model is not None and not self.is_model(request.model):
            raise ModelNotFound(
                f"Embedding model {request.model!r} is not installed here. This server embeds with {self.model!r}: use "
                "that, leave model out, or give it this name in LLAMASTEAD_MODEL_ALIASES.",
                details={"model": request.model},
            )
        if request.dimensions is not None and request.dimensions != (own := await self._embedder.dimension()):
            raise InvalidRequest(
                f"{self.model!r} makes vectors of {own} dimensions and can't shorten them: leave dimensions out.",
                details={"field": "dimensions"},
            )
        return await self._embedder.embed_counted(request.texts)
