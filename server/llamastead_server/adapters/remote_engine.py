"""Engines of other servers, spoken to by OpenAI's chat completions API."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2

from llamastead_server.adapters.remote_stream import BadStream, RemoteStream, sse_data
from llamastead_server.domain.errors import (
    EngineFailed,
    InvalidRequest,
    LlamasteadError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from llamastead_server.domain.models.generation import (
    Finished,
    GenerationEvent,
    GenerationRequest,
    Message,
    ModelCard,
    Started,
    TokenCount,
    Usage,
)
from llamastead_server.domain.models.routing import RemoteModel
from llamastead_server.domain.retrieval.fusion import estimated_tokens

_CONTEXT_LENGTH = 131_072
"""Tokens reckoned with: the other server knows its window, and refuses what does not fit."""
_CONNECT_TIMEOUT = 10.0
_CONNECTIONS = 64
_ERROR_BYTES = 64 << 10
_ERROR_CHARACTERS = 300
_NO_STREAM = ("text/html", "application/json")
"""What a page or a whole answer comes as: a `base_url` that is wrong, or a server that does not stream."""
# What OpenAI's API does not know is sent only when a request or the project asks for it.
_OPTIONAL = ("top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed")


class HttpEngines:
    """Implements `domain.model_routing.RemoteEngines`. Use it as an async context manager.

    Redirects are not followed and proxies of the environment are not used: a request goes to the host that the operator
    has listed, or nowhere.

    Args:
        timeout: Seconds without a byte after which an answer is given up.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        self._timeout = timeout
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> HttpEngines:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    @asynccontextmanager
    async def lease(self, model: RemoteModel) -> AsyncIterator[RemoteEngine]:
        """An engine for one turn."""
        if self._client is None:
            # Made when it is first needed: it reads the system's certificates.
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(self._timeout, connect=_CONNECT_TIMEOUT),
                limits=httpx2.Limits(max_connections=_CONNECTIONS),
                follow_redirects=False,
                trust_env=False,
            )
        yield RemoteEngine(self._client, model)


