"""The chunks of a file, made of what the document reader cut."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePath

from llamastead_server.domain.datasets.files import FileRecord
from llamastead_server.domain.ports import Chunk, ParsedDocument


def document_chunks(record: FileRecord, document: ParsedDocument, start: int, end: int) -> Sequence[Chunk]:
    """Some chunks of a file, by position.

    Their ids follow from file and position, so that processing a file again overwrites them.
    """
    shared = {"document_type": PurePath(record.filename).suffix.lower().lstrip("."), **document.metadata}
    return [
        Chunk(
            id=_chunk_id(record, ordinal),
            dataset=record.dataset,
            file_hash=record.hash,
            filename=record.filename,
            ordinal=ordinal,
            text=piece.text,
            page=piece.page,
            metadata={**shared, **piece.metadata},
        )
        for ordinal, piece in enumerate(document.pieces[start:end], start)
    ]


def _chunk_id(record: FileRecord, ordinal: int) -> str:
    named = "\0".join([*record.project, record.dataset, record.hash, str(ordinal)])
    return hashlib.sha256(named.encode()).hexdigest()[:32]
