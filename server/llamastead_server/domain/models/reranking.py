"""Documents put in order for clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.ports import Embedder
from llamastead_server.domain.validation import summary

MOST_DOCUMENTS = 1000


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Documents to order by how well they answer a query; `top_n` of them are wanted."""

    model: str
    query: str
    documents: Sequence[str]
    top_n: int

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> RerankRequest:
        """Reads a request from plain data.

        Raises:
            InvalidRequest: A document is no text.
            ValidationFailed: Something is missing or out of range.
        """
        wrong = {}
        model, query, documents = body.get("model") or "", body.get("query") or "", body.get("documents") or []
        if not model.strip():
            wrong["model"] = "name a cross-encoder in the models folder"
        if not query.strip():
            wrong["query"] = "must not be blank"
        if not 1 <= len(documents) <= MOST_DOCUMENTS:
            wrong["documents"] = f"give 1 to {MOST_DOCUMENTS} of them"
        top_n = body.get("top_n", len(documents))
        if top_n < 1:
            wrong.setdefault("top_n", "must be at least 1")
        if wrong:
            raise ValidationFailed(f"Invalid request: {summary(wrong)}.", details=wrong)
        texts = [document.get("text") if isinstance(document, dict) else document for document in documents]
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidRequest(
                    f"Document {number} is neither a string nor an object with `text`.", details={"field": "documents"}
                )
        return cls(model, query, [str(text) for text in texts], top_n)


async def rerank(embedder: Embedder, request: RerankRequest) -> Sequence[tuple[int, float]]:
    """Places of the documents with their scores in [0, 1], best first.

    Raises:
        ModelNotFound: The cross-encoder is not installed.
        Overloaded: Too much waits.
        Unavailable: The embedder is down.
    """
    scores = await embedder.rerank(request.model, request.query, request.documents)
    return sorted(enumerate(scores), key=lambda pair: -pair[1])[: request.top_n]
