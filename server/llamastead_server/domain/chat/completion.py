"""Raw text continued, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from llamastead_server.domain.chat.request import MOST_CHOICES, Parameters, StreamOptions
from llamastead_server.domain.deadline import Deadline
from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.models.engine_stream import next_event, started
from llamastead_server.domain.models.generation import Delta, Finished, GenerationRequest
from llamastead_server.domain.models.runtime_settings import RuntimeSettings
from llamastead_server.domain.ports import ModelRegistry
from llamastead_server.domain.validation import reasons, summary

MOST_PROMPTS = 32
_REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "echo": (bool, "echo is not supported: put the prompt before the answer yourself"),
    "suffix": (bool, "suffix is not supported: this server's models only continue text"),
    "best_of": (lambda value: value != 1, "best_of is not supported: answers are not ranked; ask for several with n"),
}


class CompletionRequest(Parameters):
    """Texts to continue, and how."""

    prompts: list[Annotated[str, StringConstraints(min_length=1)]] = Field(min_length=1, max_length=MOST_PROMPTS)
    model: str | None = Field(None, max_length=500)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=20)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> CompletionRequest:
        """Reads a request from plain data; nulls are as good as absent.

        Raises:
            ValidationFailed: Names every wrong field with the reason.
            InvalidRequest: The request asks for something the server does not do.
        """
        given = {key: value for key, value in body.items() if value is not None}
        for field, (wrong, reason) in _REFUSED.items():
            if field in given and wrong(given[field]):
                raise InvalidRequest(f"{reason}.", details={"field": field})
        prompt = given.pop("prompt", None)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if isinstance(prompts, list) and any(not isinstance(entry, str) for entry in prompts):
            raise InvalidRequest("prompt must be a string or an array of strings: tokens are not taken.",
                                 details={"field": "prompt"})  # fmt: skip
        if not prompts or not all(prompts):
            raise ValidationFailed("Invalid request: prompt: give text to continue.", details={"prompt": "empty"})
        try:
            return cls.model_validate({**given, "prompts": prompts})
        except ValidationError as error:
            found = {("prompt" if key.startswith("prompts") else key): why for key, why in reasons(error).items()}
            raise ValidationFailed(f"Invalid request: {summary(found)}.", details=found) from None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a part of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


@dataclass(frozen=True, slots=True)
class CompletionEvent:
    """More of one continuation, or its end.

    Attributes:
        index: Place of the continuation among all: a prompt's follow those of the prompt before.
        event: What is new.
        again: Whether the prompt was continued before.
    """

    index: int
    event: Delta | Finished
    again: bool = False


class Completions:
    """Continues texts with the installed models.

    Args:
        models: The installed models.
        settings: The defaults and the time one request may take.
    """

    def __init__(self, models: ModelRegistry, settings: RuntimeSettings) -> None:
        self._models = models
        self._settings = settings

    @property
    def default_model(self) -> str:
        """Name of the model for requests that name none."""
        return self._models.default_model

    async def run(self, request: CompletionRequest) -> AsyncGenerator[CompletionEvent, None]:
        """Continues each prompt in turn, as often as asked for; closing the iterator frees the engine.

        Raises:
            ModelNotFound: The model is not installed.
            ContextLengthExceeded: A prompt does not fit the model's window.
            Overloaded: The engine's queue is full.
            EngineFailed: The engine's worker died.
            RequestTimeout: The time is over.
        """
        card = self._models.resolve(request.model or None)
        parameters = request.parameters(self._settings.parameters(card.name), source="parameters of the model")
        limit = parameters.token_limit or self._settings.token_limit(card.name)
        deadline = Deadline(self._settings.system.request_timeout_seconds)
        async with AsyncExitStack() as stack:
            async with deadline.held():
                engine = await stack.enter_async_context(self._models.lease(card.name))
            wanted = [(prompt, choice) for prompt in request.prompts for choice in range(request.n)]
            for index, (prompt, choice) in enumerate(wanted):
                generation = GenerationRequest(
                    prompt=prompt,
                    sampling=parameters.sampling(choice),
                    max_tokens=limit,
                    stop=tuple(parameters.stop or ()),
                    top_logprobs=request.logprobs,
                )
                async with aclosing(engine.generate(generation)) as events:
                    async with deadline.held():
                        await started(events)
                    while not isinstance(event := await next_event(events, deadline), Finished):
                        if isinstance(event, Delta):
                            yield CompletionEvent(index, event, choice > 0)
                    yield CompletionEvent(index, event, choice > 0)
