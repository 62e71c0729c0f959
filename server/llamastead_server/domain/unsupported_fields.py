"""OpenAI's and LlamaFarm's chat fields that this server has no use for: taken as labels, or refused with the reason.

A field whose value changes nothing is taken; one that asks for what the server does not do is never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamastead_server.domain.errors import InvalidRequest

_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none",),
}
"""Values that ask for what the server does anyway."""

_REASONS: Mapping[str, str] = {
    "modalities": 'the models here write text only: leave it out, or give ["text"]',
    "audio": "the models here do not speak; leave it out",
    "prediction": "predicted outputs are not supported; leave it out",
    "service_tier": "there is one tier: leave it out, or give `auto`",
    "store": "completions are not stored; continue a session by X-Session-ID instead",
    "reasoning_effort": "it can't be graded here: use `think`, or give `none`",
    "thinking_budget": "thinking can't be limited by tokens here: use `max_tokens`, or `think: false`",
    "verbosity": "it can't be set here: say in a system message how long the answer should be",
    "web_search_options": "the server searches no web; give it documents and `rag_enabled`",
    "functions": "use `tools`, which replaced it",
    "function_call": "use `tool_choice`, which replaced it",
}


def refuse_unsupported(given: Mapping[str, Any]) -> None:
    """Checks the fields that have no effect.

    Raises:
        InvalidRequest: One of them asks for what the server does not do.
    """
    for name, reason in _REASONS.items():
        value = given.get(name)
        if value is not None and value not in _HARMLESS.get(name, ()):
            raise InvalidRequest(f"{name} is not supported: {reason}.", details={"field": name})
