"""One GGUF model, held by llama.cpp in this process.

llama.cpp's own scheduler batches the requests of all slots and reuses prompt prefixes; this module loads it,
renders and encodes prompts, and turns a request into its parameters, with neutral defaults.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp

from llamastead.internal.v1 import engine_pb2
from llamastead_server.domain.models.gguf_header import GgufHeader, read_header
from llamastead_server.workers.chat_template import ChatTemplate, ControlTokens
from llamastead_server.workers.llamacpp_http import LlamaHttp, LlamaServerError
from llamastead_server.workers.model import ModelStatus, Refused, check_bias, parsed_schema
from llamastead_server.workers.prompt_encoder import PromptEncoder

_CONTROL, _USER_DEFINED = 3, 4
_TOKENS, _TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_PREFILL_RATE = 4e10
"""Parameters times prompt tokens that one thread works off in a second (measured, Q8_0, AVX2)."""
_PENALTY_WINDOW = 256
_CACHED_TOKENS = 200_000
_CACHED_SCHEMAS = 256
_NOT_JSON = "~"
_OPTIONAL: Sequence[Any] = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip
_NEUTRAL = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_last_n": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        path: The GGUF file; of a split model, its first part.
        context_length: Tokens in each request's window.
        slots: Requests decoded at once; each has its own window.
        threads: Threads that compute; one core should stay free.
        prompt_cache_mib: Memory for prompt states of conversations that lost their slot, in MiB.
    """

    path: Path
    context_length: int
    slots: int
    threads: int
    prompt_cache_mib: int = 256


def default_threads() -> int:
    """The cores this process may use, less one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def batch_size(parameters: int, threads: int) -> int:
    """Prompt tokens per batch, so that one takes about half a second: a cancelled prompt ends between batches."""
    half_second = 0.5 * _PREFILL_RATE * threads / max(parameters, 1)
    return max(32, min(512, int(half_second) // 32 * 32))


class LlamaCpp(PromptEncoder):
    """A loaded model. Loading blocks the whole process, interpreter lock included.

    Args:
        options: How to load it.
        folder: A private folder for llama.cpp's unix socket.

    Raises:
        RuntimeError: llama.cpp cannot load the file.
    """

    def __init__(self, options: LoadOptions, folder: Path) -> None:
        header = read_header(options.path, arrays=frozenset({_TOKENS, _TOKEN_TYPES}))
        self.options = options
        key = secrets.token_hex(16)
        socket = folder / "llama.sock"
        self._server = xllamacpp.Server(server_parameters(options, header, socket, key))
        self._http = LlamaHttp(socket, key)
        tokens: Sequence[str] = header.metadata.get(_TOKENS, ())
        kinds: Sequence[int] = header.metadata.get(_TOKEN_TYPES, ())
        self._tokens_of_kind = {
            wanted: {
                text: index for index, (text, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind == wanted
            }
            for wanted in (_CONTROL, _USER_DEFINED)
        }
        control = ControlTokens(self._tokens_of_kind[_CONTROL], self._tokens_of_kind[_USER_DEFINED])
        template = ChatTemplate(
            header.metadata.get("tokenizer.chat_template"),
            control,
            bos_token=_token_text(header, tokens, "bos"),
            eos_token=_token_text(header, tokens, "eos"),
        )
        super().__init__(template, control)
        self._vocabulary = len(tokens)
        self._encoded: OrderedDict[str, list[int]] = OrderedDict()
        self._encoded_size = 0
        self._begin: list[int] | None = None
        self._good_schemas: OrderedDict[str, None] = OrderedDict()

    async def complete(
        self, prompt: Sequence[int], request: engine_pb2.GenerateRequest
    ) -> AsyncGenerator[list[Any], None]:
        """Runs one completion; yields llama.cpp's events, all that are ready at a time.

        The first event comes when the request has its slot. Closing the iterator frees the slot.

        Raises:
            Refused: A parameter is invalid; raised before the first event.
            LlamaServerError: llama.cpp failed.
        """
        check_bias(request.sampling, self._vocabulary)
        body = {**_sampling(request), "prompt": list(prompt), "stream": True, "return_progress": True}
        if request.json_schema or request.json_object:
            asked = parsed_schema(request.json_schema) if request.json_schema else {"type": "object"}
            # Small models otherwise lose themselves in white space, which JSON allows without end.
            schema = {**asked, "x-guidance": {"whitespace_flexible": False}}
            await self._check_schema(schema)
            body["json_schema"] = schema
        try:
            async with aclosing(self._http.stream("/completions", body)) as events:
                async for ready in events:
                    yield ready
        except LlamaServerError as error:
            if error.status == 400:
                raise Refused(error.message) from None
            raise

    @property
    def path(self) -> Path:
        """The file it came from."""
        return self.options.path

    @property
    def context_length(self) -> int:
        """Tokens in each request's window."""
        return self.options.context_length

    @property
    def slots(self) -> int:
        """Requests decoded at once."""
        return self.options.slots

    async def status(self) -> ModelStatus:
        """Asks llama.cpp's scheduler itself, so that a wedged one does not answer."""
        slots = await self._http.call("GET", "/slots")
        return ModelStatus(active_requests=sum(1 for slot in slots if slot["is_processing"]))

    async def _beginning(self) -> list[int]:
        if self._begin is None:
            self._begin = await self._tokenize("", add_special=True)
        return self._begin

    async def _encode_run(self, text: str) -> list[int]:
        """Encodes plain text, remembering the latest: a conversation's earlier turns come again each turn."""
        known = self._encoded.pop(text, None)
        if known is None:
            known = await self._tokenize(text, add_special=False)
            self._encoded_size += len(known) + 1
        self._encoded[text] = known
        while self._encoded_size > _CACHED_TOKENS:
            _, oldest = self._encoded.popitem(last=False)
            self._encoded_size -= len(oldest) + 1
        return known

    async def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": False}
        tokens: list[int] = (await self._http.call("POST", "/tokenize", body))["tokens"]
        return tokens

    async def _check_schema(self, schema: Any) -> None:
        """Makes sure that the schema binds.

        llama.cpp generates free text, without an error, when it cannot compile a schema. So a schema is tried
        once: a token that no JSON begins with is made all but certain, and must not come out.
        """
        text = json.dumps(schema, sort_keys=True)
        if text in self._good_schemas:
            self._good_schemas.move_to_end(text)
            return
        forbidden = await self._encode_run(_NOT_JSON)
        body = {
            **_NEUTRAL, "prompt": forbidden, "n_predict": 1, "temperature": 0, "json_schema": schema,
            "logit_bias": [[token, 1000.0] for token in forbidden], "cache_prompt": False,
        }  # fmt: skip
        try:
            answer = await self._http.call("POST", "/completions", body)
        except LlamaServerError as error:
            raise Refused(f"The JSON schema is not supported: {error.message}") from None
        if _NOT_JSON in answer["content"]:
            raise Refused("The JSON schema is invalid or uses a keyword that the engine does not support.")
        self._good_schemas[text] = None
        if len(self._good_schemas) > _CACHED_SCHEMAS:
            self._good_schemas.popitem(last=False)


