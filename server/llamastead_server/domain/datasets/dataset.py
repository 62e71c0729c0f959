"""What a dataset is to those who ask for it, and what becomes of a file that is added to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain.config.project import DatasetConfig
from llamastead_server.domain.datasets.files import FileRecord


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset's settings and its files, in the order they were added."""

    config: DatasetConfig
    files: Sequence[FileRecord]

    @property
    def auto_process(self) -> bool:
        """Whether files are processed as soon as they are uploaded."""
        return bool(self.config.auto_process)


@dataclass(frozen=True, slots=True)
class AddedFile:
    """A file that was uploaded; `skipped` when the dataset held the same content before."""

    record: FileRecord
    skipped: bool


Overrides = Callable[[], Mapping[str, Any] | None]
"""Settings that replace those of a file's parser; `None` leaves the file's as they are."""
