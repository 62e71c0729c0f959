"""Kills a busy server with -9 again and again, and looks for what each kill left behind.

`python -m tests.soak.crashes [--rounds 20] [--seed 1]` starts a server of its own. In each round clients upload,
process, delete, import, reindex, chat and rewrite configurations until the kill; the server starts again on the same
data, its tasks run out, and then text, vectors, records, blobs, tasks and histories must agree with each other and
with what clients were told.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from pymilvus import MilvusClient

from llamastead_server.adapters.milvus_schema import collection_name
from llamastead_server.domain.names import ProjectRef
from tests.running_server import RunningServer, wait_until_gone

SPACE = "/v1/projects/crash"
PROJECTS = ("one", "two")
DATASETS = ("red", "blue")
CLIENTS = 4
PATIENCE = 180.0


class Said:
    """What clients were told: promises that a kill must not break."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tasks: dict[str, tuple[str, str]] = {}
        self.turns: dict[str, int] = {}
        self.files: dict[tuple[str, str], set[str]] = {}
        self.shaken: set[str] = set()
        """Projects whose files someone began to delete: which of them are left is open."""

    def forget(self, project: str) -> None:
        """Expects nothing of a project's files and sessions any more; for what is going on, the kill decides."""
        with self.lock:
            self.shaken.add(project)
            self.files = {key: value for key, value in self.files.items() if key[0] != project}

    def settle(self) -> None:
        """Begins a round: promises of projects that were shaken are made anew."""
        with self.lock:
            for project in self.shaken:
                self.files = {key: value for key, value in self.files.items() if key[0] != project}
            self.shaken.clear()


def set_up(client: httpx.Client) -> None:
    """Makes the projects and datasets that are not there."""
    for project in PROJECTS:
        client.post(SPACE, json={"name": project, "config_template": "rag"})
        for dataset in DATASETS:
            client.post(f"{SPACE}/{project}/datasets", json={"name": dataset, "database": "main_db"})


