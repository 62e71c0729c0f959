"""Tools in words, in the system prompt and in the conversation, for templates that have no place for them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llamastead_server.domain.chat.tools import Tool
from llamastead_server.domain.models.generation import Message


def description(tools: Sequence[Tool]) -> str:
    """The part of the system prompt that offers the tools; empty without tools."""
    if not tools:
        return ""
    functions = "\n".join(json.dumps(tool.plain()["function"], ensure_ascii=False) for tool in tools)
    return (
        "You can call the functions below. To call one, answer with nothing but a block of this form, one block for "
        'each call:\n<tool_call>\n{"name": "<name>", "arguments": {<arguments>}}\n</tool_call>\n'
        f"Their results follow as <tool_response> blocks. The functions:\n{functions}"
    )


def as_text(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation with calls and their results as text; results that follow one another are one message."""
    written: list[Message] = []
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            if written and written[-1].role == "user" and written[-1].content.endswith("</tool_response>"):
                text = f"{written.pop().content}\n{text}"
            written.append(Message("user", text))
        elif message.tool_calls:
            blocks = [
                f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n</tool_call>'
                for call in message.tool_calls
            ]
            written.append(Message(message.role, "\n".join([*([message.content] if message.content else []), *blocks])))
        else:
            written.append(message)
    return written
