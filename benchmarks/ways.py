"""The ways to one completion: through REST, through gRPC, or from the engine worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from benchmarks.http_client import HttpConnection
from benchmarks.stack import NAMESPACE
from benchmarks.streams import Complete, Reader, Stream
from llamastead.internal.v1 import engine_pb2
from llamastead.v1 import chat_pb2

_WORKER_METHOD = "/llamastead.internal.v1.EngineService/Generate"
_CHAT_METHOD = "/llamastead.v1.ChatService/StreamChatCompletion"

_Counted = tuple[int, int]
"""Tokens of the prompt and of the completion."""
_Event = tuple[str, _Counted | None]


def worker(channel: grpc.Channel) -> Complete:
    """From the engine worker, on the socket the server uses."""

    def complete(prompt: str, tokens: int, reader: Reader) -> Stream | None:
        request = engine_pb2.GenerateRequest(
            messages=[engine_pb2.Message(role="user", content=prompt)],
            sampling=engine_pb2.Sampling(temperature=0, top_p=1),
            max_tokens=tokens,
        )
        return _grpc_stream(channel, _WORKER_METHOD, request.SerializeToString(), _worker_event, reader)

    return complete


def typed(channel: grpc.Channel, project: str) -> Complete:
    """Through the typed RPC."""

    def complete(prompt: str, tokens: int, reader: Reader) -> Stream | None:
        request = chat_pb2.CreateChatCompletionRequest(
            namespace=NAMESPACE,
            project=project,
            temperature=0,
            top_p=1,
            max_tokens=tokens,
            rag_enabled=False,
            no_session=True,
            stream_options=chat_pb2.StreamOptions(include_usage=True),
        )
        request.messages.add(role="user").content.string_value = prompt
        return _grpc_stream(channel, _CHAT_METHOD, request.SerializeToString(), _chat_event, reader)

    return complete


def rest(port: int, project: str) -> Complete:
    """Through the gateway, as Server-Sent Events; each stream has a connection of its own."""
    path = f"/v1/projects/{NAMESPACE}/{project}/chat/completions"

    def complete(prompt: str, tokens: int, reader: Reader) -> Stream | None:
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "top_p": 1,
            "max_tokens": tokens,
            "rag_enabled": False,
        }
        with HttpConnection(port) as connection:
            request = connection.request_bytes("POST", path, json.dumps(body).encode(), {"X-No-Session": "true"})
            started = time.perf_counter()
            pieces = []
            for piece in connection.stream(request):
                pieces.append(piece)
                if not reader.heard():
                    return None
        return _stream(started, _sse(pieces))

    return complete


def _grpc_stream(
    channel: grpc.Channel, method: str, request: bytes, decode: Callable[[bytes], _Event], reader: Reader
) -> Stream | None:
    method_call = channel.unary_stream(method, request_serializer=None, response_deserializer=None)
    started = time.perf_counter()
    call = method_call(request, timeout=600)
    # Decoded after the end: the reader's own work must not slow the server down.
    heard = []
    for message in call:
        heard.append((time.perf_counter(), message))
        if not reader.heard():
            call.cancel()  # type: ignore[no-untyped-call]
            return None
    return _stream(started, ((moment, *decode(message)) for moment, message in heard))


def _worker_event(message: bytes) -> _Event:
    response = engine_pb2.GenerateResponse.FromString(message)
    done = response.finished if response.HasField("finished") else None
    return response.delta.text, None if done is None else (done.prompt_tokens, done.completion_tokens)


def _chat_event(message: bytes) -> _Event:
    chunk = chat_pb2.ChatCompletionChunk.FromString(message)
    text = "".join(choice.delta.content for choice in chunk.choices)
    usage = chunk.usage if chunk.HasField("usage") else None
    return text, None if usage is None else (usage.prompt_tokens, usage.completion_tokens)


def _sse(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, str, _Counted | None]]:
    pending = b""
    for moment, piece in pieces:
        *blocks, pending = (pending + piece).split(b"\n\n")
        for block in blocks:
            if block == b"data: [DONE]" or not block.startswith(b"data: "):
                continue
            event: dict[str, Any] = json.loads(block.removeprefix(b"data: "))
            text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            usage = event.get("usage")
            yield moment, text, (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None


def _stream(started: float, events: Iterable[tuple[float, str, _Counted | None]]) -> Stream:
    times: list[float] = []
    counted: _Counted | None = None
    for moment, text, counts in events:
        if text:
            times.append(moment)
        counted = counts or counted
    if counted is None or not times:
        raise RuntimeError("a stream ended without text or usage")
    return Stream(started, times[0], times[-1], *counted, len(times))
