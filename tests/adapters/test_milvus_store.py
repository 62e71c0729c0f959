"""Against real Milvus Lite."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamastead_server.adapters import milvus_lite, milvus_schema, milvus_store
from llamastead_server.adapters.milvus_lite import MilvusLite
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.domain.errors import InvalidRequest, Unavailable
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk, Collection
from tests.running_server import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")
DIMENSION = 8
REF = ProjectRef("my-org", "shop")
HOSTILE = [
    'x" or filename != "y',
    '"',
    "\\",
    '\\"',
    "a\\nb",
    "a\nb",
    "a\tb",
    "a\x00b",
    "a\x01b",
    "ab",
    "line\u2028break",
    "🦙",
    "é",
    "e\u0301",
    "{v}",
    "%22",
    "'; drop",
    "",
    " ",
    "x" * 5000,
    "x" * 5001,
]


def vector(seed: int) -> Sequence[float]:
    made = np.random.default_rng(seed).normal(size=DIMENSION)
    return [float(value) for value in made / np.linalg.norm(made)]


def chunk(number: int, text: str = "nothing much", **fields: Any) -> Chunk:
    defaults: dict[str, Any] = {"dataset": "papers", "file_hash": "f" * 64, "filename": "a.txt"}
    return Chunk(id=f"c{number:04}", ordinal=number, text=text, **{**defaults, **fields})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lite(tmp_path_factory: pytest.TempPathFactory) -> MilvusLite:
    return MilvusLite(tmp_path_factory.mktemp("milvus"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(lite: MilvusLite) -> AsyncIterator[MilvusStore]:
    async with MilvusStore(lite) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def collection(store: MilvusStore, request: pytest.FixtureRequest) -> AsyncIterator[Collection]:
    made = Collection(REF, request.node.name[:90].replace("[", "-").rstrip("]"), DIMENSION)
    await store.create(made)
    yield made
    await store.drop(REF, made.database)


async def ids(store: MilvusStore, collection: Collection, filters: dict[str, Any]) -> list[str]:
    return sorted(match.chunk_id for match in await store.search_vector(collection, vector(0), 100, filters))


async def test_a_chunk_is_found_by_the_search_right_after_it_is_written(
    store: MilvusStore, collection: Collection
) -> None:
    for number in range(20):
        await store.upsert(collection, [chunk(number, f"unique{number} word")], [vector(number)])
        nearest = await store.search_vector(collection, vector(number), 1, {})
        assert nearest[0].chunk_id == f"c{number:04}"
        assert nearest[0].score == pytest.approx(1.0, abs=1e-5)
        assert [m.chunk_id for m in await store.search_keyword(collection, f"unique{number}", 5, {})] == [
            f"c{number:04}"
        ]


async def test_cosine_and_bm25_scores_are_the_store_s_own(store: MilvusStore, collection: Collection) -> None:
    await store.upsert(collection, [chunk(i, "llamas run" if i else "The llama runs") for i in range(3)],
                       [vector(i) for i in range(3)])  # fmt: skip
    expected = {f"c{i:04}": float(np.dot(vector(7), vector(i))) for i in range(3)}
    found = {match.chunk_id: match.score for match in await store.search_vector(collection, vector(7), 3, {})}
    assert found == pytest.approx(expected, abs=1e-5)
    completed = await store.vector_scores(collection, vector(7), ["c0000", "c0002", "absent"])
    assert completed == pytest.approx({key: expected[key] for key in ("c0000", "c0002")}, abs=1e-5)
    # Stemmed, and higher is better.
    matches = await store.search_keyword(collection, "running llama", 5, {})
    assert len(matches) == 3
    assert all(match.score > 0 for match in matches)


@pytest.mark.parametrize("value", [*HOSTILE, 7, 2.5, True], ids=repr)
async def test_a_list_in_the_metadata_matches_what_it_holds_and_nothing_else(
    store: MilvusStore, collection: Collection, value: Any
) -> None:
    rows = [
        chunk(0, metadata={"authors": [value, "Li"]}),
        chunk(1, metadata={"authors": ["Li"]}),
        chunk(2, metadata={"authors": value}),
        chunk(3, metadata={"authors": []}),
        chunk(4),
    ]
    await store.upsert(collection, rows, [vector(number) for number in range(5)])
    assert await ids(store, collection, {"authors": value}) == ["c0000", "c0002"]
    assert await ids(store, collection, {"authors": [value, "Li"]}) == ["c0000", "c0001", "c0002"]
    assert await ids(store, collection, {"authors": "nobody"}) == []


async def test_writing_a_chunk_again_replaces_it(store: MilvusStore, collection: Collection) -> None:
    await store.upsert(collection, [chunk(1, "old words")], [vector(1)])
    await store.upsert(collection, [chunk(1, "new words")], [vector(2)])
    assert await store.count(REF, collection.database) == 1
    assert await store.search_keyword(collection, "old", 5, {}) == []
    assert (await store.search_vector(collection, vector(2), 1, {}))[0].score == pytest.approx(1.0, abs=1e-5)


async def test_many_chunks_are_written_in_bounded_batches(store: MilvusStore, collection: Collection) -> None:
    number = 1000
    await store.upsert(collection, [chunk(i) for i in range(number)], [vector(i) for i in range(number)])
    assert await store.count(REF, collection.database) == number
    assert len(await store.search_vector(collection, vector(0), 50_000, {})) == number


async def test_concurrent_writers_lose_nothing(store: MilvusStore, collection: Collection) -> None:
    async def write(start: int) -> None:
        for number in range(start, start + 10):
            await store.upsert(collection, [chunk(number)], [vector(number)])

    await asyncio.gather(*(write(start) for start in range(0, 80, 10)))
    assert await store.count(REF, collection.database) == 80


async def test_deleting_a_file_removes_its_chunks_only(store: MilvusStore, collection: Collection) -> None:
    chunks = [
        chunk(0, file_hash="a" * 64),
        chunk(1, file_hash="b" * 64),
        chunk(2, file_hash="a" * 64, dataset="other.set"),
    ]
    await store.upsert(collection, chunks, [vector(i) for i in range(3)])
    await store.delete_file(REF, collection.database, "papers", "a" * 64)
    assert await ids(store, collection, {}) == ["c0001", "c0002"]
    await store.delete_file(REF, collection.database, "other.set", None)
    assert await ids(store, collection, {}) == ["c0001"]
    assert await store.count(REF, collection.database) == 1


async def test_dropping_a_project_leaves_its_neighbours(store: MilvusStore) -> None:
    gone, kept = ProjectRef("a", "b"), ProjectRef("a", "b2")
    for ref in (gone, kept):
        for database in ("one", "ONE"):
            made = Collection(ref, database, DIMENSION)
            await store.create(made)
            await store.create(made)
            await store.upsert(made, [chunk(1)], [vector(1)])
    await store.drop(gone)
    assert [await store.count(gone, name) for name in ("one", "ONE")] == [0, 0]
    assert [await store.count(kept, name) for name in ("one", "ONE")] == [1, 1]
    await store.drop(kept, "ONE")
    assert [await store.count(kept, name) for name in ("one", "ONE")] == [1, 0]
    await store.drop(kept)


async def test_an_absent_collection_is_empty_and_can_be_dropped(store: MilvusStore) -> None:
    absent = Collection(REF, "absent", DIMENSION)
    assert await store.search_vector(absent, vector(0), 5, {}) == []
    assert await store.search_keyword(absent, "x", 5, {}) == []
    assert await store.vector_scores(absent, vector(0), ["c1"]) == {}
    assert (await store.count(REF, "absent"), await store.size_bytes(REF, "absent")) == (0, 0)
    await store.delete_file(REF, "absent", "papers", None)
    await store.drop(REF, "absent")


async def test_a_collection_that_never_held_a_chunk_is_empty_and_no_failure(
    store: MilvusStore, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    assert await store.search_vector(collection, vector(0), 5, {}) == []
    assert await store.search_keyword(collection, "gate", 5, {}) == []
    assert not caplog.records


async def test_a_search_that_meets_the_first_chunks_of_a_collection_finds_them(
    store: MilvusStore, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled_meanwhile(client: Any, name: str) -> int:
        client.upsert(name, [milvus_schema.row(chunk(1, "gate"), vector(1))])
        return 1

    monkeypatch.setattr(milvus_store, "_count", filled_meanwhile)
    assert [match.chunk_id for match in await store.search_keyword(collection, "gate", 5, {})] == ["c0001"]


async def test_size_grows_with_chunks(store: MilvusStore, collection: Collection) -> None:
    await store.upsert(collection, [chunk(i) for i in range(50)], [vector(i) for i in range(50)])
    assert await store.size_bytes(REF, collection.database) > 50 * 4 * DIMENSION


async def test_filters_match_exactly_equal_values_only(store: MilvusStore, collection: Collection) -> None:
    chunks = [chunk(i, filename=f"f{value}", metadata={"note": value}) for i, value in enumerate(HOSTILE)]
    await store.upsert(collection, chunks, [vector(i) for i in range(len(chunks))])
    for number, value in enumerate(HOSTILE):
        assert await ids(store, collection, {"note": value}) == [f"c{number:04}"], value
        assert await ids(store, collection, {"filename": f"f{value}"}) == [f"c{number:04}"], value
    assert await ids(store, collection, {"note": HOSTILE[:3], "filename": [f"f{HOSTILE[1]}", "z"]}) == ["c0001"]


async def test_types_are_not_mixed_up(store: MilvusStore, collection: Collection) -> None:
    values: list[Any] = [1, True, "1", 1.5, 2**53, -3, 1e-7, 1e30, "true", False]
    chunks = [chunk(i, page=i, metadata={"k": value}) for i, value in enumerate(values[:7] + values[8:])]
    await store.upsert(collection, chunks, [vector(i) for i in range(len(chunks))])
    for number, stored in enumerate(chunks):
        assert await ids(store, collection, {"k": stored.metadata["k"]}) == [f"c{number:04}"], stored.metadata
    assert await ids(store, collection, {"k": 1.0}) == ["c0000"]
    assert await ids(store, collection, {"k": [1, "1", True]}) == ["c0000", "c0001", "c0002"]
    assert await ids(store, collection, {"page": [0, 5.0]}) == ["c0000", "c0005"]
    assert await ids(store, collection, {"absent": "x"}) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.one_of(
        st.text(max_size=30), st.text('"\\\x00\n ()=|&or', max_size=12), st.integers(-(2**60), 2**60),
        st.floats(-1e18, 1e18, allow_nan=False), st.booleans(),
    )
)  # fmt: skip
async def test_any_value_finds_itself_and_not_its_neighbour(
    store: MilvusStore, collection: Collection, value: Any
) -> None:
    neighbour = value + '"' if isinstance(value, str) else str(value)
    chunks = [chunk(0, metadata={"k": value}), chunk(1, metadata={"k": neighbour})]
    await store.upsert(collection, chunks, [vector(0), vector(1)])
    assert await ids(store, collection, {"k": value}) == ["c0000"]
    assert await ids(store, collection, {"k": neighbour}) == ["c0001"]


async def test_hostile_text_is_searched_for_as_text(store: MilvusStore, collection: Collection) -> None:
    await store.upsert(collection, [chunk(0, "x" * 70_000 + " tail"), chunk(1, "nul\x00 llama")], [vector(0)] * 2)
    for query in ["", " ", "the", '") or ("', "\x00", "y" * 100_000]:
        assert await store.search_keyword(collection, query, 5, {}) == []
    assert [match.chunk_id for match in await store.search_keyword(collection, 'llama" and', 5, {})] == ["c0001"]


async def test_a_metric_that_is_not_built_is_refused(store: MilvusStore) -> None:
    with pytest.raises(InvalidRequest, match="l2"):
        await store.create(Collection(REF, "l2", DIMENSION, metric="l2"))


async def test_a_collection_whose_making_fails_leaves_nothing_behind(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Collection(REF, "broken", DIMENSION)
    with monkeypatch.context() as patch:
        patch.setattr("llamastead_server.adapters.milvus_schema.indexes", lambda client: "nonsense")
        with pytest.raises(Unavailable):
            await store.create(broken)
    await store.create(broken)
    await store.upsert(broken, [chunk(1)], [vector(1)])
    assert await ids(store, broken, {}) == ["c0001"]
    await store.drop(REF, "broken")


async def test_a_collection_that_a_kill_left_without_its_indexes_is_made_anew(
    store: MilvusStore, lite: MilvusLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Collection(REF, "half", DIMENSION)

    def killed(client: object) -> NoReturn:
        assert lite.pid is not None
        os.kill(lite.pid, signal.SIGKILL)
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr("llamastead_server.adapters.milvus_schema.indexes", killed)
        # Neither is there anybody left who could take the collection back.
        patch.setattr("pymilvus.MilvusClient.drop_collection", lambda *arguments, **options: None)
        with pytest.raises(Unavailable):
            await store.create(half)
    await store.create(half)
    await store.upsert(half, [chunk(1, "llama")], [vector(1)])
    assert await ids(store, half, {}) == ["c0001"]
    assert len(await store.search_keyword(half, "llama", 3, {})) == 1
    await store.drop(REF, "half")


async def test_a_cancelled_write_is_finished(store: MilvusStore, collection: Collection) -> None:
    writing = asyncio.create_task(store.upsert(collection, [chunk(1)], [vector(1)]))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    # The next write waits its turn, so the cancelled one is over by then.
    await store.upsert(collection, [chunk(2)], [vector(2)])
    assert await ids(store, collection, {}) == ["c0001", "c0002"]


@pytest.mark.parametrize("ailment", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_child_that_was_killed_or_hangs_is_replaced_and_nothing_acknowledged_is_lost(
    store: MilvusStore,
    lite: MilvusLite,
    collection: Collection,
    ailment: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Short, and yet enough for what has just been started on a busy machine.
    monkeypatch.setattr("llamastead_server.adapters.milvus_store.CALL_SECONDS", 10.0)
    monkeypatch.setattr("llamastead_server.adapters.milvus_connection._PROBE_SECONDS", 3.0)
    await store.upsert(collection, [chunk(i, "llama") for i in range(100)], [vector(i) for i in range(100)])
    first = lite.pid
    assert first is not None
    os.kill(first, ailment)
    answers = await asyncio.gather(*(store.search_keyword(collection, "llama", 100, {}) for _ in range(10)))
    assert [len(answer) for answer in answers] == [100] * 10
    assert lite.pid not in (None, first)
    await store.upsert(collection, [chunk(100)], [vector(100)])
    assert await store.count(REF, collection.database) == 101


WRITER = """
import asyncio, sys
from pathlib import Path
from llamastead_server.adapters.milvus_store import MilvusStore
from tests.adapters.test_milvus_store import REF, DIMENSION, Collection, chunk, vector
async def main():
    async with MilvusStore.embedded(Path(sys.argv[1])) as store:
        collection = Collection(REF, "main", DIMENSION)
        await store.create(collection)
        for start in range(0, 100_000, 10):
            await store.upsert(collection, [chunk(n) for n in range(start, start + 10)], [vector(1)] * 10)
            print(start + 10, flush=True)
