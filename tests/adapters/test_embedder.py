"""Against the real worker with the model on board."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.domain.errors import InvalidRequest, ModelNotFound, Overloaded, Unavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = "all-MiniLM-L6-v2"


def make_cross_encoder(folder: Path) -> None:
    """A tiny cross-encoder with random weights: real files, meaningless scores."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "llama", "eat", "grass", "stone"]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config = BertConfig.from_dict(
        {"vocab_size": len(words), "max_position_embeddings": 64, "id2label": {"0": "relevance"}, **sizes}
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)


def make_bi_encoder(folder: Path) -> None:
    """A tiny embedding model with random weights and vectors of another length than the one on board."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    raw = folder.parent / f".{folder.name}-raw"
    raw.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "llama", "barn", "gate", "audit"]
    (raw / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    BertModel(BertConfig.from_dict({"vocab_size": len(words), "max_position_embeddings": 64, **sizes})).save_pretrained(
        raw
    )
    (raw / "config.json").write_text((raw / "config.json").read_text().replace("{", '{"model_type": "bert",', 1))
    AutoTokenizer.from_pretrained(raw, model_max_length=64).save_pretrained(raw)
    transformer = Transformer(str(raw))
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerEmbedder]:
    folder = tmp_path_factory.mktemp("models")
    make_cross_encoder(folder / "tiny-reranker")
    make_bi_encoder(folder / "tiny-embedder")
    (folder / "not-a-reranker").mkdir()
    (folder / "not-a-reranker" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "broken-reranker").mkdir()
    (folder / "broken-reranker" / "config.json").write_text(
        json.dumps({"architectures": ["BertForSequenceClassification"], "model_type": "bert"})
    )
    async with WorkerEmbedder(MODEL, folder, cached_queries=4) as running:
        yield running


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.dot(np.asarray(one), np.asarray(other)))


async def test_vectors_have_length_one_and_the_model_s_dimension(embedder: WorkerEmbedder) -> None:
    vectors = [await embedder.embed_query("llamas"), *await embedder.embed_passages(["", "a", "llamas " * 5000])]
    assert [len(vector) for vector in vectors] == [await embedder.dimension()] * 4 == [384] * 4
    assert [cosine(vector, vector) for vector in vectors] == pytest.approx([1.0] * 4, abs=1e-5)


async def test_related_texts_are_nearer_than_unrelated_ones(embedder: WorkerEmbedder) -> None:
    query = await embedder.embed_query("Which animals live in the Andes?")
    related, unrelated = await embedder.embed_passages(["Llamas are found in Peru.", "The invoice is due on Monday."])
    assert cosine(query, related) > cosine(query, unrelated) + 0.2


async def test_passages_keep_their_order_and_do_not_depend_on_their_neighbours(embedder: WorkerEmbedder) -> None:
    texts = [f"{'word ' * (number % 40)}number {number}" for number in range(300)]
    together = await embedder.embed_passages(texts)
    assert len(together) == 300
    for number in (0, 39, 255, 256, 299):
        alone = await embedder.embed_passages([texts[number]])
        # bfloat16 rounds differently in a padded batch.
        assert cosine(together[number], alone[0]) > 0.999


async def test_no_texts_give_no_vectors(embedder: WorkerEmbedder) -> None:
    assert await embedder.embed_passages([]) == []


async def test_a_repeated_query_is_remembered_and_old_ones_are_forgotten(embedder: WorkerEmbedder) -> None:
    first = await embedder.embed_query("remember me")
    assert await embedder.embed_query("remember me") is first
    for number in range(4):
        await embedder.embed_query(f"other {number}")
    assert await embedder.embed_query("remember me") is not first


async def test_queries_are_answered_while_passages_are_embedded(embedder: WorkerEmbedder) -> None:
    passages = asyncio.create_task(embedder.embed_passages([f"passage {'word ' * 80} {n}" for n in range(200)]))
    await asyncio.sleep(0.05)
    await embedder.embed_query("a question that will not wait")
    assert not passages.done()
    passages.cancel()
    with pytest.raises(asyncio.CancelledError):
        await passages


async def test_too_many_passages_at_once_are_refused_and_queries_go_on(embedder: WorkerEmbedder) -> None:
    texts = [f"{'word ' * 60}{number}" for number in range(256)]
    flood = [asyncio.create_task(embedder.embed_passages(texts)) for _ in range(24)]
    try:
        done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_EXCEPTION)
        assert any(isinstance(task.exception(), Overloaded) for task in done)
        await embedder.embed_query("still here?")
    finally:
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_another_installed_model_embeds_beside_the_first(embedder: WorkerEmbedder) -> None:
    assert await embedder.installed() == [MODEL, "tiny-embedder"]
    other = embedder.using("tiny-embedder")
    assert (other.model, await other.dimension()) == ("tiny-embedder", 16)
    query, (passage,) = await other.embed_query("llama barn"), await other.embed_passages(["llama barn"])
    assert cosine(query, query) == pytest.approx(1.0, abs=1e-5)
    assert cosine(query, passage) == pytest.approx(1.0, abs=1e-2)
    # The same words have another vector in each model, also when they are remembered.
    assert len(await embedder.embed_query("llama barn")) == 384
    assert len(await other.embed_query("llama barn")) == 16
    assert other.using(MODEL) is embedder


@pytest.mark.parametrize("name", ["absent", "not-a-reranker", "tiny-reranker", "../models", "/etc"])
async def test_an_unknown_embedding_model_names_those_there_are(embedder: WorkerEmbedder, name: str) -> None:
    with pytest.raises((InvalidRequest, ModelNotFound)) as refused:
        await embedder.using(name).embed_query("query")
    if isinstance(refused.value, ModelNotFound):
        assert "tiny-embedder" in refused.value.message


async def test_reranking_scores_each_document(embedder: WorkerEmbedder) -> None:
    documents = ["llama eat grass", "stone", "grass", "llama eat grass"]
    scores = await embedder.rerank("tiny-reranker", "llama", documents)
    assert len(scores) == 4
    assert all(0 <= score <= 1 for score in scores)
    assert scores[0] == pytest.approx(scores[3], abs=1e-4)
    assert await embedder.rerank("tiny-reranker", "llama", []) == []


@pytest.mark.parametrize("name", ["absent", "not-a-reranker", "cross-encoder/ms-marco-MiniLM-L6-v2"])
async def test_an_unknown_reranker_names_those_there_are(embedder: WorkerEmbedder, name: str) -> None:
    with pytest.raises(ModelNotFound, match="tiny-reranker"):
        await embedder.rerank(name, "query", ["document"])


async def test_a_reranker_outside_the_models_folder_is_refused(embedder: WorkerEmbedder) -> None:
    for name in ("../models", "/etc", "a\x00b"):
        with pytest.raises((InvalidRequest, ModelNotFound)):
            await embedder.rerank(name, "query", ["document"])


async def test_a_broken_reranker_is_the_request_s_error(embedder: WorkerEmbedder) -> None:
    with pytest.raises(InvalidRequest, match="broken-reranker"):
        await embedder.rerank("broken-reranker", "query", ["document"])
    await embedder.embed_query("unharmed")


async def test_a_killed_worker_is_unavailable_then_started_again(embedder: WorkerEmbedder) -> None:
    pid = embedder.worker.pid
    assert pid is not None
    waiting = asyncio.create_task(embedder.embed_passages([f"{'word ' * 80}{number}" for number in range(100)]))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await embedder.embed_query("while it is away")
    async with asyncio.timeout(60):
        while embedder.worker.pid in (None, pid) or embedder.worker.state != "ready":
            await asyncio.sleep(0.05)
    assert len(await embedder.embed_query("back again")) == 384
    assert embedder.worker.pid != pid


async def test_a_model_that_is_not_installed_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no-such-model.*not installed"):
        await WorkerEmbedder("no-such-model", tmp_path).__aenter__()
