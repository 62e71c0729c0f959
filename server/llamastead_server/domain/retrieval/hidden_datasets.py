"""Datasets that hold files and are not configured any more: somebody took them out of llamafarm.yaml by hand.

Nothing of theirs is deleted for that, as the file may be in the middle of an edit. They are hidden from searches and
counts until they are configured again, which brings everything back, or deleted like any other dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.names import ProjectRef


class FileCounts(Protocol):
    """How many files datasets hold."""

    async def file_counts(self, ref: ProjectRef) -> Mapping[str, int]:
        """The datasets of a project that hold files, configured or not, and how many files each holds."""
        ...


@dataclass(frozen=True, slots=True)
class HiddenDataset:
    """A dataset that is hidden.

    Attributes:
        name: Its name.
        files: How many files it holds.
    """

    name: str
    files: int

    @property
    def message(self) -> str:
        """What is the matter and what can be done about it."""
        return (
            f"Dataset {self.name!r} is not in llamafarm.yaml, but {self.files} of its files and their chunks are still "
            "here, hidden from searches and counts. Add it to `datasets` again to bring them back, or delete them for "
            f"good with DELETE datasets/{self.name}."
        )


async def hidden_datasets(config: ProjectConfig, counts: FileCounts, ref: ProjectRef) -> Mapping[str, HiddenDataset]:
    """The project's hidden datasets by name."""
    configured = {dataset.name for dataset in config.datasets}
    return {
        name: HiddenDataset(name, files)
        for name, files in (await counts.file_counts(ref)).items()
        if name not in configured
    }
