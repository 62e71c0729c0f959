"""A gateway with scripted servicers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway import Running, ScriptedChat, ScriptedUploads, running


@pytest.fixture
def chat() -> ScriptedChat:
    return ScriptedChat()


@pytest.fixture
def uploads() -> ScriptedUploads:
    return ScriptedUploads()


@pytest.fixture
async def gateway(chat: ScriptedChat, uploads: ScriptedUploads) -> AsyncIterator[Running]:
    async with running([chat, uploads]) as started:
        yield started
