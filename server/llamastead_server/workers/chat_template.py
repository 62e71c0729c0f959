"""Conversations rendered by the model's own chat template, with control tokens only where the template puts them.

Message contents may hold the text of a control token, typed by a user or found in a document. Before
rendering, each such text is replaced by a marker; afterwards the rendered prompt is cut at the control tokens
that the template wrote, and the markers become plain text again. The pieces say which is which, so that an
engine encodes the former as tokens and the latter as ordinary characters, exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamastead_server.domain.chat.tool_prompt import as_text
from llamastead_server.domain.models.generation import Message

LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""For Llama 3 models whose file carries no template."""

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] | trim + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For models that know no header tokens either."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_MARKUP = re.compile(r"[<\[]\S+[>\]]")


class TemplateRefused(ValueError):
    """The template cannot render this conversation; the message is its own."""


class ControlTokens:
    """The token texts of a vocabulary that steer the model instead of being read by it.

    Args:
        control: Text to id of the control tokens.
        user_defined: Text to id of the tokens that every tokeniser pass recognises; those that look like
            markup, such as `<tool_call>`, steer the model too.
    """

    def __init__(self, control: Mapping[str, int], user_defined: Mapping[str, int]) -> None:
        markup = {text: token for text, token in user_defined.items() if _MARKUP.fullmatch(text)}
        self._ids = {text: token for text, token in {**control, **markup}.items() if text}
        self._always_recognised = frozenset(markup)
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(text) for text in longest_first)) if self._ids else None
        self._protected = re.compile("|".join(re.escape(text) for text in [*longest_first, _OPEN, _CLOSE]))

    def __contains__(self, text: str) -> bool:
        return text in self._ids

    def protect(self, text: str, hidden: list[str]) -> str:
        """Replaces what must stay text by markers, appending the originals to `hidden`."""

        def hide(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"{_OPEN}{len(hidden) - 1}{_CLOSE}"

        return self._protected.sub(hide, text)

    def pieces(self, rendered: str, hidden: Sequence[str]) -> list[str | int]:
        """Cuts a rendered prompt into token ids and plain text to encode without control tokens."""
        pieces: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(rendered) if self._pattern else ():
            pieces.extend(self._plain(rendered[end : match.start()], hidden))
            pieces.append(self._ids[match.group()])
            end = match.end()
        pieces.extend(self._plain(rendered[end:], hidden))
        return pieces

    def _plain(self, text: str, hidden: Sequence[str]) -> list[str]:
        """Puts hidden texts back, cutting through those that a tokeniser would recognise in any mode."""
        runs = [""]
        end = 0
        for match in _MARKER.finditer(text):
            original = hidden[int(match.group(1))]
            runs[-1] += text[end : match.start()]
            if original in self._always_recognised:
                runs[-1] += original[:1]
                runs.append(original[1:])
            else:
                runs[-1] += original
            end = match.end()
        runs[-1] += text[end:]
        return [run for run in runs if run]


class ChatTemplate:
    """A compiled chat template; it runs in a sandbox, because it comes with the model's files.

    Args:
        source: Jinja source; `None` chooses a fallback that fits the vocabulary.
        control_tokens: The vocabulary's control tokens.
        bos_token: Text of the token that begins a prompt.
        eos_token: Text of the token that ends it.

    Raises:
        TemplateRefused: The source is not valid Jinja.
    """

    def __init__(self, source: str | None, control_tokens: ControlTokens, bos_token: str, eos_token: str) -> None:
        if source is None:
            source = LLAMA_3_TEMPLATE if "<|start_header_id|>" in control_tokens else PLAIN_TEMPLATE
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
            self._variables = {node.name for node in environment.parse(source).find_all(jinja2.nodes.Name)}
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"The model's chat template is not valid: {error}") from None
        self._tokens = control_tokens
        self._special = {"bos_token": bos_token, "eos_token": eos_token}

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return "tools" in self._variables

    def pieces(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), thinking: bool | None = None
    ) -> list[str | int]:
        """Renders a conversation up to where the assistant's answer begins.

        A template without a system role gets the system text at the head of the first user message; one without
        tools gets earlier calls and their results as text.

        Args:
            messages: The conversation.
            tools: Functions the model may call, in OpenAI's form.
            thinking: Whether the model thinks before it answers; `None` leaves it to the template.

        Raises:
            TemplateRefused: The template does not take this conversation, for example two user turns in a row, or
                has no place for tools or thinking.
        """
        if tools and not self.takes_tools:
            raise TemplateRefused(
                "its chat template has no place for tools. Leave out tools, use a model that calls functions, or set "
                "`tool_call_strategy: prompt_based` for it in the project."
            )
        if thinking and "enable_thinking" not in self._variables:
            raise TemplateRefused("its chat template knows no thinking. Leave out `think`.")
        hidden: list[str] = []
        written = messages if self.takes_tools else as_text(messages)
        protected: list[dict[str, Any]] = [self._protected(_plain(message), hidden) for message in written]
        values: dict[str, Any] = {"tools": self._protected(list(tools), hidden) or None}
        if thinking is not None:
            values["enable_thinking"] = thinking
        try:
            rendered = self._render(protected, values)
        except TemplateRefused:
            folded = _fold_system(protected)
            if folded is None:
                raise
            rendered = self._render(folded, values)
        return self._tokens.pieces(rendered, hidden)

    def _protected(self, value: Any, hidden: list[str]) -> Any:
        if isinstance(value, str):
            return self._tokens.protect(value, hidden)
        if isinstance(value, Mapping):
            return {self._protected(key, hidden): self._protected(entry, hidden) for key, entry in value.items()}
        return [self._protected(entry, hidden) for entry in value] if isinstance(value, list) else value

    def _render(self, messages: list[dict[str, Any]], values: Mapping[str, Any]) -> str:
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, documents=None, **values, **self._special
            )
        except TemplateRefused:
            raise
        except Exception as error:
            # A template is a program from a file: whatever it raises is its refusal, never our failure.
            raise TemplateRefused(f"The model's chat template failed: {error}") from error


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates read it: arguments are an object, and keys that mean nothing are absent."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fold_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    if not system or not rest or rest[0]["role"] != "user":
        return None
    rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateRefused(f"The model's chat template refuses this conversation: {message}")


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
