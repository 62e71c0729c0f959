"""Measures how fast /health/liveness answers while a 100 MB file is processed and 8 chats run.

`python -m tests.soak.liveness [--seconds 120] [--megabytes 100] [--chats 8]` starts a server of its own, probes it
every 20 ms, and prints the median, the 99th percentile and the longest time of an idle server and of a busy one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy
from fpdf import FPDF
from PIL import Image

from tests.running_server import RunningServer, running

PROJECT = "/v1/projects/my-org/heavy"
WORDS = ["llama", "barn", "gate", "river", "harvest", "tractor", "shepherd", "meadow", "fence", "orchard", "wool"]
IMAGE_BYTES = 5 << 20
LINES_PER_PAGE = 40


def book(size: int) -> bytes:
    """A PDF of about so many bytes: pages of text, no two alike, between pictures that do not compress."""
    document = FPDF()
    document.set_font("Helvetica", size=10)
    random = numpy.random.default_rng(1)
    side = math.isqrt(IMAGE_BYTES // 3)
    number = 0
    for _ in range(max(1, size // IMAGE_BYTES)):
        document.add_page()
        picture = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=numpy.uint8))
        document.image(picture, w=150)
        for _ in range(10):
            document.add_page()
            for _ in range(LINES_PER_PAGE):
                number += 1
                chosen = " and the ".join(WORDS[(number * step) % len(WORDS)] for step in (1, 3, 5, 7))
                document.cell(0, 6, f"Note {number} of the farm tells of the {chosen}.", new_x="LMARGIN", new_y="NEXT")
    return bytes(document.output())


def fill(url: str, content: bytes) -> None:
    """Uploads the file and has it processed."""
    with httpx.Client(base_url=url, timeout=600) as client:
        client.post(f"{PROJECT}/datasets/notes/data", files={"file": ("notes.pdf", content)}).raise_for_status()
        client.post(f"{PROJECT}/datasets/notes/process", params={"async_processing": True}).raise_for_status()


def chat(url: str) -> None:
    """Chats until it is ended."""
    body = {"messages": [{"role": "user", "content": "Tell me of the farm."}], "max_tokens": 200, "stream": True}
    with httpx.Client(base_url=url, timeout=600) as client:
        while True:
            path = "/v1/projects/default/quickstart/chat/completions"
            with client.stream("POST", path, json=body, headers={"X-No-Session": "true"}) as answer:
                for _ in answer.iter_raw():
                    pass


def probe(port: int, seconds: float, every: float = 0.02) -> Sequence[float]:
    """Milliseconds that each of many probes took; any that is not answered ends the measurement."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        connection.request("GET", "/health/liveness")
        answer = connection.getresponse()
        body = answer.read()
        took.append((time.perf_counter() - began) * 1000)
        assert (answer.status, json.loads(body)) == (200, {"status": "alive"}), body
        time.sleep(every)
    connection.close()
    return took


def loop_seconds(server: RunningServer) -> tuple[float, float]:
    """Seconds that the server's event loop has run, and has waited for a processor that others held."""
    assert server.process is not None
    ran, waited, _ = Path(f"/proc/{server.process.pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def summary(took: Sequence[float]) -> str:
    """The figures of a measurement."""
    ordered = sorted(took)
    high = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return (
        f"{len(took)} probes, p50 {statistics.median(ordered):.1f} ms, p99 {high:.1f} ms, max {ordered[-1]:.1f} ms, "
        f"{sum(each > 50 for each in took)} over 50 ms"
    )


def busy(server: RunningServer, seconds: float, content: bytes, chats: int) -> Sequence[float]:
    """Probes the server under the load."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.post("/v1/projects/my-org", json={"name": "heavy", "config_template": "rag"}).raise_for_status()
        client.post(f"{PROJECT}/datasets", json={"name": "notes", "database": "main_db"}).raise_for_status()
    # Processes of their own, so that this one measures the server and not itself.
    spawn = multiprocessing.get_context("spawn")
    load = [spawn.Process(target=fill, args=(server.url, content), daemon=True)]
    load += [spawn.Process(target=chat, args=(server.url,), daemon=True) for _ in range(chats)]
    for process in load:
        process.start()
    try:
        return probe(server.port, seconds)
    finally:
        for process in load:
            process.kill()
            process.join()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--chats", type=int, default=8)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), "--example", "quickstart_rag") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        print("idle:", summary(probe(server.port, 10)), flush=True)
        content = book(options.megabytes << 20)
        print(f"the file has {len(content) / 2**20:.0f} MB", flush=True)
        health: list[float] = []
        done = threading.Event()

        def ask_health() -> None:
            while not done.wait(2):
                began = time.perf_counter()
                status = client.get("/health").json()["status"]
                health.append((time.perf_counter() - began) * 1000)
                if status != "healthy":
                    print("health:", status, flush=True)

        asking = threading.Thread(target=ask_health)
        asking.start()
        before = loop_seconds(server)
        print("busy:", summary(busy(server, options.seconds, content, options.chats)), flush=True)
        ran, waited = (now - then for now, then in zip(loop_seconds(server), before, strict=True))
        print(f"the event loop ran for {ran:.1f} s and waited for a processor for {waited:.1f} s")
        done.set()
        asking.join()
        print("health while busy:", summary(health))
        (file,) = client.get(f"{PROJECT}/datasets").json()["datasets"][0]["details"]["files_metadata"]
        print("the file is", file["status"])
        client.delete(PROJECT).raise_for_status()


if __name__ == "__main__":
    main()