asyncio.run(main())
"""


IMPORTS = """
import asyncio, sys, threading
from pathlib import Path
from llamastead_server.adapters.milvus_store import MilvusStore
from tests.adapters.test_milvus_store import REF, DIMENSION, Collection, chunk, vector
class Finder:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            print(name, flush=True)
async def main():
    async with MilvusStore.embedded(Path(sys.argv[1])) as store:
        collection = Collection(REF, "main", DIMENSION)
        await store.create(collection)
        await store.upsert(collection, [chunk(1, "llama")], [vector(1)])
        await store.search_vector(collection, vector(1), 3, {"color": "red"})
        await store.search_keyword(collection, "llama", 3, {})
        await store.vector_scores(collection, vector(1), ["c0001"])
        await store.delete_file(REF, "main", "papers", None)
        await store.size_bytes(REF, "main")
        await store.drop(REF)
sys.meta_path.insert(0, Finder())
asyncio.run(main())
"""


async def test_no_thread_of_the_store_imports_anything_which_can_lock_up_a_server_that_forks(tmp_path: Path) -> None:
    used = subprocess.run([sys.executable, "-c", IMPORTS, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert used.returncode == 0, used.stderr
    assert used.stdout == ""


async def test_what_was_acknowledged_survives_a_kill_of_the_server(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 100:
            break
    writer.kill()
    acknowledged = max([int(line), *(int(rest) for rest in writer.stdout if rest.endswith("\n"))])
    writer.wait()
    writer.stdout.close()
    async with MilvusStore.embedded(tmp_path) as store:
        # One batch may have been written without its acknowledgement.
        assert await store.count(REF, "main") in (acknowledged, acknowledged + 10)
        assert len(await store.search_vector(Collection(REF, "main", DIMENSION), vector(1), 10, {})) == 10


async def test_data_is_there_after_a_restart(tmp_path: Path) -> None:
    kept = Collection(REF, "kept", DIMENSION)
    async with MilvusStore.embedded(tmp_path) as first:
        await first.create(kept)
        await first.upsert(kept, [chunk(1, "llama")], [vector(1)])
        with pytest.raises(Unavailable, match="in use by another server"):
            await MilvusStore(MilvusLite(tmp_path, wait=0.1)).__aenter__()
    async with MilvusStore.embedded(tmp_path) as second:
        assert [match.chunk_id for match in await second.search_keyword(kept, "llama", 5, {})] == ["c0001"]


@pytest.mark.parametrize("port", ["1", "wrong"])
async def test_a_cluster_that_does_not_answer_is_a_clear_error(port: str) -> None:
    with pytest.raises(Unavailable, match=r"LLAMASTEAD_MILVUS_URI can't be used: .*(connect|Port)"):
        async with MilvusStore.cluster(f"http://127.0.0.1:{port}"):
            pass


async def test_a_cluster_that_goes_away_is_told_and_found_again(tmp_path: Path) -> None:
    port = free_port()
    kept = Collection(REF, "kept", DIMENSION)
    # The embedded server stands for a cluster: on a port it speaks the same protocol.
    with serving_milvus(tmp_path, port):
        opened = MilvusStore.cluster(f"http://127.0.0.1:{port}")
        await opened.__aenter__()
        await opened.create(kept)
        await opened.upsert(kept, [chunk(1, "a llama")], [vector(1)])
        assert await opened.size_bytes(REF, "kept") > 0
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            await opened.search_vector(kept, vector(1), 5, {})
        with serving_milvus(tmp_path, port):
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(Unavailable):
                        assert await opened.count(REF, "kept") == 1
                        break
                    await asyncio.sleep(0.1)
            assert [match.chunk_id for match in await opened.search_keyword(kept, "llama", 5, {})] == ["c0001"]
            await opened.upsert(kept, [chunk(2, "another llama")], [vector(2)])
            assert await opened.count(REF, "kept") == 2
    finally:
        await opened.__aexit__(None, None, None)


@contextlib.contextmanager
def serving_milvus(folder: Path, port: int) -> Iterator[None]:
    libraries = milvus_lite._library_folder()
    lifeline = (folder / "lifeline").open("a")
    fcntl.lockf(lifeline, fcntl.LOCK_EX)
    with (
        lifeline,
        subprocess.Popen(
            [libraries / "milvus", folder / "milvus.db", f"127.0.0.1:{port}", "ERROR", folder / "lifeline"],
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
