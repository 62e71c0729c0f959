"""What clients send when they upload: forms and typed streams, read as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from llamastead.v1 import dataset_pb2 as pb
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.services.multipart import MalformedBody
from llamastead_server.services.plain import from_struct

_T = TypeVar("_T")


async def first_of(requests: AsyncIterator[_T]) -> _T:
    """The first message; an upload without one is refused."""
    try:
        return await anext(requests)
    except StopAsyncIteration:
        raise InvalidRequest("The upload is empty: it has no first message.") from None


async def prepended(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`first`, then the rest."""
    yield first
    async for data in rest:
        yield data


async def chunks_of(requests: AsyncIterator[pb.UploadFileRequest]) -> AsyncIterator[bytes]:
    """The content of a single file."""
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequest("Only the first message may carry the header; the others carry chunks.")
        yield request.chunk


def parsed_overrides(text: str | None) -> Mapping[str, Any] | None:
    """The form field `parser_overrides`."""
    if text is None or not text.strip():
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest('parser_overrides is not JSON: send an object, such as {"chunk_size": 200}.') from None
    if not isinstance(parsed, dict):
        raise InvalidRequest('parser_overrides is not an object: send one, such as {"chunk_size": 200}.')
    return parsed


class TypedFiles:
    """Several files of a typed stream, one after another.

    Args:
        requests: The messages after the first.
    """

    def __init__(self, requests: AsyncIterator[pb.UploadFilesRequest]) -> None:
        self._requests = requests
        self._next: pb.FileHeader | None = None
        self._ended = False

    async def next(self) -> pb.FileHeader | None:
        """Passes over what is left of a file and returns the next one's header; `None` at the end.

        Raises:
            MalformedBody: The stream carries something else.
        """
        async for _ in self.content():
            pass
        header, self._next = self._next, None
        return header

    async def content(self) -> AsyncIterator[bytes]:
        """The content of the file whose header came last."""
        while self._next is None and not self._ended:
            try:
                request = await anext(self._requests)
            except StopAsyncIteration:
                self._ended = True
                return
            match request.WhichOneof("part"):
                case "chunk":
                    yield request.chunk
                case "file":
                    self._next = request.file
                case _:
                    raise MalformedBody("Only the first message may name the dataset; the others carry files.")


def overrides_of(header: pb.UploadFileHeader | pb.FileHeader) -> Mapping[str, Any] | None:
    """The parser settings of a typed upload."""
    return from_struct(header.parser_overrides) if header.HasField("parser_overrides") else None
