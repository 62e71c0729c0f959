"""Downloads, against a hub-shaped server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub.file_download import http_get

from llamastead_server.adapters.hub import Hub
from llamastead_server.domain.errors import Conflict, InvalidRequest, NotFound, PermissionDenied, Unavailable

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIG = bytes(range(256)) * 8192
REPOS = {
    "org/one": {"README.md": b"hi", "model-Q4_K_M.gguf": BIG},
    "org/many": {"m-Q4_K_M.gguf": b"four", "m-Q8_0.gguf": b"eight", "mmproj-m.gguf": b"eye"},
    "org/split": {"q/m-00001-of-00002.gguf": b"first", "q/m-00002-of-00002.gguf": b"second"},
    "org/exl": {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "picture.png": b"no"},
    "org/none": {"README.md": b"hi"},
}


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut_after: int | None = None
        self.damage = False
        self.ranges: list[str] = []
        self.served: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if info := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/main)?(\?.*)?", self.path):
            self.info(info[1])
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            self.file(file[1], file[2], body)
        else:
            self.say(404, b"{}")

    def info(self, repo: str) -> None:
        if repo == "org/gated":
            self.say(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif repo not in REPOS:
            self.say(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in REPOS[repo].items()]
            self.say(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())

    def file(self, repo: str, name: str, body: bool) -> None:
        content = REPOS[repo][name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.server.damage:
            content = content[:-1] + b"!"
        start, status = 0, 200
        if body:
            self.server.served.append(name)
            if wanted := self.headers.get("Range"):
                self.server.ranges.append(wanted)
                start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            cut = self.server.cut_after
            self.wfile.write(content[start : None if cut is None else start + cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

    def say(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path) -> Hub:
    return Hub(tmp_path, endpoint=hub_server.url, token="none")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_one_gguf_of_a_repository_needs_no_more_than_its_name(hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    place = hub.pull("org/one", lambda *now: told.append(now))
    assert place == tmp_path / "org" / "one" / "model-Q4_K_M.gguf"
    assert place.read_bytes() == BIG
    assert told == [("model-Q4_K_M.gguf", 1, 1)]
    assert list(files(tmp_path)) == ["org/one/model-Q4_K_M.gguf"]


def test_what_is_there_is_not_downloaded_again(hub: Hub, hub_server: HubServer) -> None:
    hub.pull("org/one")
    hub_server.served.clear()
    hub.pull("org/one")
    assert hub_server.served == []


def test_several_models_are_listed_to_choose_from(hub: Hub) -> None:
    with pytest.raises(InvalidRequest) as refused:
        hub.pull("org/many")
    assert "org/many:m-Q4_K_M.gguf" in refused.value.message
    assert "org/many:m-Q8_0.gguf" in refused.value.message
    assert "mmproj" not in refused.value.message


@pytest.mark.parametrize("choice", ["m-Q8_0.gguf", "Q8_0", "q8_0"])
def test_a_file_or_quantisation_chooses(hub: Hub, tmp_path: Path, choice: str) -> None:
    assert hub.pull(f"org/many:{choice}").read_bytes() == b"eight"
    assert list(files(tmp_path)) == ["org/many/m-Q8_0.gguf"]


def test_all_parts_of_a_split_model_come(hub: Hub, tmp_path: Path) -> None:
    assert hub.pull("org/split") == tmp_path / "org/split/q/m-00001-of-00002.gguf"
    assert sorted(files(tmp_path).values()) == [b"first", b"second"]


def test_a_folder_model_comes_whole(hub: Hub, tmp_path: Path) -> None:
    assert hub.pull("org/exl") == tmp_path / "org" / "exl"
    assert set(files(tmp_path / "org/exl")) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_an_interrupted_download_continues_where_it_stopped(
    hub: Hub, hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(BIG) // 2

    def stopped(url: str, file: Any, **options: Any) -> None:
        http_get(url, Interrupted(file, half), **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
        patch.setattr("llamastead_server.adapters.hub.http_get", stopped)
        with pytest.raises(KeyboardInterrupt):
            hub.pull("org/one")
    assert not (tmp_path / "org").exists()
    assert hub.pull("org/one").read_bytes() == BIG
    assert hub_server.ranges == [f"bytes={half}-"]


def test_a_connection_that_breaks_is_taken_up_again(
    hub: Hub, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub_server.cut_after = len(BIG) * 2 // 3
    assert hub.pull("org/one").read_bytes() == BIG


def test_a_damaged_download_never_becomes_a_model(hub: Hub, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.damage = True
    with pytest.raises(Unavailable, match="damaged"):
        hub.pull("org/one")
    assert files(tmp_path) == {}
    hub_server.damage = False
    assert hub.pull("org/one").read_bytes() == BIG


def test_the_hub_of_the_environment_is_asked(hub_server: HubServer, tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from llamastead_server.adapters.hub import pull"
    subprocess.run(
        [sys.executable, "-c", f"{script}; pull('org/many:Q8_0', Path(sys.argv[1]))", str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": hub_server.url},
        check=True,
    )
    assert files(tmp_path) == {"org/many/m-Q8_0.gguf": b"eight"}


class Interrupted:
    """A file during whose writing somebody presses Ctrl-C."""

    def __init__(self, file: Any, room: int) -> None:
        self._file = file
        self._room = room

    def write(self, data: bytes) -> None:
        if self._file.tell() + len(data) > self._room:
            raise KeyboardInterrupt
        self._file.write(data)


@pytest.mark.parametrize(
    "reference", ["", "one", "../x/y", "org/../x", "org/one:../../x", "http://x/y", "a/b/c", "a/b:"]
)
def test_a_malformed_reference_is_refused(hub: Hub, reference: str) -> None:
    with pytest.raises(InvalidRequest):
        hub.pull(reference)


def test_an_unknown_repository_a_gated_one_and_one_without_a_model_are_told_apart(hub: Hub) -> None:
    with pytest.raises(NotFound, match="org/unknown"):
        hub.pull("org/unknown")
    with pytest.raises(PermissionDenied, match="HF_TOKEN"):
        hub.pull("org/gated")
    with pytest.raises(NotFound, match=r"no \.gguf"):
        hub.pull("org/none")
    with pytest.raises(InvalidRequest, match="Choose one"):
        hub.pull("org/one:Q2_K")


def test_no_hub_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="again to continue"):
        Hub(tmp_path, endpoint="http://127.0.0.1:9", token="none").pull("org/one")


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamastead_server.adapters.hub._SPARE_BYTES", 1 << 60)
    with pytest.raises(Conflict, match="disk space"):
        hub.pull("org/one")
    assert hub_server.served == []