class RemoteEngine:
    """Implements `domain.ports.Engine` over HTTP; closing `generate` closes the connection, which stops the work."""

    def __init__(self, client: httpx2.AsyncClient, model: RemoteModel) -> None:
        self._client = client
        self._model = model
        self._card = ModelCard(model.model, "", "remote", "remote", 0, context_length=None, loaded=True, state="ready")

    @property
    def card(self) -> ModelCard:
        """The model, as far as it is known here."""
        return self._card

    @property
    def context_length(self) -> int:
        """Tokens reckoned with."""
        return _CONTEXT_LENGTH

    @property
    def native_tool_calls(self) -> bool:
        """Always: the other server parses its model's calls."""
        return True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Runs one completion; see `domain.ports.Engine`."""
        estimate = (await self.count_tokens(request.messages, request.tools)).total
        stream = RemoteStream()
        try:
            async with self._client.stream(
                "POST", f"{self._model.base_url}/chat/completions", json=self._body(request), headers=self._headers()
            ) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer, await _start_of(answer))
                if (kind := answer.headers.get("content-type", "").partition(";")[0]) in _NO_STREAM:
                    said = self._clean(_message_of(await _start_of(answer)))
                    raise Unavailable(f"{self._place} answers with {kind}, not with a stream. {said}".strip())
                yield Started()
                async with aclosing(sse_data(answer.aiter_bytes())) as events:
                    async for data in events:
                        for event in stream.read(data):
                            yield event
                        if stream.ended:
                            break
        except httpx2.TimeoutException:
            raise Unavailable(f"{self._place} did not answer in time.", retry_after=5.0) from None
        except httpx2.TransportError as error:
            kind = "can't be reached" if isinstance(error, httpx2.ConnectError) else "ended the connection"
            raise Unavailable(f"{self._place} {kind}.", retry_after=5.0) from None
        except httpx2.InvalidURL:
            raise Unavailable(f"{self._place} has an address that can't be called.") from None
        except BadStream as error:
            raise EngineFailed(f"{self._place} failed: {self._clean(str(error))}", retry_after=1.0) from None
        if stream.reason is None:
            raise EngineFailed(f"{self._place} ended the answer before it was complete.", retry_after=1.0)
        for call in stream.calls():
            yield call
        usage = stream.usage or Usage(estimate, estimated_tokens(stream.text))
        yield Finished(stream.reason, usage)

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> TokenCount:
        """Estimates the size of a conversation by its bytes."""
        sizes = [4 + -(-message.size // 3) for message in messages]
        return TokenCount(sum(sizes) + (estimated_tokens(json.dumps(tools)) if tools else 0), sizes)

    @property
    def _place(self) -> str:
        return f"The server {self._model.host}, which holds the model {self._model.model!r},"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._model.api_key}"} if self._model.api_key else {}

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        if request.prompt is not None:
            raise InvalidRequest(f"The model {self._model.model!r} takes conversations only, no raw prompt.")
        if request.thinking:
            raise InvalidRequest(f"Model {self._model.model!r}: `think` can't be asked of another server.")
        sampling = request.sampling
        body: dict[str, Any] = {
            **self._model.extra,
            "model": self._model.model,
            "messages": [_message(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **{name: getattr(sampling, name) for name in _OPTIONAL},
            "max_tokens": request.max_tokens,
            "stop": list(request.stop) or None,
            "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        }
        if request.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs or None}
        if request.tools:
            body |= {"tools": list(request.tools), "tool_choice": request.tool_choice}
            body |= {} if request.parallel_tool_calls else {"parallel_tool_calls": False}
        elif request.json_schema:
            schema: dict[str, Any] = {"name": "answer", "schema": json.loads(request.json_schema)}
            schema |= {"strict": True} if request.json_strict else {}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.json_object:
            body["response_format"] = {"type": "json_object"}
        return {name: value for name, value in body.items() if value is not None}

    def _refusal(self, answer: httpx2.Response, body: bytes) -> LlamasteadError:
        status = answer.status_code
        said = self._clean(_message_of(body))
        if status in (401, 403):
            return Unavailable(f"{self._place} does not accept the project's api_key (HTTP {status}).")
        if status == 404:
            return ModelNotFound(
                f"Model {self._model.model!r} is not found at {self._model.host}. {said}".strip(),
                details={"model": self._model.model},
            )
        if status == 429:
            wait = answer.headers.get("retry-after", "")
            return Overloaded(
                f"{self._place} is busy or has no quota left. {said}".strip(),
                retry_after=float(wait) if wait.isdecimal() and len(wait) < 6 else 5.0,
            )
        if 300 <= status < 400:
            return Unavailable(f"{self._place} redirects to another address, which is not followed.")
        if 400 <= status < 500:
            return InvalidRequest(f"{self._place} refuses the request (HTTP {status}). {said}".strip())
        return Unavailable(f"{self._place} failed (HTTP {status}). {said}".strip(), retry_after=5.0)

    def _clean(self, text: str) -> str:
        """Text of the other server, short, in one line, and without the key it may have quoted."""
        if self._model.api_key:
            text = text.replace(self._model.api_key, "***")
        text = text.encode(errors="replace").decode()
        return " ".join(text.split())[:_ERROR_CHARACTERS]


def _message(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["content"] = message.content or None
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


async def _start_of(answer: httpx2.Response) -> bytes:
    body = b""
    async for part in answer.aiter_bytes():
        body += part
        if len(body) >= _ERROR_BYTES:
            break
    return body[:_ERROR_BYTES]


def _message_of(body: bytes) -> str:
    """What an error's body says: OpenAI's `error.message`, or other forms of the same."""
    try:
        content = json.loads(body)
    except ValueError:
        return ""
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        error = error.get("message", error.get("detail", ""))
    return error if isinstance(error, str) else ""
