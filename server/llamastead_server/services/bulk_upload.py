"""Storing several files of one request, of which some may fail."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from llamastead.v1 import dataset_pb2 as pb
from llamastead_server.domain import names
from llamastead_server.domain.datasets.datasets import Datasets
from llamastead_server.domain.errors import LlamasteadError
from llamastead_server.domain.names import ProjectRef
from llamastead_server.services.dataset_messages import bulk_file_message
from llamastead_server.services.multipart import MalformedBody

_log = logging.getLogger("llamastead.datasets")
_MOST_FILES = 100


class BulkUpload:
    """The files of one request, as they are stored one after another.

    Args:
        datasets: Where they go.
        project: The project.
        dataset: The dataset.
    """

    def __init__(self, datasets: Datasets, project: ProjectRef, dataset: str) -> None:
        self._datasets = datasets
        self.project = project
        self.dataset = dataset
        self._files: list[pb.UploadedFile] = []

    async def add(
        self,
        filename: str,
        content_type: str | None,
        content: AsyncIterator[bytes],
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores one file, or notes why it can't be stored.

        Raises:
            MalformedBody: The body can't be read on.
        """
        if len(self._files) >= _MOST_FILES:
            self._failed(filename, f"A request may carry {_MOST_FILES} files: send this one in another.")
            return
        try:
            added = await self._datasets.add_file(
                self.project, self.dataset, filename, content_type, content, lambda: overrides
            )
        except MalformedBody:
            raise
        except LlamasteadError as error:
            self._failed(filename, error.message)
        else:
            self._files.append(bulk_file_message(added))

    def answer(self) -> pb.UploadFilesResponse:
        """How it went."""
        count = Counter(file.status for file in self._files)
        status = next((status for status in ("uploaded", "skipped", "failed") if count[status]), "uploaded")
        return pb.UploadFilesResponse(
            uploaded=count["uploaded"],
            skipped=count["skipped"],
            failed=count["failed"],
            status=status,
            files=self._files,
        )

    def _failed(self, filename: str, reason: str) -> None:
        _log.info("a file of a bulk upload into %s/%s was refused: %s", self.project, self.dataset, reason)
        self._files.append(pb.UploadedFile(filename=names.file_name(filename), status="failed", error=reason))
