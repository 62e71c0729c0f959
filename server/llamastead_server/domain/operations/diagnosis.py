"""Checks of what the server depends on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamastead_server.domain.errors import LlamasteadError

_log = logging.getLogger("llamastead.diagnosis")
_SECONDS = 10.0

Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: `status`, and a sentence that also says what to do."""

    status: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """A named question; any exception of `run` is an error."""

    name: str
    run: Callable[[], Awaitable[Finding]]


@dataclass(frozen=True, slots=True)
class Device:
    """A processor or an accelerator.

    Attributes:
        name: What it calls itself.
        kind: `cpu` or `cuda`.
        memory_total_bytes: Its memory.
        memory_free_bytes: The free part of it.
        usage: How busy it is, in percent; None when it does not tell.
    """

    name: str
    kind: str
    memory_total_bytes: int
    memory_free_bytes: int
    usage: float | None = None


class Diagnosis:
    """Runs the checks.

    Args:
        checks: What to ask.
        versions: Versions of the server and of what it is built on.
        devices: Lists processors and accelerators.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        versions: Mapping[str, str],
        devices: Callable[[], Awaitable[Sequence[Device]]],
    ) -> None:
        self._checks = tuple(checks)
        self.versions = dict(versions)
        self._devices = devices

    async def run(self) -> AsyncIterator[tuple[Check, Finding]]:
        """Asks everything at once and gives each answer as it comes; one that takes too long is an error."""
        asked = {asyncio.create_task(_ask(check)): check for check in self._checks}
        try:
            for answered in asyncio.as_completed(asked):
                yield await answered
        finally:
            for task in asked:
                task.cancel()

    async def devices(self) -> Sequence[Device]:
        """Processors and accelerators."""
        return await self._devices()


@dataclass
class Report:
    """All answers, in the order of their names."""

    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def failed(self) -> Sequence[str]:
        """Names of the checks that found an error."""
        return sorted(name for name, found in self.findings.items() if found.status == "error")


async def _ask(check: Check) -> tuple[Check, Finding]:
    try:
        async with asyncio.timeout(_SECONDS):
            return check, await check.run()
    except TimeoutError:
        return check, Finding("error", f"No answer within {_SECONDS:g} seconds.")
    except LlamasteadError as error:
        return check, Finding("error", error.message)
    except Exception as error:
        _log.error("the check of %s failed", check.name, exc_info=error)
        return check, Finding("error", "The check itself failed; the server's log tells why.")
