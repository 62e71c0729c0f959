"""What a chat request may ask for, checked whole before any work is done.

Field names are OpenAI's and LlamaFarm's. A field either takes effect or is refused; `user`, `metadata`,
`safety_identifier`, `prompt_cache_key`, a message's `name` and `parallel_tool_calls` without tools are labels and have
no effect by design.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from llamastead_server.domain.chat import response_format
from llamastead_server.domain.chat.messages import parse_messages
from llamastead_server.domain.chat.tools import NO_TOOLS, Tool, ToolChoice, ToolOffer, parse_choice, parse_tools
from llamastead_server.domain.errors import Conflict, InvalidRequest, ValidationFailed
from llamastead_server.domain.models.generation import GenerationRequest, Message, Sampling
from llamastead_server.domain.models.parameters import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    MinP,
    Penalty,
    RepeatPenalty,
    Temperature,
    TokenLimit,
    TopK,
    TopP,
)
from llamastead_server.domain.unsupported_fields import refuse_unsupported
from llamastead_server.domain.validation import reasons as reasons_of
from llamastead_server.domain.validation import summary

MOST_CHOICES = 8
_MAX_STOPS = 16
_SEEDS = 2**32 - 1
"""The engines' seeds are 0 to 4294967294: the next one means a random seed to llama.cpp."""
_OF_PROJECTS = (
    "rag_enabled",
    "database",
    "rag_top_k",
    "rag_score_threshold",
    "rag_retrieval_strategy",
    "rag_queries",
    "include_sources",
    "variables",
)
"""Fields that mean nothing without a project."""

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Label = Annotated[str, StringConstraints(max_length=512)]
Query = Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"\S")]


class Parameters(BaseModel):
    """How to answer: the fields that a model's `model_api_parameters` may give defaults for."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**64)
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    stop: list[Stop] | None = Field(None, max_length=_MAX_STOPS)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("seed", mode="before")
    @classmethod
    def _whole_seed(cls, value: Any) -> Any:
        # What JSON carries is a double: beyond 2^53 it is whole, but no longer read as an integer.
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("seed")
    @classmethod
    def _engine_seed(cls, value: int | None) -> int | None:
        return None if value is None else value % _SEEDS

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _token_ids(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for key in value:
            digits = str(key) if isinstance(key, int | str) else ""
            if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
                raise ValueError(f"{key!r} is not a token id")
        return {int(key): bias for key, bias in value.items()}

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate: `max_completion_tokens`, else its older name `max_tokens`."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def parameters(self, defaults: Mapping[str, Any], *, source: str) -> Parameters:
        """The request's own values over a model's configured ones; `source` names those in errors.

        Raises:
            Conflict: A configured value is out of range.
        """
        try:
            configured = Parameters.model_validate(dict(defaults))
        except ValidationError as error:
            reasons = reasons_of(error)
            raise Conflict(f"The project's {source} is wrong: {summary(reasons)}.", details=reasons) from None
        own = self.model_dump(include=set(Parameters.model_fields), exclude_none=True)
        if self.token_limit is not None:
            own["max_completion_tokens"] = self.token_limit
        return configured.model_copy(update=own)

    def sampling(self, choice: int = 0) -> Sampling:
        """How the next token is drawn, with the server's defaults for what nobody set.

        Args:
            choice: The place of the answer among several to one prompt; with one seed for all they would be the same.
        """
        return Sampling(
            temperature=DEFAULT_TEMPERATURE if self.temperature is None else self.temperature,
            top_p=DEFAULT_TOP_P if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else (self.seed + choice) % _SEEDS,
            logit_bias=self.logit_bias or {},
        )


class StreamOptions(BaseModel):
    """Details of a streamed answer."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    include_usage: bool | None = None


class ChatRequest(Parameters):
    """One chat turn: the conversation, how to answer it and what to retrieve for it."""

    messages: Sequence[Message]
    model: str | None = Field(None, max_length=500)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    think: bool | None = None
    n_ctx: int | None = Field(None, ge=128, le=2**20)
    rag_enabled: bool | None = None
    database: str | None = None
    rag_top_k: int | None = Field(None, ge=1, le=100)
    rag_score_threshold: float | None = Field(None, ge=0, le=1)
    rag_retrieval_strategy: str | None = None
    rag_queries: list[Query] = Field([], max_length=10)
    include_sources: bool = False
    sources_limit: int = Field(10, ge=1, le=50)
    variables: dict[str, Any] = {}
    user: str | None = None
    metadata: dict[str, Label] = Field({}, max_length=16)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> ChatRequest:
        """Reads a request from plain data, as JSON gives it; nulls are as good as absent.

        Raises:
            ValidationFailed: Names every wrong field with the reason.
            InvalidRequest: The request asks for something the server does not do.
        """
        given = {key: value for key, value in body.items() if value is not None}
        refuse_unsupported(given)
        if given.get("reasoning_effort") == "none":
            given.setdefault("think", False)
        messages, reasons = parse_messages(given.get("messages"))
        try:
            request = cls.model_validate({**given, "messages": messages})
        except ValidationError as error:
            reasons |= reasons_of(error)
        if reasons:
            raise ValidationFailed(f"Invalid request: {summary(reasons)}.", details=reasons)
        return request

    @field_validator("response_format")
    @classmethod
    def _known_format(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            response_format.check(value)
        return value

    @field_validator("tools", mode="before")
    @classmethod
    def _functions(cls, value: Any) -> Sequence[Tool]:
        return parse_tools(value)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _choice(cls, value: Any) -> ToolChoice | None:
        return None if value is None else parse_choice(value)

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def check_needs_no_project(self) -> None:
        """Raises `InvalidRequest` when a field is set that means nothing without a project."""
        for field in _OF_PROJECTS:
            if field in self.model_fields_set and getattr(self, field):
                raise InvalidRequest(
                    f"{field} needs a project: chat at /v1/projects/{{namespace}}/{{project}}/chat/completions.",
                    details={"field": field},
                )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def system(self) -> str | None:
        """The system messages, wherever they stand, as one; None when there is none."""
        texts = [message.content for message in self.messages if message.role == "system"]
        return "\n\n".join(texts) if texts else None

    @property
    def turns(self) -> Sequence[Message]:
        """The conversation without its system messages."""
        return [message for message in self.messages if message.role != "system"]

    def generation(
        self, messages: Sequence[Message], parameters: Parameters, offer: ToolOffer = NO_TOOLS, *, choice: int = 0
    ) -> GenerationRequest:
        """The request an engine runs for one answer to the assembled prompt.

        Raises:
            InvalidRequest: The answer is to have a form beside tools.
        """
        schema = response_format.schema(self.response_format)
        json_object = response_format.is_json_object(self.response_format)
        if offer.tools:
            if schema is not None or json_object:
                raise InvalidRequest(
                    "response_format can't be combined with tools: leave one out, or give tool_choice `none`.",
                    details={"field": "response_format"},
                )
            schema = offer.schema()
        return GenerationRequest(
            messages=messages,
            sampling=parameters.sampling(choice),
            max_tokens=parameters.token_limit,
            stop=tuple(parameters.stop or ()),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            json_schema=None if schema is None else json.dumps(schema),
            json_strict=response_format.is_strict(self.response_format),
            json_object=json_object,
            tools=() if offer.in_prompt else [tool.plain() for tool in offer.tools],
            tool_choice=offer.choice.plain(),
            parallel_tool_calls=offer.parallel,
            thinking=self.think,
        )
