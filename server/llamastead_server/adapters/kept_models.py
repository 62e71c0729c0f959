"""The loaded models that do not make room for others."""

from __future__ import annotations

from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.names import ProjectRef


class KeptModels:
    """Which models projects keep loaded, as each one's entry said when it was last used.

    Implements `domain.ports.ProjectResource`: what a deleted project kept makes room again.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[ProjectRef, str], str] = {}

    def __contains__(self, model: object) -> bool:
        return model in self._models.values()

    def hear(self, keeper: Keeper, model: str) -> None:
        """Notes whether an entry keeps the model that it uses."""
        place = keeper.project, keeper.entry
        if keeper.keeps:
            self._models[place] = model
        else:
            self._models.pop(place, None)

    def forget(self, model: str) -> None:
        """Nobody keeps the model any more, until it is used again by one who does."""
        self._models = {place: kept for place, kept in self._models.items() if kept != model}

    async def delete_project(self, ref: ProjectRef) -> None:
        """Forgets what a project keeps."""
        self._models = {place: kept for place, kept in self._models.items() if place[0] != ref}
