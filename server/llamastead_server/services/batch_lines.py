"""Answers the lines of batches as the endpoints would."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from llamastead_server.domain.chat.completion import CompletionRequest, Completions
from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.turns import ChatTurns
from llamastead_server.domain.errors import InvalidRequest, Overloaded, Unavailable
from llamastead_server.domain.models.embeddings import EmbeddingRequest, Embeddings
from llamastead_server.domain.tasks.batch_run import LineAnswer
from llamastead_server.services import errors
from llamastead_server.services.chat_json import CompletionHead
from llamastead_server.services.completion_json import TextCompletionHead
from llamastead_server.services.openai import embedding_json

_SOON = 1.0


class BatchLines:
    """`domain.tasks.batch_run.LineAnswers` over the same turns as OpenAI's endpoints.

    Args:
        turns: Chats.
        completions: Raw text.
        embeddings: Vectors.
    """

    def __init__(self, turns: ChatTurns, completions: Completions, embeddings: Embeddings) -> None:
        self._completions = completions
        self._embeddings = embeddings
        self._turns = turns
        self._by_endpoint = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
            "/v1/embeddings": self._embed,
        }

    async def answer(self, endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        """Answers one request; its failures are answers too."""
        try:
            if body.get("stream"):
                raise InvalidRequest("A batch does not stream: leave stream out.", details={"field": "stream"})
            return LineAnswer(200, await self._by_endpoint[endpoint](body))
        except Exception as raised:
            error = errors.expected(raised)
            again = (error.retry_after or _SOON) if isinstance(error, Overloaded | Unavailable) else None
            body = {"error": errors.error_object(error, endpoint)}
            return LineAnswer(errors.rendering(error).http, body, again)

    async def _chat(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        request = ChatRequest.parse(body)
        async with self._turns.start(None, request) as turn:
            deltas, end = await turn.whole()
            head = CompletionHead.of(turn.started.model)
        return head.completion(deltas, end, logprobs=request.logprobs, sources=None)

    async def _complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        request = CompletionRequest.parse(body)
        async with aclosing(self._completions.run(request)) as events:
            answer = [event async for event in events]
        head = TextCompletionHead.of(request.model or self._completions.default_model)
        return head.whole(answer, logprobs=request.logprobs is not None)

    async def _embed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        request = EmbeddingRequest.parse(body)
        return embedding_json(self._embeddings.model, request, await self._embeddings.embed(request))
