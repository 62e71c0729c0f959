"""Against the real embedder, vector store and database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.files import FileRecord
from llamastead_server.domain.errors import Conflict, InvalidRequest, NotFound, RequestTimeout
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk, Collection
from llamastead_server.domain.retrieval.fusion import estimated_tokens, keyword_score, vector_score
from llamastead_server.domain.retrieval.health import RetrievalHealth
from llamastead_server.domain.retrieval.plan import RetrievalQuery
from llamastead_server.domain.retrieval.query_variants import variants
from llamastead_server.domain.retrieval.retriever import RetrievalResult, Retriever
from tests.adapters.test_embedder import make_cross_encoder
from tests.dataset_stack import MODEL, REF, Stack, stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILES = {
    "llamas.txt": "Llamas live in the high grasslands of the Andes and eat ichu grass.",
    "audit.txt": "The quarterly audit of the Zephyr laboratory happens on the ninth of March.",
    "barn.txt": "The barn gate closes at eight in the evening, except on market days.",
    "wool.txt": "Alpaca wool is finer than sheep wool and is sorted by hand before spinning.",
    "code.txt": "Error ZX-4410 means that the water pump has lost its pressure.",
}
EMPTY = ProjectRef("my-org", "empty")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("retrieval")
    make_cross_encoder(folder / "models" / "tiny-reranker")
    async with WorkerEmbedder(MODEL, folder / "models") as embedder, stack(folder, embedder) as made:
        await made.make_project()
        for name, text in FILES.items():
            await made.add(name, text)
        await made.ingestion.process(REF, "papers")
        await made.make_project(EMPTY)
        yield made


@pytest.fixture
def retriever(parts: Stack) -> Retriever:
    return Retriever(parts.projects, parts.embedder, parts.vectors, parts.chunks)


async def ask(retriever: Retriever, query: str, ref: ProjectRef = REF, **fields: Any) -> RetrievalResult:
    return await retriever.query(ref, RetrievalQuery(query, **fields))


def names(result: RetrievalResult) -> list[str]:
    return [hit.chunk.filename for hit in result.hits]


@pytest.mark.parametrize("strategy", ["vector", "keyword", "hybrid", None])
async def test_the_best_hit_answers_the_question(retriever: Retriever, strategy: str | None) -> None:
    result = await ask(retriever, "When is the audit of the Zephyr laboratory?", retrieval_strategy=strategy)
    assert (result.database, result.strategy) == ("main_db", strategy or "hybrid")
    assert names(result)[0] == "audit.txt"
    assert result.hits[0].chunk.text == FILES["audit.txt"]
    assert result.hits[0].document_id == result.hits[0].chunk.file_hash
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert result.seconds > 0


async def test_meaning_is_found_by_vectors_and_codes_by_keywords(retriever: Retriever) -> None:
    meaning = "camelids feeding in South American mountains"
    assert names(await ask(retriever, meaning, retrieval_strategy="vector"))[0] == "llamas.txt"
    assert names(await ask(retriever, "ZX-4410", retrieval_strategy="keyword")) == ["code.txt"]
    assert names(await ask(retriever, "ZX-4410"))[0] == "code.txt"


async def test_hybrid_scores_are_the_weighted_sides(parts: Stack, retriever: Retriever) -> None:
    query = "when does the gate of the barn close"
    collection = Collection(REF, "main_db", await parts.embedder.dimension())
    vector = await parts.embedder.embed_query(query)
    cosines = {match.chunk_id: match.score for match in await parts.vectors.search_vector(collection, vector, 9, {})}
    bm25 = {match.chunk_id: match.score for match in await parts.vectors.search_keyword(collection, query, 9, {})}
    for alpha in (0.0, 0.3, 0.5, 1.0):
        result = await ask(retriever, query, hybrid_alpha=alpha)
        assert len(result.hits) == (5 if alpha else len(bm25))
        for hit in result.hits:
            expected = alpha * vector_score(cosines[hit.chunk.id])
            expected += (1 - alpha) * keyword_score(bm25.get(hit.chunk.id, 0.0))
            assert hit.score == pytest.approx(expected, abs=1e-5)


async def test_a_side_of_weight_0_brings_no_hits(retriever: Retriever) -> None:
    words = await ask(retriever, "Zephyr audit", retrieval_strategy="keyword", top_k=10)
    meant = await ask(retriever, "Zephyr audit", retrieval_strategy="vector", top_k=10)
    for alpha, alone in ((0.0, words), (1.0, meant)):
        result = await ask(retriever, "Zephyr audit", hybrid_alpha=alpha, top_k=10)
        assert [(hit.chunk.id, hit.score) for hit in result.hits] == [(hit.chunk.id, hit.score) for hit in alone.hits]
        assert result.strategy == "hybrid"
        assert all(hit.score > 0 for hit in result.hits)
    assert names(words) == ["audit.txt"]
    assert (await ask(retriever, "nowhereword", hybrid_alpha=0.0)).hits == []
    assert len((await ask(retriever, "nowhereword", hybrid_alpha=1.0, top_k=10)).hits) == len(FILES)


async def test_a_keyword_hit_that_the_vector_search_does_not_reach_still_gets_its_vector_score(
    parts: Stack, retriever: Retriever
) -> None:
    ref, query = ProjectRef("my-org", "crowd"), "xylophone"
    await parts.make_project(ref)
    towards = np.asarray(await parts.embedder.embed_query(query))
    across = np.roll(towards, 1)
    across = (across - (across @ towards) * towards) / np.linalg.norm(across - (across @ towards) * towards)

    def leaning(cosine: float) -> list[float]:
        return [float(value) for value in cosine * towards + np.sqrt(1 - cosine**2) * across]

    texts = ["A xylophone has wooden bars.", *(f"Nothing of the kind, number {number}." for number in range(120))]
    chunks = [Chunk(f"c{n:03}", "papers", "f" * 64, "f.txt", n, text) for n, text in enumerate(texts)]
    record = FileRecord(ref, "papers", "f" * 64, "f.txt", "text/plain", 0, 0.0, "processed")
    await parts.chunks.complete("main_db", record, chunks)
    await parts.chunks.remember_embedding(ref, "main_db", MODEL, len(towards))
    collection = Collection(ref, "main_db", len(towards))
    await parts.vectors.create(collection)
    await parts.vectors.upsert(collection, chunks, [leaning(0.2), *[leaning(0.5)] * 120])
    # A hundred others fill the vector side's list.
    nearest = await parts.vectors.search_vector(collection, leaning(1.0), 100, {})
    assert "c000" not in {match.chunk_id for match in nearest}
    bm25 = (await parts.vectors.search_keyword(collection, query, 5, {}))[0].score
    best = (await ask(retriever, query, ref)).hits[0]
    assert best.chunk.id == "c000"
    assert best.score == pytest.approx(0.5 * vector_score(0.2) + 0.5 * keyword_score(bm25), abs=1e-4)


async def test_a_score_does_not_depend_on_the_other_results(retriever: Retriever) -> None:
    everything = {hit.chunk.id: hit.score for hit in (await ask(retriever, "wool of the alpaca")).hits}
    alone = await ask(retriever, "wool of the alpaca", metadata_filters={"filename": "barn.txt"})
    assert names(alone) == ["barn.txt"]
    assert alone.hits[0].score == pytest.approx(everything[alone.hits[0].chunk.id], abs=1e-5)


async def test_top_k_threshold_and_max_tokens_cut_the_results(retriever: Retriever) -> None:
    every = (await ask(retriever, "llamas in the Andes")).hits
    assert len(every) == 5
    assert (await ask(retriever, "llamas in the Andes", top_k=2)).hits == every[:2]
    assert (await ask(retriever, "llamas in the Andes", score_threshold=every[1].score)).hits == every[:2]
    room = estimated_tokens(every[0].chunk.text) + estimated_tokens(every[1].chunk.text)
    assert (await ask(retriever, "llamas in the Andes", max_tokens=room)).hits == every[:2]
    assert (await ask(retriever, "llamas in the Andes", max_tokens=room - 1)).hits == every[:1]
    assert (await ask(retriever, "llamas in the Andes", max_tokens=1)).hits == []


@pytest.mark.parametrize("strategy", ["vector", "keyword", "hybrid"])
async def test_filters_hold_for_every_strategy(retriever: Retriever, strategy: str) -> None:
    query = "the Andes, the audit, the barn and the wool"
    either = {"filename": ["barn.txt", "wool.txt"]}
    found = await ask(retriever, query, retrieval_strategy=strategy, metadata_filters=either)
    assert sorted(names(found)) == ["barn.txt", "wool.txt"]
    hostile = {"filename": 'x" or filename != "y'}
    assert (await ask(retriever, query, retrieval_strategy=strategy, metadata_filters=hostile)).hits == []
    with pytest.raises(InvalidRequest):
        await ask(retriever, query, retrieval_strategy=strategy, metadata_filters={'bad" key': 1})


async def test_the_same_file_in_two_datasets_is_one_hit(parts: Stack, retriever: Retriever) -> None:
    await parts.datasets.create(REF, "copies")
    await parts.add("barn.txt", FILES["barn.txt"], dataset="copies")
    await parts.ingestion.process(REF, "copies")
    try:
        result = await ask(retriever, "barn gate", top_k=5)
        assert sorted(names(result)) == sorted(FILES)
    finally:
        await parts.datasets.delete(REF, "copies")


async def test_expansion_finds_by_words_that_the_best_hits_share(parts: Stack, retriever: Retriever) -> None:
    texts = {"one.md": "Quokka colony, marsupial of Rottnest.", "two.md": "Quokka smile, Rottnest marsupial.",
             "three.md": "Rottnest has beaches."}  # fmt: skip
    await parts.datasets.create(REF, "expansion")
    for name, text in texts.items():
        await parts.add(name, text, dataset="expansion")
    await parts.ingestion.process(REF, "expansion")
    try:
        plain = await ask(retriever, "quokka", retrieval_strategy="keyword")
        assert sorted(names(plain)) == ["one.md", "two.md"]
        expanded = await ask(retriever, "quokka", retrieval_strategy="keyword", query_expansion=True)
        assert names(expanded)[-1] == "three.md"
        assert sorted(names(expanded)) == ["one.md", "three.md", "two.md"]
        hybrid = await ask(retriever, "quokka", query_expansion=True, top_k=3)
        assert sorted(names(hybrid)) == ["one.md", "three.md", "two.md"]
    finally:
        await parts.datasets.delete(REF, "expansion")


async def test_reranking_replaces_the_scores(parts: Stack, retriever: Retriever) -> None:
    query = "llama grass"
    result = await ask(retriever, query, rerank_model="tiny-reranker", top_k=3)
    texts = list(FILES.values())
    expected = dict(zip(texts, await parts.embedder.rerank("tiny-reranker", query, texts), strict=True))
    best = sorted(expected.values(), reverse=True)[:3]
    assert [hit.score for hit in result.hits] == pytest.approx(best, abs=1e-4)
    for hit in result.hits:
        assert hit.score == pytest.approx(expected[hit.chunk.text], abs=1e-4)


async def configured(parts: Stack, name: str, type_name: str, **config: Any) -> None:
    """Gives the database a strategy beside the one it has by default."""
    strategies = [{"name": "hybrid"}, {"name": name, "type": type_name, "config": config}]
    await parts.databases.update(REF, "main_db", {"retrieval_strategies": strategies})


async def scores(retriever: Retriever, query: str, **fields: Any) -> dict[str, float]:
    return {hit.chunk.filename: hit.score for hit in (await ask(retriever, query, top_k=100, **fields)).hits}


@pytest.mark.parametrize("method", ["weighted_average", "rank_fusion", "score_fusion"])
async def test_a_combined_strategy_s_scores_follow_its_formula(parts: Stack, retriever: Retriever, method: str) -> None:
    query = "when does the gate of the barn close"
    legs = [{"type": "BasicSimilarityStrategy", "weight": 3}, {"type": "BM25Retriever", "weight": 1}]
    await configured(parts, "mixed", "HybridUniversalStrategy", strategies=legs, combination_method=method)
    found = await scores(retriever, query, retrieval_strategy="mixed")
    vector = await scores(retriever, query, retrieval_strategy="vector")
    keyword = await scores(retriever, query, retrieval_strategy="keyword")
    assert set(found) == set(vector) == set(FILES)

    def shown(side: dict[str, float], name: str) -> float:
        if method == "rank_fusion":
            return 61 / (60 + list(side).index(name) + 1) if name in side else 0.0
        return side.get(name, 0.0) / (max(side.values()) if method == "score_fusion" else 1.0)

    expected = {name: (3 * shown(vector, name) + shown(keyword, name)) / 4 for name in FILES}
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found, key=lambda name: found[name]) == "barn.txt"


@pytest.mark.parametrize("method", ["max", "mean", "weighted", "reciprocal_rank"])
async def test_several_wordings_are_aggregated_by_the_method(parts: Stack, retriever: Retriever, method: str) -> None:
    query = "When does the barn gate close, and who sorts the alpaca wool?"
    await configured(parts, "several", "MultiQueryStrategy", num_queries=4, aggregation_method=method)
    found = await scores(retriever, query, retrieval_strategy="several")
    sides = [await scores(retriever, text, retrieval_strategy="vector") for text in variants(query, 4)]
    assert len(sides) == 4
    weights = [1, 1 / 2, 1 / 3, 1 / 4] if method == "weighted" else [1, 1, 1, 1]
    for name in FILES:
        each = [61 / (60 + list(side).index(name) + 1) if method == "reciprocal_rank" else side[name] for side in sides]
        mean = sum(weight * score for weight, score in zip(weights, each, strict=True)) / sum(weights)
        assert found[name] == pytest.approx(max(each) if method == "max" else mean, abs=1e-5)


async def test_a_divided_question_finds_what_answers_each_part(parts: Stack, retriever: Retriever) -> None:
    await configured(parts, "divided", "MultiTurnRAGStrategy", sub_query_top_k=1, final_top_k=5)
    query = "What does the error ZX-4410 of the pump mean, and when is the audit of the Zephyr laboratory?"
    assert set(await scores(retriever, query, retrieval_strategy="divided")) == {"code.txt", "audit.txt"}
    assert len(await scores(retriever, "Zephyr audit?", retrieval_strategy="divided")) == 1


async def test_filters_after_the_search_see_its_best_candidates_only(parts: Stack, retriever: Retriever) -> None:
    query = "When is the audit of the Zephyr laboratory?"
    filters = {"filename": ["wool.txt", "audit.txt", "llamas.txt", "barn.txt"]}
    settings = {"filters": filters, "filter_mode": "post", "top_k": 1}
    await configured(parts, "after", "MetadataFilteredStrategy", **settings, fallback_multiplier=1)
    assert names(await ask(retriever, query, retrieval_strategy="after")) == ["audit.txt"]
    only = {**settings, "filters": {"filename": "wool.txt"}}
    await configured(parts, "after", "MetadataFilteredStrategy", **only, fallback_multiplier=1)
    assert names(await ask(retriever, query, retrieval_strategy="after")) == []
    await configured(parts, "after", "MetadataFilteredStrategy", **only, fallback_multiplier=5)
    assert names(await ask(retriever, query, retrieval_strategy="after")) == ["wool.txt"]


async def test_factors_other_than_similarity_can_decide(parts: Stack, retriever: Retriever) -> None:
    factors = {"similarity_weight": 0, "recency_weight": 0, "length_weight": 1, "metadata_weight": 0}
    await configured(parts, "long", "RerankedStrategy", rerank_factors=factors)
    longest_first = sorted(FILES, key=lambda name: (-len(FILES[name]), name))
    found = await scores(retriever, "Zephyr", retrieval_strategy="long")
    assert list(found.values()) == pytest.approx([len(FILES[name]) / 1000 for name in longest_first])


async def test_a_configured_cross_encoder_scores_and_is_bounded_in_time(parts: Stack, retriever: Retriever) -> None:
    await configured(
        parts, "judged", "CrossEncoderRerankedStrategy", model_name="tiny-reranker", base_strategy="keyword"
    )
    found = await scores(retriever, "Zephyr audit", retrieval_strategy="judged")
    texts = [FILES[name] for name in found]
    expected = await parts.embedder.rerank("tiny-reranker", "Zephyr audit", texts)
    assert list(found) == ["audit.txt"]
    assert list(found.values()) == pytest.approx(list(expected), abs=1e-4)
    await configured(parts, "judged", "CrossEncoderRerankedStrategy", model_name="tiny-reranker", timeout=1e-9)
    with pytest.raises(RequestTimeout, match="tiny-reranker"):
        await scores(retriever, "Zephyr audit", retrieval_strategy="judged")


async def test_what_does_not_exist_is_named(retriever: Retriever) -> None:
    with pytest.raises(NotFound, match="absent"):
        await ask(retriever, "x", database="absent")
    with pytest.raises(NotFound, match="tiny-reranker"):
        await ask(retriever, "x", rerank_model="absent/model")
    with pytest.raises(InvalidRequest, match="absent"):
        await ask(retriever, "x", retrieval_strategy="absent")
    with pytest.raises(NotFound):
        await ask(retriever, "x", ProjectRef("my-org", "nowhere"))


async def test_a_database_without_documents_gives_no_results(retriever: Retriever) -> None:
    assert (await ask(retriever, "anything", EMPTY)).hits == []


async def test_a_project_without_databases_is_told_so(parts: Stack, retriever: Retriever) -> None:
    bare = ProjectRef("my-org", "bare")
    raw = {"name": bare.name, "namespace": bare.namespace, "runtime": {"model": "tiny"}}
    await parts.projects.create(bare, ProjectConfig.parse(raw))
    with pytest.raises(InvalidRequest, match=r"rag\.databases"):
        await ask(retriever, "anything", bare)


async def test_another_embedding_model_is_a_conflict_that_says_what_to_do(parts: Stack, retriever: Retriever) -> None:
    ref = ProjectRef("my-org", "older")
    await parts.make_project(ref)
    await parts.chunks.remember_embedding(ref, "main_db", "old-model", 768)
    for strategy in ("vector", "hybrid"):
        with pytest.raises(Conflict, match="LLAMASTEAD_EMBEDDING_MODEL=old-model"):
            await ask(retriever, "x", ref, retrieval_strategy=strategy)
    assert (await ask(retriever, "x", ref, retrieval_strategy="keyword")).hits == []
    health = RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks)
    report = await health.check(ref, "main_db")
    assert (report.status, len(report.issues)) == ("degraded", 1)
    assert "old-model" in report.issues[0]


async def test_a_vector_whose_chunk_is_gone_is_no_hit(parts: Stack, retriever: Retriever) -> None:
    gone = await parts.add("gone.txt", "Phantom paragraphs haunt the archive.")
    await parts.ingestion.process(REF, "papers")
    assert names(await ask(retriever, "phantom", retrieval_strategy="keyword")) == ["gone.txt"]
    await parts.chunks.remove_file(REF, "papers", gone)
    assert (await ask(retriever, "phantom", retrieval_strategy="keyword")).hits == []
    await parts.datasets.remove_file(REF, "papers", gone, from_disk=True)


async def test_many_queries_at_once_get_their_own_answers(retriever: Retriever) -> None:
    questions = [(f"{text} number {number}", name) for number in range(6) for name, text in FILES.items()]
    results = await asyncio.gather(*(ask(retriever, question, top_k=1) for question, _ in questions))
    assert [names(result) for result in results] == [[name] for _, name in questions]


async def test_find_gives_a_chat_turn_its_passages(retriever: Retriever) -> None:
    sources = await retriever.find(REF, "Zephyr audit", database=None, strategy=None, top_k=2, score_threshold=None)
    assert sources[0].chunk.filename == "audit.txt"
    assert len(sources) == 2


async def test_health_counts_what_is_there(parts: Stack) -> None:
    health = RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks)
    report = await health.check(REF)
    assert (report.status, report.database, report.issues) == ("healthy", "main_db", [])
    main, other = report.databases
    assert (main.name, main.document_count, main.chunk_count, main.embedding) == ("main_db", 5, 5, (MODEL, 384))
    assert main.size_bytes > 5 * 384 * 4
    assert (other.name, other.document_count, other.chunk_count, other.size_bytes) == ("other_db", 0, 0, 0)
    assert [component.name for component in report.components] == ["vector_store", "embedder"]
    assert [entry.name for entry in (await health.check(REF, "other_db")).databases] == ["other_db"]
    with pytest.raises(NotFound, match="absent"):
        await health.check(REF, "absent")


async def test_health_tells_lost_vectors_and_a_dead_embedder(parts: Stack, tmp_path: Path) -> None:
    lost = ProjectRef("my-org", "lost")
    await parts.make_project(lost)
    await parts.add("a.txt", "Some text.", ref=lost)
    await parts.ingestion.process(lost, "papers")
    await parts.vectors.drop(lost)
    never_started = WorkerEmbedder(MODEL, tmp_path)
    report = await RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks).check(lost, "main_db")
    assert report.status == "degraded"
    assert "0 of 1 are left" in report.issues[0]
    assert "process its datasets again" in report.issues[0]
    report = await RetrievalHealth(parts.projects, never_started, parts.vectors, parts.chunks).check(REF, "main_db")
    assert report.status == "degraded"
    assert {component.name: component.status for component in report.components} == {
        "vector_store": "healthy",
        "embedder": "degraded",
    }
    assert "keyword searches only" in report.issues[1]
