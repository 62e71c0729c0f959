"""The engine worker: one model behind `llamastead.internal.v1.EngineService` on a unix socket."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import grpc

from llamastead.internal.v1 import engine_pb2, engine_pb2_grpc
from llamastead_server.domain.models.generation import Message, ToolCall
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import child
from llamastead_server.workers.llamacpp_http import LlamaServerError
from llamastead_server.workers.model import Busy, EngineError, Model, Refused

_Context = grpc.aio.ServicerContext[Any, Any]


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Serves one loaded model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._active = 0
        self._generated = 0

    async def Generate(self, request: engine_pb2.GenerateRequest, context: _Context) -> None:  # type: ignore[override]
        """Streams one completion.

        It writes instead of yielding, so that a cancelled call is cancelled in here and frees its slot at once.
        """
        self._active += 1
        try:
            prompt = await self._prompt(request)
            window = self._model.context_length
            if len(prompt) >= window:
                sizes = (("x-prompt-tokens", str(len(prompt))), ("x-context-length", str(window)))
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The prompt does not fit.", sizes)
            started = False
            alternatives = request.top_logprobs if request.HasField("top_logprobs") else None
            async with aclosing(self._model.complete(prompt, request)) as batches:
                async for events in batches:
                    if not started:
                        started = True
                        admitted = engine_pb2.GenerateResponse.Started(prompt_tokens=len(prompt))
                        await context.write(engine_pb2.GenerateResponse(started=admitted))
                    for response in self._responses(events, alternatives):
                        await context.write(response)
        except Refused as refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
        except LlamaServerError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"llama.cpp failed: {error.message}")
        except EngineError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        except Busy as refusal:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refusal))
        finally:
            self._active -= 1

    async def CountTokens(
        self, request: engine_pb2.CountTokensRequest, context: _Context
    ) -> engine_pb2.CountTokensResponse:
        """Counts a conversation; the template's own tokens are shared out evenly."""
        conversation = _conversation(request.messages)
        try:
            plain = total = len(await self._model.encode_conversation(conversation))
            if request.tools:
                total = len(await self._model.encode_conversation(conversation, _tools(request.tools)))
        except Refused as refusal:
            await _abort(context, str(refusal))
        contents = [
            await self._model.count(
                message.content + "".join(call.name + call.arguments for call in message.tool_calls)
            )
            for message in conversation
        ]
        overhead, rest = divmod(max(0, plain - sum(contents)), max(1, len(contents)))
        sizes = [size + overhead + (index < rest) for index, size in enumerate(contents)]
        return engine_pb2.CountTokensResponse(total=total, per_message=sizes)

    async def GetStatus(self, request: engine_pb2.GetStatusRequest, context: _Context) -> engine_pb2.GetStatusResponse:
        """Answers only while the engine's scheduler does."""
        status = await self._model.status()
        return engine_pb2.GetStatusResponse(
            model_path=str(self._model.path),
            state=status.state,
            error=status.error,
            context_length=self._model.context_length,
            slots=self._model.slots,
            active_requests=max(self._active, status.active_requests),
            memory_bytes=child.resident_bytes(),
            generated_tokens=self._generated,
            load_progress=status.progress,
            load_step=status.step,
            gpu_memory_bytes=status.gpu_bytes,
        )

    async def _prompt(self, request: engine_pb2.GenerateRequest) -> list[int]:
        if request.messages:
            thinking = request.thinking if request.HasField("thinking") else None
            return await self._model.encode_conversation(
                _conversation(request.messages), _tools(request.tools), thinking
            )
        return await self._model.encode_text(request.prompt)

    def _responses(self, events: list[dict[str, Any]], alternatives: int | None) -> list[engine_pb2.GenerateResponse]:
        """Joins the text of events that came together, so that a slow reader costs no more than a fast one."""
        delta = engine_pb2.GenerateResponse.Delta()
        responses = []
        texts = []
        for event in events:
            if "prompt_progress" in event:
                continue
            texts.append(event["content"])
            if not event["stop"]:
                delta.tokens += event.get("count", 1)
            if alternatives is not None:
                delta.logprobs.extend(
                    _logprob(entry, alternatives) for entry in event.get("completion_probabilities", ())
                )
        delta.text = "".join(texts)
        self._generated += delta.tokens
        if delta.text or delta.logprobs:
            responses.append(engine_pb2.GenerateResponse(delta=delta))
        if events[-1].get("stop"):
            responses.append(engine_pb2.GenerateResponse(finished=_finished(events[-1])))
        return responses


