"""The parser child: reads one document after another, cuts each into chunks and draws metadata from it.

Runs with an address space limit; its parent kills it when a document takes too long. It speaks frames (four
bytes of length, then JSON) over the socket whose descriptor it is started with.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamastead_server.domain.datasets.chunking import ChunkSettings, row_spans, spans
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.workers.child import configure_logging, die_with_parent, give_way
from llamastead_server.workers.documents import Reader
from llamastead_server.workers.extractors import extract, wants_outline
from llamastead_server.workers.reading import Part, Reading
from llamastead_server.workers.text_files import Unreadable

HEADER = struct.Struct("!I")
# A frame the server takes in one gulp; small, since its event loop decodes it.
_FRAME_CHARACTERS = 64_000
_PATIENCE = 12


def answer(reader: Reader, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the frames that answer one request: a header, the text if it was asked for, the pieces; or an error."""
    try:
        settings = ReadSettings.from_plain(request["settings"])
        reading = reader.read(
            Path(request["path"]),
            request["filename"],
            settings,
            outline=wants_outline(settings.extractors),
            attachment_seconds=request["attachment_seconds"],
        )
        reading.parts = [_clean(part) for part in reading.parts]
        pieces = list(_pieces(reading, settings.chunking))
        if not pieces:
            raise Unreadable("No text was found in the file.")
        facts, of_chunks = extract(reading, [piece["text"] for piece in pieces], settings.extractors)
        for piece, found in zip(pieces, of_chunks, strict=True):
            piece["metadata"] = {**piece["metadata"], **found}
        if reading.attachments:
            facts["attachments"] = reading.attachments
    except Unreadable as error:
        yield {"error": str(error)}
        return
    except MemoryError:
        yield {"error": "Reading the file takes more memory than one document may use."}
        return
    except RecursionError:
        yield {"error": "The file is nested too deeply."}
        return
    text = "\n\n".join(part.text for part in reading.parts) if request.get("with_text") else ""
    yield {
        "parser": reading.parser,
        "metadata": reading.metadata,
        "facts": facts,
        "extractors": [name for name, _ in settings.extractors],
        "characters": len(text),
        "pieces": len(pieces),
    }
    for start in range(0, len(text), _FRAME_CHARACTERS):
        yield {"text": text[start : start + _FRAME_CHARACTERS]}
    yield from _framed(pieces)


def _clean(part: Part) -> Part:
    # Soft hyphens stand inside words, which nobody would find.
    text = part.text.replace("\x00", "").replace("\u00ad", "").replace("\r\n", "\n")
    return Part(text, part.page, part.metadata, part.rows)


def _pieces(reading: Reading, settings: ChunkSettings) -> Iterator[dict[str, Any]]:
    offset = 0
    for part in reading.parts:
        for start, end in (row_spans if part.rows else spans)(part.text, settings):
            yield {
                "text": part.text[start:end],
                "page": part.page,
                "start": offset + start,
                "end": offset + end,
                "metadata": part.metadata,
            }
        offset += len(part.text) + len("\n\n")


def _framed(pieces: list[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    frame: list[dict[str, Any]] = []
    size = 0
    for piece in pieces:
        frame.append(piece)
        size += len(piece["text"]) + 200
        if size >= _FRAME_CHARACTERS:
            yield {"pieces": frame}
            frame, size = [], 0
    if frame:
        yield {"pieces": frame}


def main() -> None:
    """Serves requests until the socket closes."""
    options = argparse.ArgumentParser()
    options.add_argument("--socket-fd", type=int, required=True)
    options.add_argument("--memory", type=int, required=True)
    options.add_argument("--longest-text", type=int, required=True)
    given = options.parse_args()
    die_with_parent()
    give_way(_PATIENCE)
    configure_logging()
    resource.setrlimit(resource.RLIMIT_AS, (given.memory, given.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = Reader(given.longest_text)
    with socket.socket(fileno=given.socket_fd) as connection, connection.makefile("rwb") as stream:
        while header := stream.read(HEADER.size):
            request = json.loads(stream.read(HEADER.unpack(header)[0]))
            for frame in answer(reader, request):
                body = json.dumps(frame, ensure_ascii=True).encode()
                stream.write(HEADER.pack(len(body)) + body)
            stream.flush()


if __name__ == "__main__":
    main()