class Client:
    """One client that does one thing after the other at random until the server is gone."""

    def __init__(self, url: str, said: Said, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        self._said = said
        self._random = random.Random(seed)
        self._number = seed
        self.odd: list[str] = []

    def run(self) -> None:
        """Works until the connection breaks."""
        deeds: list[tuple[Callable[[str, str], None], int]] = [
            (self._upload, 8), (self._process, 5), (self._chat, 5), (self._remove_file, 2), (self._reindex, 2),
            (self._configure, 2), (self._import, 2), (self._database, 2), (self._clear, 1), (self._delete_dataset, 1),
            (self._delete_project, 1),
        ]  # fmt: skip
        with contextlib.suppress(httpx.TransportError):
            while True:
                (deed,) = self._random.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])
                deed(self._random.choice(PROJECTS), self._random.choice(DATASETS))

    def _told(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code >= 500 and answer.status_code != 503:
            self.odd.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
        return answer

    def _upload(self, project: str, dataset: str) -> None:
        self._number += 1000
        lines = [f"Fact {self._number}.{line}: gate {line * self._number} of the barn is red." for line in range(120)]
        files = {"file": (f"{self._number}.txt", "\n".join(lines).encode())}
        answer = self._told(self._http.post(f"{SPACE}/{project}/datasets/{dataset}/data", files=files))
        if answer.is_success:
            with self._said.lock:
                if project not in self._said.shaken:
                    self._said.files.setdefault((project, dataset), set()).add(answer.json()["hash"])

    def _process(self, project: str, dataset: str) -> None:
        answer = self._told(self._http.post(f"{SPACE}/{project}/datasets/{dataset}/process?async_processing=true"))
        self._keep_task(project, answer)

    def _reindex(self, project: str, dataset: str) -> None:
        self._keep_task(project, self._told(self._http.post(f"{SPACE}/{project}/rag/reindex", json={})))

    def _keep_task(self, project: str, answer: httpx.Response) -> None:
        if answer.is_success:
            with self._said.lock:
                if project not in self._said.shaken:
                    self._said.tasks[answer.json()["task_id"]] = (project, "")

    def _chat(self, project: str, dataset: str) -> None:
        # Of a project that nobody deletes, so that every turn that was answered must be kept.
        self._number += 1000
        session = f"session-{self._number % 7}-{self._random.randrange(3)}"
        body = {"messages": [{"role": "user", "content": f"Turn {self._number}"}], "max_tokens": 8}
        body["stream"] = self._random.random() < 0.5
        url = "/v1/projects/default/quickstart/chat/completions"
        answer = self._told(self._http.post(url, json=body, headers={"X-Session-ID": session}))
        if answer.is_success and (not body["stream"] or answer.text.endswith("[DONE]\n\n")):
            with self._said.lock:
                self._said.turns[session] = self._said.turns.get(session, 0) + 1

    def _remove_file(self, project: str, dataset: str) -> None:
        with self._said.lock:
            hashes = self._said.files.get((project, dataset)) or set()
            digest = hashes.pop() if hashes else ""
        if digest:
            self._told(self._http.delete(f"{SPACE}/{project}/datasets/{dataset}/data/{digest}?remove_from_disk=true"))

    def _configure(self, project: str, dataset: str) -> None:
        answer = self._http.get(f"{SPACE}/{project}")
        if answer.is_success:
            config: dict[str, Any] = answer.json()["project"]["config"]
            config["prompts"] = [
                {"name": "default", "messages": [{"role": "system", "content": f"Be brief. {self._number}"}]}
            ]
            self._told(self._http.put(f"{SPACE}/{project}", json={"config": config}))

    def _import(self, project: str, dataset: str) -> None:
        body = {"namespace": "crash", "project": project, "include_strategies": True, "process": True}
        self._told(self._http.post("/v1/examples/quickstart_rag/import-data", json=body))

    def _database(self, project: str, dataset: str) -> None:
        base = f"{SPACE}/{project}/rag/databases"
        self._told(self._http.post(base, json={"name": "extra", "type": "MilvusStore"}))
        self._told(self._http.delete(f"{base}/extra"))

    def _clear(self, project: str, dataset: str) -> None:
        self._told(self._http.post(f"{SPACE}/{project}/rag/clear", json={}))

    def _delete_dataset(self, project: str, dataset: str) -> None:
        self._said.forget(project)
        self._told(self._http.delete(f"{SPACE}/{project}/datasets/{dataset}"))
        self._http.post(f"{SPACE}/{project}/datasets", json={"name": dataset, "database": "main_db"})

    def _delete_project(self, project: str, dataset: str) -> None:
        self._said.forget(project)
        self._told(self._http.delete(f"{SPACE}/{project}"))
        self._http.post(SPACE, json={"name": project, "config_template": "rag"})
        self._http.post(f"{SPACE}/{project}/datasets", json={"name": dataset, "database": "main_db"})


def wait_for_tasks(data_dir: Path) -> None:
    """Waits until no task is open."""
    deadline = time.monotonic() + PATIENCE
    query = "SELECT id, kind, state, attempt, error FROM tasks WHERE state NOT IN ('SUCCESS', 'FAILURE')"
    while left := rows(data_dir, query):
        assert time.monotonic() < deadline, f"tasks never end: {left}"
        time.sleep(0.2)


def rows(data_dir: Path, query: str) -> list[tuple[Any, ...]]:
    """What a query of the database gives."""
    with contextlib.closing(sqlite3.connect(data_dir / "llamastead.db", timeout=30)) as connection:
        return connection.execute(query).fetchall()


def findings(server: RunningServer, client: httpx.Client, said: Said, milvus: MilvusClient) -> Iterator[str]:
    """What is not as it should be in a server that has nothing to do."""
    data_dir, projects = server.data_dir, server.data_dir / "projects"
    there = {(path.parent.parent.name, path.parent.name) for path in projects.glob("*/*/llamafarm.yaml")}
    for project in client.get(SPACE).json()["projects"]:
        if project.get("validation_error"):
            yield f"the configuration of {project['name']} is broken: {project['validation_error']}"
    for table in ("files", "chunks", "databases"):
        for owner in rows(data_dir, f"SELECT DISTINCT namespace, project FROM {table}"):
            if owner not in there:
                yield f"{table} of a project that is gone: {owner}"
    unfinished = rows(
        data_dir, "SELECT hash, status FROM files WHERE status NOT IN ('uploaded', 'processed', 'failed')"
    )
    if unfinished:
        yield f"unfinished files: {unfinished}"
    processed = rows(data_dir, "SELECT namespace, project, dataset, hash, chunk_count FROM files "
                               "WHERE status = 'processed'")  # fmt: skip
    counted = rows(data_dir, "SELECT namespace, project, dataset, file_hash, count(*) FROM chunks GROUP BY 1, 2, 3, 4")
    if set(processed) != set(counted):
        yield f"files and their chunks differ: {set(processed) ^ set(counted)}"
    blobs = {
        (path.parts[-6], path.parts[-5], path.name) for path in projects.glob("*/*/lf_data/blobs/*/*") if path.is_file()
    }
    recorded = set(rows(data_dir, "SELECT DISTINCT namespace, project, hash FROM files"))
    if recorded - blobs:
        yield f"files without content: {recorded - blobs}"
    if blobs - recorded:
        yield f"content without a file: {blobs - recorded}"
    for pattern in ("*/*/lf_data/incoming/*", "*/.deleted-*", "*/*/.writing-*"):
        yield from (f"left behind: {path}" for path in projects.glob(pattern))
    texts: dict[str, set[str]] = {}
    for namespace, project, database, chunk_id in rows(data_dir, "SELECT namespace, project, database, id FROM chunks"):
        texts.setdefault(collection_name(ProjectRef(namespace, project), database), set()).add(chunk_id)
    vectors: dict[str, set[str]] = {}
    for name in milvus.list_collections():
        found = milvus.query(name, filter="", output_fields=["id"], limit=16_000)
        vectors[name] = {hit["id"] for hit in found}
    for name in texts.keys() | vectors.keys():
        without_text = vectors.get(name, set()) - texts.get(name, set())
        without_vector = texts.get(name, set()) - vectors.get(name, set())
        if without_text or without_vector:
            yield f"{name}: {len(without_text)} vectors without text, {len(without_vector)} texts without vector"
    for (project, dataset), hashes in said.files.items():
        if project not in said.shaken:
            kept = {row[0] for row in rows(data_dir, f"SELECT hash FROM files WHERE project = '{project}' "
                                                     f"AND dataset = '{dataset}'")}  # fmt: skip
            if hashes - kept:
                yield f"acknowledged files of {project}/{dataset} are lost: {hashes - kept}"
    for task_id, (project, _) in said.tasks.items():
        if project not in said.shaken and client.get(f"{SPACE}/{project}/tasks/{task_id}").status_code != 200:
            yield f"the task {task_id} of {project} is lost"
    for session, turns in said.turns.items():
        path = f"/v1/projects/default/quickstart/chat/sessions/{session}/history"
        roles = [message["role"] for message in client.get(path).json()["messages"]]
        if roles != ["user", "assistant"] * (len(roles) // 2) or len(roles) < 2 * turns:
            yield f"session {session}: {turns} turns were answered, the history is {roles}"


def one_round(server: RunningServer, said: Said, seed: int) -> list[str]:
    """Starts the server on what the last kill left, checks it, and kills it at work; gives what is wrong."""
    chance = random.Random(seed)
    began = time.monotonic()
    server.start("--example", "quickstart_rag")
    started = time.monotonic() - began
    with httpx.Client(base_url=server.url, timeout=60) as client:
        wait_for_tasks(server.data_dir)
        children = server.descendants()
        # Where the socket is stands in the command line of the one child that serves it.
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children]
        (command,) = [words for words in commands if b"milvus_lite/lib/milvus" in words[0]]
        milvus = MilvusClient(uri=next(word.decode() for word in command if word.startswith(b"unix:")))
        wrong = list(findings(server, client, said, milvus))
        milvus.close()
        set_up(client)
    said.settle()
    said.tasks.clear()
    clients = [Client(server.url, said, seed * 10 + number) for number in range(CLIENTS)]
    threads = [threading.Thread(target=each.run, daemon=True) for each in clients]
    for thread in threads:
        thread.start()
    work = chance.uniform(0.1, 6)
    time.sleep(work)
    children = server.descendants()
    server.kill()
    orphans = wait_until_gone(children)
    if orphans:
        wrong.append(f"processes outlive the server: {orphans}")
    for thread in threads:
        thread.join(60)
    wrong += [odd for each in clients for odd in each.odd]
    print(f"round {seed}: started in {started:.1f} s, killed after {work:.1f} s, {len(wrong)} findings", flush=True)
    return wrong


def main() -> None:
    """Runs the rounds and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, said = RunningServer(Path(folder)), Said()
        found = 0
        try:
            for number in range(options.rounds):
                for line in one_round(server, said, options.seed + number):
                    found += 1
                    print("  ", line[:600], flush=True)
            server.start()
            status = server.stop()
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()
        tracebacks = server.log.count("Traceback")
        print(f"{options.rounds} rounds: {found} findings, last exit {status}, {tracebacks} tracebacks in the log")
        if tracebacks:
            print(server.log[server.log.index("Traceback") - 500 :][:6000])


if __name__ == "__main__":
    main()