def _finished(event: dict[str, Any]) -> engine_pb2.GenerateResponse.Finished:
    return engine_pb2.GenerateResponse.Finished(
        reason="length" if event["stop_type"] == "limit" else "stop",
        prompt_tokens=event["tokens_evaluated"],
        cached_tokens=max(0, event["timings"]["cache_n"]),
        completion_tokens=event["tokens_predicted"],
    )


def _logprob(entry: dict[str, Any], alternatives: int) -> engine_pb2.TokenLogprob:
    return engine_pb2.TokenLogprob(
        token=entry["token"],
        logprob=entry["logprob"],
        token_bytes=bytes(entry["bytes"]),
        top=[_logprob(other, 0) for other in entry.get("top_logprobs", ())[:alternatives]],
    )


def _conversation(messages: Any) -> list[Message]:
    return [
        Message(
            message.role,
            message.content,
            tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
            message.tool_call_id or None,
        )
        for message in messages
    ]


def _tools(text: str) -> list[Any]:
    return json.loads(text) if text else []


async def _abort(context: _Context, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
    raise AssertionError("abort returns never")


def main() -> None:
    """Loads the model and serves it until SIGTERM or the parent's death."""
    child.die_with_parent()
    # On a busy machine the server passes tokens on, and answers others, before more are made (tests/soak/liveness.py);
    # with yet more steps an engine would hardly come to work beside other programs.
    child.give_way(8)
    child.configure_logging()
    parser = argparse.ArgumentParser(description="Serves one model to the Llamastead server.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", choices=["llamacpp", "exllamav2"], default="llamacpp")
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--prompt-cache-mib", type=int, default=256, help="llama.cpp's memory for seen prompts")
    parser.add_argument("--settings", type=GpuSettings.model_validate_json, help="how to load it onto GPUs, as JSON")
    parser.add_argument("--draft", type=Path, help="the draft model's folder")
    parser.add_argument("--extensions", type=Path, help="where compiled CUDA extensions are kept")
    arguments = parser.parse_args()
    make_model = _exllama if arguments.engine == "exllamav2" else _llamacpp
    model = make_model(arguments)

    def register(server: grpc.aio.Server) -> None:
        engine_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(model()), server)

    asyncio.run(child.serve(arguments.socket, register))
    # The engines' threads hold nothing worth waiting for.
    os._exit(0)


def _llamacpp(arguments: argparse.Namespace) -> Callable[[], Model]:
    """Loads before anything is served: loading holds the interpreter anyway."""
    from llamastead_server.workers.llamacpp import LlamaCpp, LoadOptions, default_threads

    options = LoadOptions(
        arguments.model,
        arguments.context_length,
        arguments.slots,
        arguments.threads or default_threads(),
        arguments.prompt_cache_mib,
    )
    try:
        model = LlamaCpp(options, arguments.socket.parent)
    except RuntimeError:
        logging.error("llama.cpp cannot load %s: it is damaged or of an unknown kind.", arguments.model.name)
        sys.exit(3)
    except (ValueError, OSError) as error:
        logging.error("Cannot load %s: %s", arguments.model.name, error)
        sys.exit(3)
    return lambda: model


def _exllama(arguments: argparse.Namespace) -> Callable[[], Model]:
    """Loads while its progress is served already."""
    from llamastead_server.workers.exllama import ExLlama
    from llamastead_server.workers.exllama_loading import Source

    source = Source(arguments.model, arguments.draft, arguments.extensions, arguments.socket.parent)
    return lambda: ExLlama(source, arguments.settings)


if __name__ == "__main__":
    main()
