"""Calls the server through LiteLLM and prints what it decoded: `litellm_chat.py BASE_URL`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

REQUEST: dict[str, Any] = {
    "model": "openai/default",
    "api_base": sys.argv[1],
    "api_key": "unused",
    "messages": [{"role": "user", "content": "Hello!"}],
    "temperature": 0,
    "max_tokens": 16,
    "num_retries": 0,
}


def failure(**fields: Any) -> str:
    """The class of the error that a request ends in."""
    try:
        litellm.completion(**{**REQUEST, **fields})
    except Exception as error:
        return type(error).__name__
    return "none"


async def asynchronous() -> tuple[str, str]:
    """The same answer, whole and as a stream."""
    whole = await litellm.acompletion(**REQUEST)
    stream = await litellm.acompletion(**REQUEST, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    return whole.choices[0].message.content, text


def main() -> None:
    """Makes the calls."""
    whole = litellm.completion(**REQUEST)
    chunks = list(litellm.completion(**REQUEST, stream=True, stream_options={"include_usage": True}))
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    later_whole, later_text = asyncio.run(asynchronous())
    found = {
        "whole": whole.choices[0].message.content,
        "finish_reason": whole.choices[0].finish_reason,
        "total": whole.usage.total_tokens,
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "stream_total": usages[-1].total_tokens,
        "async_whole": later_whole,
        "async_text": later_text,
        "absent": failure(model="openai/absent-model"),
        "out_of_range": failure(temperature=9),
        "malformed": failure(messages=[{"role": "user", "content": "word " * 20_000}]),
    }
    print(json.dumps(found))


main()
