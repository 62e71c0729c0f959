"""Puts texts into a project of the server under test, as a user would, and says how long that took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.http_client import HttpConnection
from benchmarks.stack import Stack

_BOUNDARY = "llamastead-benchmark"


@dataclass(frozen=True, slots=True)
class Ingested:
    """What came of some files: chunks made, and the seconds it took to upload and to process them."""

    chunks: int
    upload_seconds: float
    process_seconds: float


def ingest(stack: Stack, project: str, dataset: str, files: Mapping[str, str]) -> Ingested:
    """Makes a dataset of the files in the project at the path `project` and processes it."""
    database = stack.ask("GET", f"{project}/datasets/strategies")["databases"][0]
    settings = {"name": dataset, "database": database, "data_processing_strategy": "universal_processor"}
    stack.ask("POST", f"{project}/datasets", settings)
    with HttpConnection(stack.port) as connection:
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        started = time.perf_counter()
        for name, text in files.items():
            body = _multipart(name, text.encode())
            connection.send(connection.request_bytes("POST", f"{project}/datasets/{dataset}/data", body, headers))
        uploaded = time.perf_counter()
        report = connection.ask("POST", f"{project}/datasets/{dataset}/process")
        processed = time.perf_counter()
    if report["processed_files"] != len(files):
        raise RuntimeError(f"not all files were processed: {report}")
    chunks = sum(file["chunks"] for file in report["details"])
    return Ingested(chunks, uploaded - started, processed - uploaded)


def _multipart(name: str, content: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: text/plain\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
