"""What the engine worker needs of a loaded model, whichever engine holds it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llamastead.internal.v1 import engine_pb2
from llamastead_server.domain.models.generation import Message

Event = dict[str, Any]
"""One event of a completion, in the words of llama.cpp's server.

`prompt_progress` alone: the request has its slot. Otherwise `content` (text) and `stop`; with log
probabilities `completion_probabilities`, a list of `token`, `logprob`, `bytes` and `top_logprobs`; optionally
`count`, the tokens behind it when they are not one. The last event has `stop` true, `stop_type` (`eos`, `word`
or `limit`), `tokens_evaluated`, `tokens_predicted` and `timings` with `cache_n`.
"""


class Refused(Exception):
    """The request is at fault; the message says why."""


class EngineError(Exception):
    """The engine failed while it served a request; the next one may succeed."""


class Busy(Exception):
    """More requests wait in the worker than it takes."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What a model says of itself.

    Attributes:
        state: `loading`, `ready` or `failed`.
        error: Why it failed.
        progress: Share of the loading that is done, 0 to 1.
        step: What it does while it loads, for people.
        active_requests: Requests it holds.
        gpu_bytes: GPU memory it holds, in bytes.
    """

    state: str = "ready"
    error: str = ""
    progress: float = 1.0
    step: str = ""
    active_requests: int = 0
    gpu_bytes: int = 0


class Model(Protocol):
    """One model, loaded or being loaded."""

    @property
    def path(self) -> Path:
        """The file or folder it came from."""

    @property
    def context_length(self) -> int:
        """Tokens in each request's window; 0 while that is not known."""

    @property
    def slots(self) -> int:
        """Requests decoded at once."""

    async def encode_conversation(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), thinking: bool | None = None
    ) -> list[int]:
        """Renders and encodes a conversation, and the tools in OpenAI's form that the model may call.

        Raises:
            Refused: The model's template does not take it.
        """

    async def encode_text(self, text: str) -> list[int]:
        """Encodes a raw prompt; control tokens in it stay text."""

    async def count(self, text: str) -> int:
        """Tokens of a text by itself."""

    def complete(self, prompt: Sequence[int], request: engine_pb2.GenerateRequest) -> AsyncGenerator[list[Event], None]:
        """Runs one completion; yields events, all that are ready at a time.

        The first event comes when the request has its slot. Closing the iterator frees the slot.

        Raises:
            Refused: A parameter is invalid; raised before the first event.
            Busy: Too many requests wait; raised before the first event.
            EngineError: The engine failed.
        """

    async def status(self) -> ModelStatus:
        """Asks the engine's own scheduler, so that a wedged one does not answer."""


def parsed_schema(text: str) -> dict[str, Any]:
    """Reads the JSON schema of a request.

    Raises:
        Refused: It is not a JSON object.
    """
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise Refused(f"The JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise Refused("The JSON schema must be an object.")
    return schema


def check_bias(sampling: engine_pb2.Sampling, vocabulary: int) -> None:
    """Makes sure that a model of so many tokens has those that a request biases.

    Raises:
        Refused: It lacks one.
    """
    if unknown := [token for token in sampling.logit_bias if token >= vocabulary]:
        raise Refused(f"logit_bias names token {unknown[0]}, but this model has {vocabulary} tokens.")
