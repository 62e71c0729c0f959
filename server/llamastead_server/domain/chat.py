"""One chat turn, from a request to its last token; every chat-like endpoint is a face of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from llamastead_server.domain import prompt as prompts
from llamastead_server.domain.chat_request import ChatRequest, Parameters
from llamastead_server.domain.config import ProjectConfig
from llamastead_server.domain.engine_stream import Deadline, next_event, started
from llamastead_server.domain.errors import ContextLengthExceeded, ModelNotFound, NotFound
from llamastead_server.domain.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    Message,
    TokenLogprob,
    Usage,
)
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Engine, ModelRegistry, ProjectStore
from llamastead_server.domain.prompt import Prompt, Trimmed
from llamastead_server.domain.runtime_config import RuntimeModel
from llamastead_server.domain.sessions import Sessions, SessionTurn
from llamastead_server.domain.sources import Source


class SourceFinder(Protocol):
    """Finds the passages for a question."""

    async def find(
        self,
        ref: ProjectRef,
        question: str,
        *,
        database: str | None,
        strategy: str | None,
        top_k: int | None,
        score_threshold: float | None,
    ) -> Sequence[Source]:
        """Passages, best first; `None` leaves a setting to the project. A database never filled has none.

        Raises:
            NotFound: The project configures no such database or strategy.
        """
        ...


@dataclass(frozen=True, slots=True)
class SessionChoice:
    """Which session a turn belongs to: a given one, by default a new one, or none."""

    session_id: str | None = None
    stateless: bool = False


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The engine admitted the prompt: nothing that a request can do wrong is left.

    Attributes:
        session_id: The turn's session; None when stateless.
        model: The model's name as the request or the project has it.
        sources: Passages the model was given, best first.
        trimmed: What was left out of the prompt to make it fit.
    """

    session_id: str | None
    model: str
    sources: Sequence[Source]
    trimmed: Trimmed


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer."""

    text: str
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The answer ended, and is in the session's history."""

    reason: FinishReason
    usage: Usage


class ChatTurn:
    """A running turn. Iterating gives `TextDelta`s, then one `TurnFinished`.

    Attributes:
        started: What is known before the first token.
    """

    def __init__(
        self,
        started: TurnStarted,
        events: AsyncIterator[GenerationEvent],
        session: SessionTurn,
        new: Sequence[Message],
        deadline: Deadline,
    ) -> None:
        self.started = started
        self._events = events
        self._session = session
        self._new = new
        self._deadline = deadline

    async def __aiter__(self) -> AsyncIterator[TextDelta | TurnFinished]:
        answer: list[str] = []
        while True:
            event = await next_event(self._events, self._deadline)
            if isinstance(event, Delta):
                answer.append(event.text)
                yield TextDelta(event.text, event.logprobs)
            elif isinstance(event, Finished):
                # Who has seen the end of an answer finds it in the history.
                await self._session.commit([*self._new, Message("assistant", "".join(answer))])
                yield TurnFinished(event.reason, event.usage)
                return


