"""Who wants a model to stay loaded."""

from __future__ import annotations

from dataclasses import dataclass

from llamastead_server.domain.names import ProjectRef


@dataclass(frozen=True, slots=True)
class Keeper:
    """An entry of a project's `runtime.models` that uses a model.

    Attributes:
        project: The project.
        entry: The entry's name.
        keeps: Whether it says `keep_loaded`.
    """

    project: ProjectRef
    entry: str
    keeps: bool
