"""Models on their way out of memory."""

from __future__ import annotations

import asyncio

from llamastead_server.adapters.loaded_model import LoadedModel
from llamastead_server.domain.errors import Conflict


class Departures:
    """Takes models out of the table of loaded ones; who needs one of them waits for its departure.

    Args:
        loaded: The table.
    """

    def __init__(self, loaded: dict[str, LoadedModel]) -> None:
        self._loaded = loaded
        self._leaving: dict[str, tuple[LoadedModel, asyncio.Task[bool]]] = {}

    async def leave(self, name: str, *, seconds: float, force: bool) -> None:
        """Ends a model's worker when it has come to rest, or after `seconds` in any case if `force`.

        Raises:
            Conflict: It did not come to rest, and stays.
        """
        loaded = self._loaded.pop(name)
        departure = asyncio.create_task(self._depart(name, loaded, seconds, force))
        self._leaving[name] = loaded, departure
        # Who asked may go away; the model leaves all the same.
        if not await asyncio.shield(departure):
            raise Conflict(f"The model {name!r} is in use; try again when its requests have ended.", retry_after=5.0)

    async def wait(self, name: str | None = None) -> bool:
        """Waits for the end of one departure, or of all; tells whether there was any."""
        leaving = [task for key, (_, task) in self._leaving.items() if name in (None, key)]
        if leaving:
            await asyncio.wait(leaving)
        return bool(leaving)

    async def close(self) -> None:
        """Ends what is still leaving, whoever uses it."""
        await asyncio.gather(*(loaded.worker.stop() for loaded, _ in self._leaving.values()))
        await self.wait()

    async def _depart(self, name: str, loaded: LoadedModel, seconds: float, force: bool) -> bool:
        try:
            if not await loaded.drain(seconds) and not force:
                self._loaded[name] = loaded
                return False
            await loaded.worker.stop()
            return True
        finally:
            del self._leaving[name]
