"""One chat turn, from a request to its last token; every chat-like endpoint is a face of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain.chat import prompt as prompts
from llamastead_server.domain.chat.messages import unanswered
from llamastead_server.domain.chat.prompt import Prompt
from llamastead_server.domain.chat.request import ChatRequest, Parameters
from llamastead_server.domain.chat.sessions import Sessions, SessionTurn
from llamastead_server.domain.chat.source_finder import SourceFinder, find_sources
from llamastead_server.domain.chat.tools import MAX_TOOLS, Tool, ToolOffer
from llamastead_server.domain.chat.tools import checked as checked_tools
from llamastead_server.domain.chat.turn import ChatTurn, Choices, TurnStarted
from llamastead_server.domain.chat.window import ChatWindow
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.config.runtime import RuntimeModel
from llamastead_server.domain.deadline import Deadline
from llamastead_server.domain.errors import (
    Conflict,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    ValidationFailed,
)
from llamastead_server.domain.models.engine_stream import started
from llamastead_server.domain.models.generation import GenerationEvent, Message, ModelCard
from llamastead_server.domain.models.routing import ModelRouter
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Engine, ModelRegistry, ProjectStore
from llamastead_server.domain.retrieval.sources import Source


@dataclass(frozen=True, slots=True)
class SessionChoice:
    """Which session a turn belongs to: a given one, by default a new one, or none."""

    session_id: str | None = None
    stateless: bool = False


class ChatTurns:
    """Runs chat turns.

    Args:
        projects: The projects' configurations.
        models: The installed models.
        sources: Retrieval.
        sessions: The histories.
        router: What answers for a project's model. Default: the installed models alone.
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
        router: ModelRouter | None = None,
        defaults: Callable[[str], Mapping[str, Any]] = lambda model: {},
        request_timeout: Callable[[], float] = lambda: 600.0,
    ) -> None:
        self._projects = projects
        self._models = models
        self._sources = sources
        self._sessions = sessions
        self._router = router or ModelRouter(models)
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
            InvalidRequest: The session's id is not valid, the prompt does not fit the model's window, or the model
                does not take what is asked of it.
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
        found = self._router.find(model)
        defaults = self._defaults(found.name) if isinstance(found, ModelCard) else {}
        source = f"runtime.models[{model.name}].model_api_parameters"
        parameters = request.parameters({**defaults, **model.model_api_parameters}, source=source)
        offer = _offer(request, model)
        request.generation((), parameters, offer)
        configured: Sequence[Message] = []
        sources: Sequence[Source] = []
        session = SessionTurn(None, ())
        system = request.system
        if ref is not None and config is not None:
            configured, system = _instructions(request, config, model)
            sources = await find_sources(self._sources, ref, config, model, request)
            session = await stack.enter_async_context(
                self._sessions.turn(ref, choice.session_id, stateless=choice.stateless)
            )
        turns, new = session.conversation(request.turns)
        _check_answered(turns)
        engine = await stack.enter_async_context(self._router.lease(model, ref))
        window = ChatWindow.of(engine, request.n_ctx)
        prompt = Prompt.assemble(configured, system, sources, turns, offer)
        prompt.check_size(window)
        if not prompt.surely_fits(window, parameters.token_limit):
            prompt = await prompt.fit(window, parameters.token_limit)
        parameters = await window.limit(prompt, parameters)
        prompt, events = await _generate(stack, engine, request, parameters, prompt, offer)
        begun = TurnStarted(session.session_id, request.model or model.name, prompt.sources, prompt.trimmed)
        choices = Choices(engine, request, parameters, prompt.messages, offer)
        turn = ChatTurn(begun, events, choices, session, new, deadline)
        stack.push_async_callback(turn.close)
        return turn

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


def _instructions(
    request: ChatRequest, config: ProjectConfig, model: RuntimeModel
) -> tuple[Sequence[Message], str | None]:
    """The configured messages that the prompt begins with, and the request's system text that replaces them."""
    if request.system is not None and model.prompts_mode in (None, "api_replace"):
        return [], request.system
    configured = prompts.fill(config.prompt_messages(model), request.variables)
    if request.system is not None and model.prompts_mode == "api_supplement":
        configured = [*configured, Message("system", request.system)]
    return configured, None


def _offer(request: ChatRequest, model: RuntimeModel) -> ToolOffer:
    """The request's tools, the ones configured for the model, or both, as its `tools_mode` says."""
    own = () if model.tools_mode == "config_only" else request.tools
    tools = own
    if model.tools and (not own or model.tools_mode == "api_supplement"):
        names = {tool.name for tool in own}
        tools = [*(tool for tool in _configured_tools(request, model) if tool.name not in names), *own]
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            f"With the project's own there are {len(tools)} tools; at most {MAX_TOOLS} are accepted.",
            details={"field": "tools"},
        )
    return ToolOffer.of(
        tools,
        request.tool_choice,
        parallel=request.parallel_tool_calls,
        in_prompt=model.tool_call_strategy == "prompt_based",
    )


def _configured_tools(request: ChatRequest, model: RuntimeModel) -> Sequence[Tool]:
    filled = [
        prompts.fill_texts(tool.function.model_dump(include={"name", "description", "parameters"}), request.variables)
        for tool in model.tools
    ]
    try:
        return checked_tools(filled)
    except ValueError as error:
        raise Conflict(f"The project's runtime.models[{model.name}].tools is wrong: {error}.") from None


def _check_answered(turns: Sequence[Message]) -> None:
    call_id = unanswered(turns)
    if call_id is not None:
        reason = f"tool_call_id {call_id!r} answers no call of an assistant message before it"
        raise ValidationFailed(f"Invalid request: messages: {reason}.", details={"messages": reason})


async def _generate(
    stack: AsyncExitStack,
    engine: Engine,
    request: ChatRequest,
    parameters: Parameters,
    prompt: Prompt,
    offer: ToolOffer,
) -> tuple[Prompt, AsyncGenerator[GenerationEvent, None]]:
    """Opens the stream of events and waits until the engine has admitted the prompt."""
    while True:
        async with AsyncExitStack() as attempt:
            generation = engine.generate(request.generation(prompt.messages, parameters, offer))
            events = await attempt.enter_async_context(aclosing(generation))
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
