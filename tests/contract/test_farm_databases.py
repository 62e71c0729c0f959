"""The databases of a project through the real server, in the shapes LlamaFarm's Designer and command line read."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import grpc
import httpx
import pytest

from llamastead.v1 import retrieval_pb2 as pb
from llamastead.v1 import retrieval_pb2_grpc
from tests.adapters.test_embedder import make_cross_encoder
from tests.contract.shape import assert_shape
from tests.running_server import RunningServer

PROJECT = "/v1/projects/my-org/databases"
NOTE = b"The barn gate closes at eight in the evening."
PAPER = b"The quarterly audit of the Zephyr laboratory happens on the ninth of March. " * 20
HASHES = {name: hashlib.sha256(data).hexdigest() for name, data in (("note.md", NOTE), ("paper.txt", PAPER))}
DATABASE: dict[str, Any] = {
    "name": "fda_db",
    "type": "ChromaStore",
    "config": {"collection_name": "documents", "distance_function": "cosine", "port": 8000},
    "embedding_strategies": [
        {"name": "default_embeddings", "type": "OllamaEmbedder", "config": {"model": "nomic-embed-text:latest"}}
    ],
    "retrieval_strategies": [
        {"name": "semantic_search", "type": "BasicSimilarityStrategy", "config": {"top_k": 5}, "default": True},
        {"name": "keywords", "type": "BM25Retriever"},
        {
            "name": "filtered_search",
            "type": "MetadataFilteredStrategy",
            "config": {"top_k": 10, "filters": {"filename": "note.md"}, "filter_mode": "post"},
        },
        {
            "name": "multi_query",
            "type": "MultiQueryStrategy",
            "config": {"num_queries": 3, "aggregation_method": "reciprocal_rank", "query_weights": None},
        },
        {
            "name": "hybrid_search",
            "type": "HybridUniversalStrategy",
            "config": {
                "strategies": [
                    {"type": "BasicSimilarityStrategy", "weight": 0.6, "config": {"top_k": 10}},
                    {"type": "BM25Retriever", "weight": 0.4},
                ],
                "combination_method": "weighted_average",
                "final_k": 4,
            },
        },
        {
            "name": "reranked_search",
            "type": "RerankedStrategy",
            "config": {"initial_k": 20, "final_k": 5, "rerank_factors": {"similarity_weight": 0.7}},
        },
        {
            "name": "multi_turn",
            "type": "MultiTurnRAGStrategy",
            "config": {"model_name": "query_decomposer", "max_sub_queries": 3, "final_top_k": 5},
        },
        {
            "name": "judged",
            "type": "CrossEncoderRerankedStrategy",
            "config": {"model_name": "ms-marco-MiniLM-L-6-v2", "initial_k": 30, "final_k": 10},
        },
    ],
    "default_embedding_strategy": "default_embeddings",
    "default_retrieval_strategy": "semantic_search",
}


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        client.delete(PROJECT)
        created = client.post("/v1/projects/my-org", json={"name": "databases", "config_template": "rag"})
        assert created.status_code == 200, created.text
        yield client


def test_creating_a_database_answers_201_and_the_database(api: httpx.Client) -> None:
    answer = api.post(f"{PROJECT}/rag/databases", json=DATABASE)
    assert answer.status_code == 201, answer.text
    strategy = {"name": "x", "type": "y", "is_default": True, "config": {}}
    shape = {**DATABASE, "retrieval_strategies": [strategy], "dependent_datasets": [], "notes": ["x"]}
    assert_shape(shape, answer.json())
    configured = api.get(PROJECT).json()["project"]["config"]["rag"]["databases"][1]
    assert configured == DATABASE
    assert answer.json()["embedding_model"] == "all-MiniLM-L6-v2"
    assert any("nomic-embed-text" in note for note in answer.json()["notes"])
    again = api.post(f"/api{PROJECT}/rag/databases/", json=DATABASE)
    assert (again.status_code, "fda_db" in again.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"name": None}, 422, "name"),
        ({"name": "../x"}, 400, "database"),
        ({"name": "x", "type": "NonsenseStore"}, 422, "type"),
        ({"name": "x", "retrieval_strategies": [{"name": "g", "type": "GraphRetriever"}]}, 422, "GraphRetriever"),
        ({"name": "x", "retrieval_strategies": [{"name": "g", "type": "ElasticRetriever"}]}, 422, "BM25Retriever"),
        (
            {"name": "x", "retrieval_strategies": [{"name": "g", "type": "vector", "config": {"top_k": "5"}}]},
            422,
            "retrieval_strategies.0.config.top_k",
        ),
        ({"name": "x", "embedding_strategies": [{"name": "e", "type": "NonsenseEmbedder"}]}, 422, "NonsenseEmbedder"),
        ({"name": "x", "retrieval_strategy": "absent"}, 422, "absent"),
    ],
    ids=str,
)
def test_a_wrong_database_is_refused_by_the_field(
    api: httpx.Client, change: dict[str, Any], status: int, named: str
) -> None:
    answer = api.post(f"{PROJECT}/rag/databases", json=change)
    assert (answer.status_code, named in answer.json()["detail"]) == (status, True), answer.text


def test_listing_databases_has_the_clients_shape(api: httpx.Client) -> None:
    answer = api.get(f"{PROJECT}/rag/databases").json()
    shape = {
        "databases": [
            {
                "name": "main_db",
                "type": "MilvusStore",
                "is_default": True,
                "embedding_strategies": [],
                "retrieval_strategies": [{"name": "x", "type": "y", "is_default": True}],
            }
        ],
        "default_database": "main_db",
    }
    assert_shape(shape, answer)
    assert [(entry["name"], entry["is_default"]) for entry in answer["databases"]] == [
        ("main_db", True), ("fda_db", False),
    ]  # fmt: skip
    embedding = answer["databases"][1]["embedding_strategies"][0]
    assert (embedding["name"], embedding["is_default"], embedding["priority"]) == ("default_embeddings", True, 0)
    assert [entry["is_default"] for entry in answer["databases"][1]["retrieval_strategies"]][:2] == [True, False]
    assert api.get(f"/api{PROJECT}/rag/databases").json() == answer


def test_a_database_without_documents_has_stats_and_an_empty_list(api: httpx.Client) -> None:
    stats = api.get(f"{PROJECT}/rag/stats?database=fda_db").json()
    assert (stats["vector_count"], stats["embedding_dimension"], "last_updated" in stats) == (0, 384, False)
    listed = api.get(f"{PROJECT}/rag/databases/fda_db/documents")
    assert (listed.status_code, listed.json()) == (200, [])


def test_documents_are_a_bare_array(api: httpx.Client) -> None:
    dataset = {"name": "papers", "database": "fda_db"}
    assert api.post(f"{PROJECT}/datasets/", json=dataset).status_code == 200
    for name, data in (("note.md", NOTE), ("paper.txt", PAPER)):
        assert api.post(f"{PROJECT}/datasets/papers/data", files={"file": (name, data)}).status_code == 200
    assert api.post(f"{PROJECT}/datasets/papers/process").json()["processed_files"] == 2
    answer = api.get(f"{PROJECT}/rag/databases/fda_db/documents").json()
    document = {
        "id": "ab",
        "filename": "note.md",
        "chunk_count": 1,
        "size_bytes": 45,
        "parser_used": "markdown",
        "date_ingested": "2026-01-01T00:00:00.000+00:00",
        "metadata": {"datasets": ["papers"]},
    }
    assert_shape([document], answer)
    assert [(entry["filename"], entry["id"], entry["size_bytes"]) for entry in answer] == [
        ("note.md", HASHES["note.md"], len(NOTE)),
        ("paper.txt", HASHES["paper.txt"], len(PAPER)),
    ]
    listed = next(d for d in api.get(f"{PROJECT}/datasets").json()["datasets"] if d["name"] == "papers")
    for entry, file in zip(answer, listed["details"]["files_metadata"], strict=True):
        # Processing came after both uploads; milliseconds are cut off.
        ingested = datetime.fromisoformat(entry["date_ingested"])
        assert ingested.tzinfo is not None
        assert ingested.timestamp() > file["timestamp"]
    assert api.get(f"{PROJECT}/rag/databases/fda_db/documents?limit=1&offset=1").json() == answer[1:]
    assert api.get(f"{PROJECT}/rag/documents?database=fda_db").json() == answer
    assert api.get(f"{PROJECT}/rag/documents").json() == []
    assert api.get(f"{PROJECT}/rag/databases/fda_db/documents?limit=0").status_code == 422
    assert api.get(f"{PROJECT}/rag/databases/absent/documents").status_code == 404


def test_stats_agree_with_health_and_the_documents(api: httpx.Client) -> None:
    answer = api.get(f"{PROJECT}/rag/stats?database=fda_db").json()
    shape = {
        "database": "fda_db",
        "vector_count": 5,
        "document_count": 2,
        "chunk_count": 5,
        "collection_size_bytes": 4096,
        "index_size_bytes": 4096,
        "embedding_dimension": 384,
        "distance_metric": "cosine",
        "last_updated": "2026-01-01T00:00:00.000+00:00",
        "metadata": {"embedding_model": "all-MiniLM-L6-v2"},
    }
    assert_shape(shape, answer)
    chunks = sum(entry["chunk_count"] for entry in api.get(f"{PROJECT}/rag/databases/fda_db/documents").json())
    health = api.get(f"{PROJECT}/rag/health?database=fda_db").json()
    assert answer["vector_count"] == answer["chunk_count"] == chunks == health["databases"][0]["chunk_count"]
    assert answer["document_count"] == health["databases"][0]["document_count"] == 2
    assert answer["index_size_bytes"] == chunks * 384 * 4
    assert datetime.fromisoformat(answer["last_updated"]).tzinfo is not None
    assert api.get(f"{PROJECT}/rag/stats?database=absent").status_code == 404


def test_health_has_the_command_line_s_shape_and_names_the_substitute(api: httpx.Client) -> None:
    answer = api.get(f"{PROJECT}/rag/health?database=fda_db").json()
    component = {"name": "embedder", "status": "healthy", "latency": 1.5, "latency_ms": 1, "message": "x"}
    shape = {
        "status": "degraded",
        "database": "fda_db",
        "components": {"embedder": component, "vector_store": component},
        "last_check": "2026-01-01T00:00:00.000+00:00",
        "issues": ["x"],
    }
    assert_shape(shape, answer)
    assert "nomic-embed-text" in answer["issues"][0]
    assert datetime.fromisoformat(answer["last_check"]).tzinfo is not None
    assert api.get(f"{PROJECT}/rag/health?database=absent").status_code == 404


@pytest.mark.parametrize(
    "strategy",
    ["semantic_search", "keywords", "filtered_search", "multi_query", "hybrid_search", "reranked_search", "multi_turn"],
)
def test_every_configured_strategy_answers(api: httpx.Client, strategy: str) -> None:
    body = {
        "query": "When does the barn gate close in the evening, and when is the audit of the Zephyr laboratory?",
        "database": "fda_db",
        "retrieval_strategy": strategy,
    }
    answer = api.post(f"{PROJECT}/rag/query", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert answer.json()["retrieval_strategy_used"] == strategy
    scores = [entry["score"] for entry in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    wanted = {"note.md"} if strategy == "filtered_search" else {"note.md", "paper.txt"}
    assert {entry["metadata"]["filename"] for entry in results} == wanted


def test_a_strategy_whose_model_is_not_installed_says_so(api: httpx.Client) -> None:
    body = {"query": "barn", "database": "fda_db", "retrieval_strategy": "judged"}
    answer = api.post(f"{PROJECT}/rag/query", json=body)
    assert answer.status_code == 404
    assert "ms-marco-MiniLM-L-6-v2" in answer.json()["detail"]
    assert "Installed cross-encoders" in answer.json()["detail"]


def test_a_cross_encoder_in_the_models_folder_gives_the_scores(api: httpx.Client, server: RunningServer) -> None:
    make_cross_encoder(server.data_dir / "models" / "tiny-reranker")
    body = {"query": "llama eat grass", "database": "fda_db", "rerank_model": "tiny-reranker"}
    reranked = api.post(f"{PROJECT}/rag/query", json=body)
    assert reranked.status_code == 200, reranked.text
    plain = api.post(f"{PROJECT}/rag/query", json={**body, "rerank_model": None}).json()["results"]
    results = reranked.json()["results"]
    assert {entry["chunk_id"] for entry in results} == {entry["chunk_id"] for entry in plain}
    assert [entry["score"] for entry in results] != [entry["score"] for entry in plain]
    scores = [entry["score"] for entry in results]
    assert scores == sorted(scores, reverse=True)
    absent = api.post(f"{PROJECT}/rag/query", json={**body, "rerank_model": "absent"})
    assert (absent.status_code, "tiny-reranker" in absent.json()["detail"]) == (404, True)


@pytest.mark.parametrize("metric", ["cosine", "l2", "euclidean", "ip", "dot"])
def test_the_metric_changes_the_scores_by_its_formula_and_not_the_order(api: httpx.Client, metric: str) -> None:
    body = {"query": "barn gate", "database": "fda_db", "retrieval_strategy": "semantic_search"}
    plain = api.post(f"{PROJECT}/rag/query", json=body).json()["results"]
    other = api.post(f"{PROJECT}/rag/query", json={**body, "distance_metric": metric}).json()["results"]
    assert [entry["chunk_id"] for entry in other] == [entry["chunk_id"] for entry in plain]
    for one, two in zip(plain, other, strict=True):
        distance = max(0.0, 4 - 4 * one["score"]) ** 0.5
        expected = 1 / (1 + distance) if metric in ("l2", "euclidean") else one["score"]
        assert two["score"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("field", "strategy"),
    [({"hybrid_alpha": 0.5}, "semantic_search"), ({"distance_metric": "l2"}, "keywords"),
     ({"query_expansion": True}, "semantic_search")], ids=str,
)  # fmt: skip
def test_a_field_that_could_have_no_effect_is_refused(api: httpx.Client, field: dict[str, Any], strategy: str) -> None:
    body = {"query": "barn", "database": "fda_db", "retrieval_strategy": strategy, **field}
    answer = api.post(f"{PROJECT}/rag/query", json=body)
    assert (answer.status_code, next(iter(field)) in answer.json()["detail"]) == (400, True)


def test_a_processing_strategy_narrows_to_its_datasets(api: httpx.Client) -> None:
    body = {"query": "barn gate", "database": "fda_db", "data_processing_strategy": "universal_processor"}
    assert len(api.post(f"{PROJECT}/rag/query", json=body).json()["results"]) > 1
    refused = api.post(f"{PROJECT}/rag/query", json={**body, "data_processing_strategy": "absent"})
    assert (refused.status_code, "universal_processor" in refused.json()["detail"]) == (400, True)


def test_a_preview_shows_the_chunks_and_where_they_are(api: httpx.Client) -> None:
    body = {"dataset_id": "papers", "file_hash": HASHES["paper.txt"], "chunk_size": 200, "chunk_overlap": 20}
    answer = api.post(f"{PROJECT}/rag/databases/fda_db/preview", json=body)
    assert answer.status_code == 200, answer.text
    chunk = {
        "chunk_index": 0,
        "content": "x",
        "start_position": 0,
        "end_position": 1,
        "char_count": 1,
        "word_count": 1,
        "metadata": {},
    }
    shape = {
        "original_text": "x",
        "chunks": [chunk],
        "filename": "paper.txt",
        "size_bytes": 1,
        "total_chunks": 1,
        "avg_chunk_size": 1.0,
        "total_size_with_overlaps": 1,
        "warnings": [],
    }
    assert_shape(shape, answer.json())
    shown = answer.json()
    assert shown["total_chunks"] == len(shown["chunks"]) > 5
    for each in shown["chunks"]:
        assert shown["original_text"][each["start_position"] : each["end_position"]] == each["content"]
        assert each["char_count"] == len(each["content"]) <= 200
    sent = {"file_content": base64.b64encode(NOTE).decode(), "filename": "note.md"}
    own = api.post(f"{PROJECT}/rag/databases/fda_db/preview", json=sent).json()
    assert (own["original_text"], own["total_chunks"]) == (NOTE.decode(), 1)
    assert api.post(f"{PROJECT}/rag/databases/fda_db/preview", json={}).status_code == 400
    assert api.post(f"{PROJECT}/rag/databases/absent/preview", json=sent).status_code == 404
    assert api.post(f"{PROJECT}/rag/databases/fda_db/preview", json={**sent, "chunk_size": 1}).status_code == 422


def test_a_database_is_shown_and_changed(api: httpx.Client) -> None:
    shown = api.get(f"{PROJECT}/rag/databases/fda_db").json()
    assert (shown["name"], shown["dependent_datasets"]) == ("fda_db", ["papers"])
    change = {"default_retrieval_strategy": "keywords", "config": None}
    changed = api.patch(f"{PROJECT}/rag/databases/fda_db", json=change)
    assert changed.status_code == 200, changed.text
    assert (changed.json()["default_retrieval_strategy"], changed.json()["config"]) == ("keywords", {})
    config = api.get(PROJECT).json()["project"]["config"]
    assert config["rag"]["databases"][1]["default_retrieval_strategy"] == "keywords"
    assert api.patch(f"{PROJECT}/rag/databases/fda_db", json={"name": "other"}).status_code == 400
    assert api.patch(f"{PROJECT}/rag/databases/absent", json={}).status_code == 404
    wrong = api.patch(f"{PROJECT}/rag/databases/fda_db", json={"default_retrieval_strategy": "absent"})
    assert (wrong.status_code, "absent" in wrong.json()["detail"]) == (422, True)


def test_reindexing_is_a_task_that_makes_every_vector_again(api: httpx.Client) -> None:
    before = api.get(f"{PROJECT}/rag/stats?database=fda_db").json()["vector_count"]
    started = api.post(f"{PROJECT}/rag/reindex", json={"database": "fda_db"})
    assert started.status_code == 200, started.text
    for _ in range(300):
        task = api.get(started.json()["task_uri"]).json()
        if task["state"] in ("SUCCESS", "FAILURE"):
            break
        time.sleep(0.1)
    assert (task["state"], task["result"]["chunks"]) == ("SUCCESS", before)
    assert api.get(f"{PROJECT}/rag/stats?database=fda_db").json()["vector_count"] == before
    assert api.post(f"{PROJECT}/rag/reindex", json={"database": "absent"}).status_code == 404


def test_clearing_and_deleting_leave_nothing_behind(api: httpx.Client) -> None:
    refused = api.delete(f"{PROJECT}/rag/databases/fda_db")
    assert (refused.status_code, "papers" in refused.json()["detail"]) == (409, True)
    cleared = api.post(f"{PROJECT}/rag/clear", json={"database": "fda_db"}).json()
    assert (cleared["database"], cleared["deleted_chunks"] > 0) == ("fda_db", True)
    query = {"query": "barn", "database": "fda_db"}
    assert api.post(f"{PROJECT}/rag/query", json=query).json()["results"] == []
    assert api.post(f"{PROJECT}/datasets/papers/process").json()["processed_files"] == 2
    assert api.post(f"{PROJECT}/rag/query", json=query).json()["results"] != []
    assert api.delete(f"{PROJECT}/datasets/papers").status_code == 200
    deleted = api.delete(f"{PROJECT}/rag/databases/fda_db?delete_collection=true")
    assert (deleted.status_code, deleted.json()["database"]["name"]) == (200, "fda_db")
    assert api.get(f"{PROJECT}/rag/databases/fda_db").status_code == 404
    assert api.post(f"{PROJECT}/rag/query", json=query).status_code == 404
    assert [entry["name"] for entry in api.get(f"{PROJECT}/rag/databases").json()["databases"]] == ["main_db"]


def test_native_clients_get_typed_databases(api: httpx.Client, server: RunningServer) -> None:
    names = {"namespace": "my-org", "project": "databases"}
    with grpc.insecure_channel(server.grpc_addresses[1]) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        made = stub.CreateDatabase(pb.CreateDatabaseRequest(**names, config={"name": "typed_db"}))
        assert (made.name, made.type) == ("typed_db", "MilvusStore")
        assert [entry.name for entry in stub.ListDatabases(pb.ListDatabasesRequest(**names)).databases] == [
            "main_db", "typed_db",
        ]  # fmt: skip
        assert list(stub.ListDocuments(pb.ListDocumentsRequest(**names, database="typed_db")).documents) == []
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetDatabase(pb.GetDatabaseRequest(**names))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stub.DeleteDatabase(pb.DeleteDatabaseRequest(**names, database_name="typed_db"))
