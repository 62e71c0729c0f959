"""Calls the server through LangChain's ChatOpenAI and prints what it decoded: `langchain_chat.py BASE_URL`."""

from __future__ import annotations

import asyncio
import json
import sys

from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI


async def main() -> None:
    """Makes the calls."""
    model = ChatOpenAI(
        model="default", base_url=sys.argv[1], api_key="unused", temperature=0, max_tokens=16, max_retries=0
    )
    messages = [SystemMessage("You are brief."), HumanMessage("Hello!")]
    whole = model.invoke(messages)
    streamed: AIMessageChunk | None = None
    for chunk in model.stream(messages, stream_usage=True):
        streamed = chunk if streamed is None else streamed + chunk
    later = await model.ainvoke(messages)
    assert streamed is not None
    found = {
        "whole": whole.content,
        "usage": whole.usage_metadata,
        "finish_reason": whole.response_metadata["finish_reason"],
        "text": streamed.content,
        "stream_usage": streamed.usage_metadata,
        "async_whole": later.content,
        "batch": [answer.content for answer in model.batch([messages, messages])],
    }
    print(json.dumps(found))


asyncio.run(main())
