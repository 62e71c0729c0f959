"""What a collection looks like in Milvus: its name, its fields and the rows made of chunks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamastead_server.adapters.milvus_filter import ENCODED_LENGTH, NO_PAGE, document_type, encode, filterable
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk

_TEXT_BYTES = 65_535
_META_BYTES = 60_000
INDEXED = ("vector", "sparse")
"""The fields that have an index."""

_CHUNK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def project_prefix(project: ProjectRef) -> str:
    """What the names of all of a project's collections begin with."""
    return f"p{_digest(str(project))}_"


def collection_name(project: ProjectRef, database: str) -> str:
    """The collection of a project's database, as digests: Milvus names allow less than ours."""
    return f"{project_prefix(project)}{_digest(database)}"


def schema(client: Any, dimension: int, description: str) -> Any:
    """The fields; Milvus computes the BM25 vector from the text with its English analyzer."""
    from pymilvus import DataType, Function, FunctionType

    made = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    for name in ("dataset", "file_hash", "document_type", "filename"):
        made.add_field(name, DataType.VARCHAR, max_length=ENCODED_LENGTH)
    made.add_field("page", DataType.INT64)
    made.add_field("ordinal", DataType.INT64)
    made.add_field(
        "text", DataType.VARCHAR, max_length=_TEXT_BYTES, enable_analyzer=True, analyzer_params={"type": "english"}
    )
    made.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    made.add_field("meta", DataType.JSON)
    made.add_function(
        Function(
            name="bm25", function_type=FunctionType.BM25, input_field_names=["text"], output_field_names=["sparse"]
        )
    )
    return made


def indexes(client: Any) -> Any:
    """Exact search for vectors, an inverted index for keywords."""
    made = client.prepare_index_params()
    made.add_index("vector", index_type="FLAT", metric_type="COSINE")
    made.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    return made


def row(chunk: Chunk, vector: Sequence[float]) -> dict[str, Any]:
    """A chunk as Milvus stores it."""
    meta = filterable(chunk.metadata)
    while sum(len(key) + len(str(value)) + 8 for key, value in meta.items()) > _META_BYTES:
        meta.popitem()
    return {
        "id": chunk.id,
        "dataset": encode(chunk.dataset),
        "file_hash": encode(chunk.file_hash),
        "document_type": encode(document_type(chunk)),
        "filename": encode(chunk.filename),
        "page": NO_PAGE if chunk.page is None else chunk.page,
        "ordinal": chunk.ordinal,
        "text": searchable(chunk.text),
        "vector": as_vector(vector),
        "meta": meta,
    }


def searchable(text: str) -> str:
    """Text as the keyword index takes it: cut to 65,535 bytes, and without NULs, where the analyzer would stop."""
    return text.replace("\0", " ").encode(errors="replace")[:_TEXT_BYTES].decode(errors="ignore")


def as_vector(vector: Sequence[float]) -> npt.NDArray[np.float32]:
    """The vector as pymilvus sends it fastest; no copy if it is a float32 buffer."""
    return np.asarray(vector, dtype=np.float32)


def id_literal(chunk_id: str) -> str:
    """A chunk id inside an expression."""
    if not _CHUNK_ID.fullmatch(chunk_id):
        raise ValueError(f"chunk id {chunk_id!r} is not one that this server makes")
    return f'"{chunk_id}"'


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
