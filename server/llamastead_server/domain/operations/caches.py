"""Temporary data that can be deleted while the server runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from llamastead_server.domain.errors import InvalidRequest

ClearCache = Callable[[], Awaitable[int]]
"""Empties one cache and gives the bytes that this freed."""

_ALL = "all"


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was deleted."""

    caches: tuple[str, ...]
    freed_bytes: int


class Caches:
    """The caches by name.

    Args:
        caches: What empties each.
    """

    def __init__(self, caches: Mapping[str, ClearCache]) -> None:
        self._caches = dict(caches)

    async def clear(self, name: str | None) -> Cleared:
        """Empties one cache, or all.

        Raises:
            InvalidRequest: There is no such cache.
        """
        wanted = name or _ALL
        if wanted != _ALL and wanted not in self._caches:
            raise InvalidRequest(
                f"cache_type must be one of {', '.join([*self._caches, _ALL])}.", details={"field": "cache_type"}
            )
        chosen = tuple(self._caches) if wanted == _ALL else (wanted,)
        freed = 0
        for each in chosen:
            freed += await self._caches[each]()
        return Cleared(chosen, freed)