def server_parameters(options: LoadOptions, header: GgufHeader, socket: Path, key: str) -> Any:
    """How llama.cpp is set up to hold a model; `benchmarks` sets up its raw engine with the same."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.path)
    parameters.n_parallel = options.slots
    parameters.n_ctx = options.context_length * options.slots
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.n_batch = parameters.n_ubatch = batch_size(header.parameters, options.threads)
    parameters.n_gpu_layers = 0
    parameters.ctx_shift = False
    parameters.fit_params = False
    parameters.cache_ram_mib = options.prompt_cache_mib
    parameters.verbosity = 0
    parameters.ui = False
    parameters.hostnames = [str(socket)]
    parameters.api_keys = [key]
    parameters.endpoint_slots = True
    parameters.n_threads_http = options.slots + 6
    return parameters


def _token_text(header: GgufHeader, tokens: Sequence[str], which: str) -> str:
    index = header.metadata.get(f"tokenizer.ggml.{which}_token_id")
    return tokens[index] if isinstance(index, int) and index < len(tokens) else ""


def _sampling(request: engine_pb2.GenerateRequest) -> dict[str, Any]:
    given = request.sampling
    body: dict[str, Any] = dict(_NEUTRAL)
    for name in _OPTIONAL:
        if given.HasField(name):
            body[name] = getattr(given, name)
    if body["presence_penalty"] or body["frequency_penalty"]:
        body["repeat_last_n"] = _PENALTY_WINDOW
    body["logit_bias"] = [[token, bias] for token, bias in given.logit_bias.items()]
    body["stop"] = [text for text in request.stop if text]
    body["n_predict"] = request.max_tokens or -1
    body["n_probs"] = max(1, request.top_logprobs) if request.HasField("top_logprobs") else 0
    return body
