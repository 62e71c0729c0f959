"""The words of text generation: messages in, deltas out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls.

    Attributes:
        id: Names the call, for the message that answers it.
        name: The function.
        arguments: Its arguments, as the text of a JSON object.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: What is said; may be empty beside calls.
        tool_calls: Functions the assistant calls.
        tool_call_id: The call that a `tool` message answers.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all its text."""
        calls = sum(len(call.name.encode()) + len(call.arguments.encode()) for call in self.tool_calls)
        return len(self.content.encode()) + calls


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; `None` leaves the model's neutral default.

    Ranges are checked where a request enters (`domain.chat.request`), so an engine may rely on them.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion for an engine to run: a conversation or a raw prompt.

    Attributes:
        messages: The conversation.
        prompt: The raw prompt, in its stead.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to generate; `None` is what the window leaves.
        stop: Strings that end the answer.
        top_logprobs: Alternatives reported with each token; `None` reports no log probabilities.
        json_schema: Schema the answer must satisfy, as JSON.
        json_strict: Whether it must also at another server, which may only try to otherwise.
        json_object: Whether the answer must be any JSON object.
        tools: Functions in OpenAI's form, which the model's chat template shows to the model.
        tool_choice: OpenAI's `tool_choice`; an engine without `native_tool_calls` gets a `json_schema` for it.
        parallel_tool_calls: Whether several functions may be called at once.
        thinking: Whether the model thinks before it answers; `None` leaves it to the model.
    """

    messages: Sequence[Message] = ()
    prompt: str | None = None
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    top_logprobs: int | None = None
    json_schema: str | None = None
    json_strict: bool = False
    json_object: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    thinking: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural log probability and the likeliest alternatives."""

    token: str
    logprob: float
    token_bytes: bytes
    top: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The engine admitted the prompt; what follows is the answer."""


@dataclass(frozen=True, slots=True)
class Delta:
    """More text. It never ends inside a character nor shows a part of a stop string."""

    text: str
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The assistant calls a function; the call is whole."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens a completion cost."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Finished:
    """The completion ended."""

    reason: FinishReason
    usage: Usage


GenerationEvent = Started | Delta | ToolCalled | Finished


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The size of a conversation as the model's template renders it."""

    total: int
    per_message: Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """An installed model.

    Attributes:
        name: What requests call it: the file's stem or the folder's name.
        path: Path inside the models folder.
        format: `gguf`, `exl2`, `gptq` or `safetensors`.
        engine: `llamacpp` or `exllamav2`.
        size_bytes: Size on disk.
        context_length: Tokens in its window, when known without loading it.
        loaded: Whether a worker holds it now.
        state: `available`, `loading`, `ready` or `failed`.
        aliases: Other names that lead to it.
        on_board: Whether it ships with the server.
        parameters: Number of its weights, when known.
        memory_bytes: Memory its worker holds.
        loaded_seconds: Time since it was loaded.
        load_progress: Share of its loading that is done, 0 to 1, while it loads and the engine tells.
    """

    name: str
    path: str
    format: str
    engine: str
    size_bytes: int
    context_length: int | None = None
    loaded: bool = False
    state: str = "available"
    aliases: Sequence[str] = ()
    on_board: bool = False
    parameters: int | None = None
    memory_bytes: int | None = None
    loaded_seconds: float | None = None
    load_progress: float | None = None
