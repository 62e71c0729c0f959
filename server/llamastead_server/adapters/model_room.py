"""Room in memory for one more model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from llamastead_server.adapters.departures import Departures
from llamastead_server.adapters.kept_models import KeptModels
from llamastead_server.adapters.loaded_model import LoadedModel
from llamastead_server.domain.errors import Overloaded, Unavailable
from llamastead_server.domain.models.generation import ModelCard


class ModelRoom:
    """Unloads models at rest, the least recently used first, where another one needs their place.

    Args:
        loaded: The table of loaded models.
        departures: Those that leave it already.
        kept: Those that stay, whether they are used or not.
        max_loaded: Models held in memory at once.
    """

    def __init__(
        self, loaded: dict[str, LoadedModel], departures: Departures, kept: KeptModels, max_loaded: int
    ) -> None:
        self._loaded = loaded
        self._departures = departures
        self._kept = kept
        self._max_loaded = max_loaded
        self._awaited: Counter[str] = Counter()

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Keeps a model, once it is loaded, for who waits for it while the block runs.

        Without that, two models that are wanted at once would push each other out before anybody got one, for ever.
        """
        self._awaited[name] += 1
        try:
            yield
        finally:
            self._awaited[name] -= 1

    async def make(self, card: ModelCard, needed: int, free: Callable[[], Awaitable[int | None]]) -> None:
        """Makes room for a model of `needed` bytes in the memory whose free bytes `free` gives, if it knows them.

        Raises:
            Overloaded: What fills the memory is in use, or kept by projects.
            Unavailable: The model does not fit into it.
        """
        while True:
            await self._departures.wait()
            available = await free()
            crowded = len(self._loaded) >= self._max_loaded
            if not crowded and (available is None or needed <= available):
                return
            # What is too full is one memory: a model in the other one would go for nothing.
            rivals = {
                name: loaded
                for name, loaded in self._loaded.items()
                if crowded or loaded.engine.card.engine == card.engine
            }
            idle = [
                (loaded.used, name)
                for name, loaded in rivals.items()
                if not loaded.in_use and not self._awaited[name] and name not in self._kept
            ]
            if idle:
                await self._loaded.pop(min(idle)[1]).worker.stop()
            elif rivals:
                kept = ", ".join(name for name in rivals if name in self._kept)
                because = f" Projects keep {kept} by keep_loaded, until it is unloaded." if kept else ""
                raise Overloaded(
                    f"The model {card.name!r} has to wait for room: {', '.join(rivals)} fill it and are in use or "
                    f"kept.{because}",
                    retry_after=5.0,
                )
            else:
                kind = "GPU " if card.engine == "exllamav2" else ""
                raise Unavailable(
                    f"The model {card.name!r} does not fit: it needs {needed >> 20} MiB, and "
                    f"{(available or 0) >> 20} MiB of {kind}memory are free."
                )
