"""Deleting a project while clients still fill and process it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import httpx

from tests.running_server import RunningServer, running

SPACE = "/v1/projects/going"


async def delete_in_the_midst(client: httpx.AsyncClient, name: str) -> None:
    """Makes a project and deletes it among uploads, runs and chats that come one after the other."""
    project = f"{SPACE}/{name}"
    (await client.post(SPACE, json={"name": name, "config_template": "rag"})).raise_for_status()
    dataset = {"name": "papers", "database": "main_db"}
    (await client.post(f"{project}/datasets", json=dataset)).raise_for_status()

    async def upload(number: int) -> httpx.Response:
        await asyncio.sleep(number * 0.003)
        content = "\n".join(f"Note {number}.{line} of the barn gate." for line in range(200))
        return await client.post(f"{project}/datasets/papers/data", files={"file": (f"{number}.txt", content.encode())})

    async def process(number: int) -> httpx.Response:
        await asyncio.sleep(number * 0.004)
        return await client.post(f"{project}/datasets/papers/process", params={"async_processing": True})

    async def chat(number: int) -> httpx.Response:
        await asyncio.sleep(number * 0.01)
        body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3}
        return await client.post(f"{project}/chat/completions", json=body, headers={"X-Session-ID": "s"})

    async def delete() -> httpx.Response:
        await asyncio.sleep(0.03)
        return await client.delete(project)

    *others, deleted = await asyncio.gather(
        *(upload(number) for number in range(20)),
        *(process(number) for number in range(10)),
        *(chat(number) for number in range(3)),
        delete(),
    )
    assert deleted.status_code == 200, deleted.text
    # Whoever comes too late is told so; none of it is the server's fault.
    assert {answer.status_code for answer in others} <= {200, 404, 409}


def left(server: RunningServer) -> dict[str, int]:
    """Rows by table; tasks aside, which may be queued by a request that was let in before, and fail."""
    tables = ("files", "chunks", "databases")
    with contextlib.closing(sqlite3.connect(server.data_dir / "llamastead.db")) as connection:
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


async def test_whatever_comes_while_a_project_goes_goes_with_it(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for number in range(12):
                await delete_in_the_midst(client, f"p{number}")
            assert (await client.get(SPACE)).json()["total"] == 0
        assert left(server) == {"files": 0, "chunks": 0, "databases": 0}
        assert list((server.data_dir / "projects" / "going").iterdir()) == []
        assert "Traceback" not in server.log