class ChatTurns:
    """Runs chat turns.

    Args:
        projects: The projects' configurations.
        models: The installed models.
        sources: Retrieval.
        sessions: The histories.
        defaults: Gives the parameters that a model's requests take where neither they nor their project say.
        request_timeout: Gives the seconds one turn may take, from its arrival to its last token.
    """

    def __init__(
        self,
        projects: ProjectStore,
        models: ModelRegistry,
        sources: SourceFinder,
        sessions: Sessions,
        *,
        defaults: Callable[[str], Mapping[str, Any]] = lambda model: {},
        request_timeout: Callable[[], float] = lambda: 600.0,
    ) -> None:
        self._projects = projects
        self._models = models
        self._sources = sources
        self._sessions = sessions
        self._defaults = defaults
        self._request_timeout = request_timeout

    @asynccontextmanager
    async def start(
        self,
        ref: ProjectRef | None,
        request: ChatRequest,
        session: SessionChoice = SessionChoice(),
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[ChatTurn]:
        """Runs a turn while the block runs; leaving it early frees the engine and keeps nothing.

        Args:
            ref: The project; `None` runs a turn of an installed model, stateless and without retrieval.
            request: What is asked for.
            session: Which session the turn belongs to.
            timeout: Seconds the turn may take, if fewer than the server allows.

        Raises:
            InvalidRequest: The session's id is not valid, the prompt does not fit the model's window, or a field of
                retrieval is set without a project.
            NotFound: The project, the model or the database does not exist.
            Conflict: The project's configuration is broken.
            Overloaded: The engine's or the session's queue is full.
            EngineFailed: The engine's worker died.
            RequestTimeout: The time is over, also while iterating.
        """
        limit = self._request_timeout()
        deadline = Deadline(limit if timeout is None else min(timeout, limit))
        async with AsyncExitStack() as stack:
            async with deadline.held():
                turn = await self._begin(stack, ref, request, session, deadline)
            yield turn

    async def _begin(
        self,
        stack: AsyncExitStack,
        ref: ProjectRef | None,
        request: ChatRequest,
        choice: SessionChoice,
        deadline: Deadline,
    ) -> ChatTurn:
        config = None if ref is None else await self._projects.config(ref)
        if config is None:
            request.check_needs_no_project()
        model = self._model(config, request.model or None)
        source = f"runtime.models[{model.name}].model_api_parameters"
        defaults = self._defaults(self._models.resolve(model.model).name)
        parameters = request.parameters({**defaults, **model.model_api_parameters}, source=source)
        configured: Sequence[Message] = []
        sources: Sequence[Source] = []
        session = SessionTurn(None, ())
        if ref is not None and config is not None:
            if request.system is None:
                configured = prompts.fill(config.prompt_messages(model), request.variables)
            sources = await self._find(ref, config, model, request)
            session = await stack.enter_async_context(
                self._sessions.turn(ref, choice.session_id, stateless=choice.stateless)
            )
        turns, new = session.conversation(request.turns)
        engine = await stack.enter_async_context(self._models.lease(model.model))
        prompt = Prompt.assemble(configured, request.system, sources, turns)
        prompt.check_size(engine)
        if not prompt.surely_fits(engine, parameters.token_limit):
            prompt = await prompt.fit(engine, parameters.token_limit)
        prompt, events = await _generate(stack, engine, request, parameters, prompt)
        started = TurnStarted(session.session_id, request.model or model.name, prompt.sources, prompt.trimmed)
        return ChatTurn(started, events, session, new, deadline)

    def _model(self, config: ProjectConfig | None, name: str | None) -> RuntimeModel:
        if config is None:
            return self._installed(name)
        try:
            return config.runtime.select(name)
        except NotFound as error:
            # A request may also name an installed model that the project does not configure.
            try:
                self._models.resolve(name)
            except ModelNotFound:
                raise ModelNotFound(error.message, details=error.details) from None
            return self._installed(name)

    def _installed(self, name: str | None) -> RuntimeModel:
        name = name or self._models.default_model or self._models.resolve(None).name
        return RuntimeModel(name=name, model=name)

    async def _find(
        self, ref: ProjectRef, config: ProjectConfig, model: RuntimeModel, request: ChatRequest
    ) -> Sequence[Source]:
        enabled = model.rag_enabled if request.rag_enabled is None else request.rag_enabled
        database = request.database or model.target_database
        # Without databases there is nothing to find, also for LlamaFarm's command line, which always sends
        # `rag_enabled`; a database that was named must exist.
        if enabled is False or not (config.rag.databases or database):
            return []
        question = next((message.content for message in reversed(request.turns) if message.role == "user"), "")
        if not question.strip():
            return []
        return await self._sources.find(
            ref,
            question,
            database=config.rag.database(database).name,
            strategy=request.rag_retrieval_strategy or None,
            top_k=request.rag_top_k,
            score_threshold=request.rag_score_threshold,
        )


async def _generate(
    stack: AsyncExitStack, engine: Engine, request: ChatRequest, parameters: Parameters, prompt: Prompt
) -> tuple[Prompt, AsyncIterator[GenerationEvent]]:
    """Opens the stream of events and waits until the engine has admitted the prompt."""
    while True:
        async with AsyncExitStack() as attempt:
            generation = engine.generate(request.generation(prompt.messages, parameters))
            events = await attempt.enter_async_context(
                aclosing(cast("AsyncGenerator[GenerationEvent, None]", generation))
            )
            try:
                await started(events)
            except ContextLengthExceeded:
                # The template may have added more than was reckoned with.
                fitted = await prompt.fit(engine, parameters.token_limit)
                if fitted.trimmed == prompt.trimmed:
                    raise
                prompt = fitted
            else:
                await stack.enter_async_context(attempt.pop_all())
                return prompt, events
