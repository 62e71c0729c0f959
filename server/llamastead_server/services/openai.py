"""OpenAIService: OpenAI's endpoints at the root, over the installed models."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import grpc
from google.api import httpbody_pb2
from google.protobuf.json_format import ParseDict

from llamastead.v1 import chat_pb2, model_pb2
from llamastead.v1 import openai_pb2 as pb
from llamastead.v1 import openai_pb2_grpc as pb_grpc
from llamastead_server.domain.chat.completion import CompletionEvent, CompletionRequest, Completions
from llamastead_server.domain.chat.turns import SessionChoice
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.models.embeddings import EmbeddingRequest, Embeddings
from llamastead_server.domain.models.generation import Delta
from llamastead_server.domain.models.reranking import RerankRequest, rerank
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Embedded, Embedder, ModelRegistry
from llamastead_server.services import plain
from llamastead_server.services.chat import ChatServicer
from llamastead_server.services.completion_json import TextCompletionHead, total_usage
from llamastead_server.services.http_body import DONE, STREAM_HEADERS, json_body, late_errors, sse_event

_Context = grpc.aio.ServicerContext[Any, Any]
_OWNER = "llamastead"


class ModelChat(ChatServicer):
    """Chats of installed models: without a project, a session or retrieval."""

    def _project(self, request: chat_pb2.CreateChatCompletionRequest) -> ProjectRef | None:
        for field in ("namespace", "project", "session_id"):
            if getattr(request, field):
                raise InvalidRequest(
                    f"{field} needs a project: chat at /v1/projects/{{namespace}}/{{project}}/chat/completions.",
                    details={"field": field},
                )
        return None

    def _session(self, request: chat_pb2.CreateChatCompletionRequest, context: Any) -> SessionChoice:
        return SessionChoice(stateless=True)


class OpenAIServicer(pb_grpc.OpenAIServiceServicer):
    """OpenAI's endpoints over gRPC and, through the gateway, REST."""

    def __init__(
        self,
        chat: ModelChat,
        completions: Completions,
        models: ModelRegistry,
        embedder: Embedder,
        embeddings: Embeddings,
    ) -> None:
        self._chat = chat
        self._completions = completions
        self._models = models
        self._embedder = embedder
        self._embeddings = embeddings

    def CreateModelChatCompletionHttp(
        self, request: chat_pb2.CreateChatCompletionRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Answers a conversation as one JSON object, or as Server-Sent Events."""
        return self._chat.CreateChatCompletionHttp(request, context)

    async def CreateModelChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: _Context
    ) -> chat_pb2.ChatCompletion:
        """Answers a conversation in one message."""
        return await self._chat.CreateChatCompletion(request, context)

    def StreamModelChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: _Context
    ) -> AsyncIterator[chat_pb2.ChatCompletionChunk]:
        """Answers a conversation token by token."""
        return self._chat.StreamChatCompletion(request, context)

    async def CreateCompletionHttp(
        self, request: pb.CreateCompletionRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Continues text as one JSON object, or as Server-Sent Events."""
        wanted = CompletionRequest.parse(plain.given(request))
        if not wanted.stream:
            yield json_body(await self._whole(wanted))
            return

        async def events() -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
            async with aclosing(self._parts(wanted)) as parts:
                async for part in parts:
                    yield sse_event(part)
            yield DONE

        await context.send_initial_metadata(STREAM_HEADERS)
        async with aclosing(late_errors(events())) as bodies:
            async for body in bodies:
                yield body

    async def CreateCompletion(self, request: pb.CreateCompletionRequest, context: _Context) -> pb.Completion:
        """Continues text in one message."""
        if request.stream:
            raise InvalidRequest("This call answers in one message: use StreamCompletion to stream.")
        whole = await self._whole(CompletionRequest.parse(plain.given(request)))
        return ParseDict(whole, pb.Completion())

    async def StreamCompletion(
        self, request: pb.CreateCompletionRequest, context: _Context
    ) -> AsyncIterator[pb.Completion]:
        """Continues text token by token."""
        async with aclosing(self._parts(CompletionRequest.parse(plain.given(request)))) as parts:
            async for part in parts:
                yield ParseDict(part, pb.Completion())

    async def ListOpenAIModels(
        self, request: pb.ListOpenAIModelsRequest, context: _Context
    ) -> pb.ListOpenAIModelsResponse:
        """Lists the installed models."""
        names = [*(card.name for card in self._models.list_models()), self._embeddings.model]
        return pb.ListOpenAIModelsResponse(object="list", data=[_entry(name) for name in names])

    async def GetOpenAIModel(self, request: pb.GetOpenAIModelRequest, context: _Context) -> model_pb2.ModelListEntry:
        """Gives one model, under the name it was asked for."""
        if not self._embeddings.is_model(request.model):
            self._models.resolve(request.model)
        return _entry(request.model)

    async def CreateEmbeddingHttp(self, request: pb.CreateEmbeddingRequest, context: _Context) -> httpbody_pb2.HttpBody:
        """Embeds texts, as floats or as base64."""
        wanted = EmbeddingRequest.parse(plain.given(request))
        return json_body(embedding_json(self._embeddings.model, wanted, await self._embeddings.embed(wanted)))

    async def CreateEmbedding(self, request: pb.CreateEmbeddingRequest, context: _Context) -> pb.EmbeddingList:
        """Embeds texts."""
        wanted = EmbeddingRequest.parse(plain.given(request))
        if wanted.base64:
            raise InvalidRequest("Messages carry vectors as floats: leave encoding_format out.")
        embedded = await self._embeddings.embed(wanted)
        return pb.EmbeddingList(
            object="list",
            data=[
                pb.Embedding(object="embedding", index=index, embedding=vector)
                for index, vector in enumerate(embedded.vectors)
            ],
            model=self._embeddings.model,
            usage=pb.EmbeddingUsage(prompt_tokens=embedded.tokens, total_tokens=embedded.tokens),
        )

    async def CreateRerank(self, request: pb.CreateRerankRequest, context: _Context) -> pb.CreateRerankResponse:
        """Orders documents."""
        wanted = RerankRequest.parse(plain.given(request))
        return pb.CreateRerankResponse(
            id=f"rerank-{uuid4().hex}",
            model=wanted.model,
            results=[
                pb.RerankResult(
                    index=index,
                    relevance_score=score,
                    document=pb.RerankDocument(text=wanted.documents[index]) if request.return_documents else None,
                )
                for index, score in await rerank(self._embedder, wanted)
            ],
        )

    async def _whole(self, wanted: CompletionRequest) -> dict[str, Any]:
        head = self._head(wanted)
        async with aclosing(self._completions.run(wanted)) as events:
            return head.whole([event async for event in events], logprobs=wanted.logprobs is not None)

    async def _parts(self, wanted: CompletionRequest) -> AsyncGenerator[dict[str, Any], None]:
        head = self._head(wanted)
        ends: list[CompletionEvent] = []
        offset = 0
        async with aclosing(self._completions.run(wanted)) as events:
            async for event in events:
                yield head.part(event, offset=offset, logprobs=wanted.logprobs is not None)
                if isinstance(event.event, Delta):
                    offset += len(event.event.text)
                else:
                    offset = 0
                    ends.append(event)
        if wanted.include_usage:
            yield head.usage(total_usage(ends))

    def _head(self, wanted: CompletionRequest) -> TextCompletionHead:
        return TextCompletionHead.of(wanted.model or self._models.default_model)


def embedding_json(model: str, wanted: EmbeddingRequest, embedded: Embedded) -> dict[str, Any]:
    """Vectors in OpenAI's shape."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if wanted.base64 else list(vector)}
            for index, vector in enumerate(embedded.vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
    }


def _base64(vector: Sequence[float]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


def _entry(name: str) -> model_pb2.ModelListEntry:
    return model_pb2.ModelListEntry(id=name, object="model", created=0, owned_by=_OWNER)
