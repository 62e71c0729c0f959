"""The registry over a real folder and real workers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

import llamastead_server
from llamastead_server.adapters.model_catalog import ModelCatalog
from llamastead_server.adapters.model_registry import EngineOptions, LocalModelRegistry, available_memory_bytes
from llamastead_server.adapters.supervision import Supervision
from llamastead_server.domain.errors import (
    Conflict,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from llamastead_server.domain.models.generation import Delta, Finished, GenerationRequest, Sampling
from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.names import ProjectRef

ON_BOARD = Path(llamastead_server.__file__).parent / "models"
MODEL = next(ON_BOARD.glob("*.gguf"))
TINY = MODEL.stem
GREEDY = Sampling(temperature=0, logit_bias={70: 100.0})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "org" / "repo").mkdir(parents=True)
    shutil.copy(MODEL, folder / "org" / "repo" / "other-Q8_0.gguf")
    shutil.copy(MODEL, folder / "third.gguf")
    return folder


PROJECT = ProjectRef("org", "bot")


def catalog(models: Path, **options: object) -> ModelCatalog:
    return ModelCatalog(models, on_board_dir=ON_BOARD, **options)  # type: ignore[arg-type]


@pytest.fixture
async def registry(models: Path) -> AsyncIterator[LocalModelRegistry]:
    registry = LocalModelRegistry(
        catalog(models), models, EngineOptions(context_length=512, slots=2, threads=1), max_loaded=2
    )
    yield registry
    await registry.close()


def checkpoint(folder: Path, **config: object) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096, **config}))
    (folder / "model.safetensors").write_bytes(b"0" * 100)


async def answer(registry: LocalModelRegistry, name: str | None) -> str:
    async with registry.lease(name) as engine:
        events = engine.generate(GenerationRequest(prompt="Once", sampling=GREEDY, max_tokens=8))
        return "".join([event.text async for event in events if isinstance(event, Delta)])


def test_a_scan_finds_files_in_folders_and_the_model_on_board_first(models: Path) -> None:
    cards = [entry.card for entry in catalog(models).entries()]
    assert [card.name for card in cards] == [TINY, "other-Q8_0", "third"]
    assert cards[0].on_board
    assert cards[1].path == "org/repo/other-Q8_0.gguf"
    assert cards[1].size_bytes == MODEL.stat().st_size
    assert (cards[1].context_length or 0) >= 2048
    assert (cards[1].parameters or 0) > 1_000_000


def test_parts_of_a_split_model_are_one_and_unfinished_downloads_none(models: Path) -> None:
    for part in (1, 2):
        shutil.copy(MODEL, models / f"big-{part:05}-of-00002.gguf")
        shutil.copy(MODEL, models / f"torn-{part:05}-of-00003.gguf")
    (models / ".downloading").mkdir()
    shutil.copy(MODEL, models / ".downloading" / "hidden.gguf")
    shutil.copy(MODEL, models / "mmproj-big.gguf")
    names = {entry.card.name: entry.card for entry in catalog(models).entries()}
    assert set(names) == {TINY, "other-Q8_0", "third", "big"}
    assert names["big"].size_bytes == 2 * MODEL.stat().st_size


def test_folders_are_told_apart_by_their_quantisation(models: Path) -> None:
    checkpoint(models / "plain")
    checkpoint(models / "org" / "exl", quantization_config={"quant_method": "exl2"})
    checkpoint(models / "gptq", quantization_config={"quant_method": "gptq"})
    found = {entry.card.name: (entry.card.format, entry.card.engine) for entry in catalog(models).entries()}
    assert found["plain"] == ("safetensors", "llamacpp")
    assert found["exl"] == ("exl2", "exllamav2")
    assert found["gptq"] == ("gptq", "exllamav2")


def test_models_of_one_name_stay_apart(models: Path) -> None:
    shutil.copy(MODEL, models / "org" / "third.gguf")
    assert {"third", "org/third"} <= {entry.card.name for entry in catalog(models).entries()}


def test_a_model_is_found_by_name_path_alias_and_in_any_case(models: Path) -> None:
    models_of = catalog(models, aliases={"mine": "third", "llama3.3": "third"})
    for name in ("third", "THIRD", "third.gguf", "mine", "llama3.3"):
        assert models_of.find(name).card.name == "third"
    assert models_of.find("org/repo/other-Q8_0.gguf").card.name == "other-Q8_0"
    assert models_of.find(None).card.name == TINY
    assert models_of.find("llama3.2:3b").card.name == TINY
    assert "llama3.2:3b" in models_of.find(TINY).card.aliases


def test_the_default_can_be_chosen(models: Path) -> None:
    chosen = catalog(models, default_model="third")
    assert chosen.default_model == "third"
    assert chosen.find("llama3.3").card.name == "third"


def test_an_unknown_model_says_what_is_there_and_how_to_get_it(models: Path) -> None:
    with pytest.raises(ModelNotFound) as missing:
        catalog(models).find("gpt-5")
    for word in (TINY, "third", "llamastead pull", "LLAMASTEAD_MODEL_ALIASES", "gpt-5"):
        assert word in missing.value.message


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "org/../../x.gguf", "a\x00/b"])
def test_names_never_lead_outside(models: Path, name: str) -> None:
    with pytest.raises((InvalidRequest, ModelNotFound)):
        catalog(models).find(name)


def test_a_missing_folder_is_an_empty_one(tmp_path: Path) -> None:
    empty = ModelCatalog(tmp_path / "none")
    assert empty.entries() == []
    assert empty.default_model == ""
    with pytest.raises(ModelNotFound, match="Installed: none"):
        empty.find(None)


async def test_a_lease_loads_on_demand_and_the_model_stays(registry: LocalModelRegistry) -> None:
    assert registry.resolve(None).state == "available"
    assert await answer(registry, None)
    card = registry.resolve(None)
    assert (card.state, card.loaded, card.context_length) == ("ready", True, 512)
    assert card.memory_bytes


async def test_many_askers_share_one_load_and_one_may_leave(registry: LocalModelRegistry) -> None:
    leaver = asyncio.create_task(answer(registry, None))
    await asyncio.sleep(0)
    others = [asyncio.create_task(answer(registry, None)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert registry.resolve(None).state == "loading"
    leaver.cancel()
    assert len(set(await asyncio.gather(*others))) == 1
    assert len(registry.engines) == 1


async def test_the_least_recently_used_model_makes_room(registry: LocalModelRegistry) -> None:
    for name in (TINY, "third", TINY, "other-Q8_0"):
        await registry.load(name)
    assert set(registry.engines) == {TINY, "other-Q8_0"}


async def test_a_model_in_use_is_not_evicted(registry: LocalModelRegistry) -> None:
    async with registry.lease(TINY), registry.lease("third"):
        with pytest.raises(Overloaded) as refused:
            await registry.load("other-Q8_0")
        assert refused.value.retry_after
    await registry.load("other-Q8_0")


async def test_models_wanted_at_once_do_not_push_each_other_out(models: Path) -> None:
    registry = LocalModelRegistry(catalog(models), models, EngineOptions(512, 2, threads=1), max_loaded=1)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            *(answer(registry, name) for name in (TINY, "third") * 2), return_exceptions=True
        )
    assert {type(each) for each in answers} == {str, Overloaded}
    # That there was no room for it is not its failure.
    assert {registry.resolve(name).state for name in (TINY, "third")} == {"ready", "available"}
    assert await answer(registry, "third") == await answer(registry, TINY)
    await registry.close()


async def test_a_model_that_a_project_keeps_makes_no_room_until_it_is_let_go(registry: LocalModelRegistry) -> None:
    async def use(name: str, *, keeps: bool) -> None:
        async with registry.lease(name, keeper=Keeper(PROJECT, name, keeps)):
            pass

    await use(TINY, keeps=True)
    await use("third", keeps=False)
    await registry.load("other-Q8_0")
    assert set(registry.engines) == {TINY, "other-Q8_0"}
    await use("other-Q8_0", keeps=True)
    with pytest.raises(Overloaded, match=f"keep_loaded.*{TINY}|{TINY}.*keep_loaded"):
        await registry.load("third")
    await registry.clear_prompt_caches()
    with pytest.raises(Overloaded):
        await registry.load("third")

    await use("other-Q8_0", keeps=False)
    await registry.load("third")
    assert set(registry.engines) == {TINY, "third"}
    await registry.kept.delete_project(ProjectRef("org", "another"))
    await use("third", keeps=True)
    with pytest.raises(Overloaded):
        await registry.load("other-Q8_0")
    await registry.kept.delete_project(PROJECT)
    await registry.load("other-Q8_0")

    await use("other-Q8_0", keeps=True)
    await registry.unload("other-Q8_0")
    await registry.load("other-Q8_0")
    await registry.load(TINY)
    await registry.load("third")
    assert set(registry.engines) == {TINY, "third"}


async def test_unloading_waits_for_running_answers_and_new_requests_load_the_model_again(
    registry: LocalModelRegistry,
) -> None:
    async with registry.lease(TINY) as engine:
        first = engine.worker_pid
        unloading = asyncio.create_task(registry.unload(TINY))
        await asyncio.sleep(0.05)
        later = asyncio.create_task(answer(registry, TINY))
        events = engine.generate(GenerationRequest(prompt="Once", sampling=GREEDY, max_tokens=8))
        assert "".join([event.text async for event in events if isinstance(event, Delta)])
        assert not unloading.done()
    assert [card.name for card in await unloading] == [TINY]
    assert await later
    assert registry.engines[TINY].worker_pid != first


async def test_an_answer_that_outlives_the_drain_ends_with_a_clear_error(models: Path) -> None:
    options = EngineOptions(context_length=512, slots=1, threads=1, supervision=Supervision(stop_grace=0.1))
    registry = LocalModelRegistry(catalog(models), models, options)
    async with (
        registry.lease(TINY) as engine,
        aclosing(engine.generate(GenerationRequest(prompt="Once", sampling=GREEDY))) as events,
    ):
        await anext(events)
        # It can't come to its end any more.
        os.kill(engine.worker_pid or 0, signal.SIGSTOP)
        unloading = asyncio.create_task(registry.unload(TINY, drain=0.0))
        with pytest.raises(EngineFailed, match="unloaded"):
            async for _ in events:
                pass
    await unloading
    await registry.close()


async def test_a_model_whose_file_has_gone_can_be_unloaded(registry: LocalModelRegistry, models: Path) -> None:
    await registry.load("third")
    (models / "third.gguf").unlink()
    with pytest.raises(ModelNotFound):
        await registry.load("third")
    assert [card.name for card in await registry.unload(registry.active_model)] == ["third"]
    assert registry.active_model is None


async def test_who_asked_to_unload_may_go_away(registry: LocalModelRegistry) -> None:
    async with registry.lease(TINY) as engine:
        pid = engine.worker_pid
        unloading = asyncio.create_task(registry.unload(TINY))
        await asyncio.sleep(0.05)
        unloading.cancel()
    await registry.load(TINY)
    assert registry.engines[TINY].worker_pid != pid


async def test_a_window_is_taken_up_by_loading_anew_unless_the_model_is_in_use(registry: LocalModelRegistry) -> None:
    assert (await registry.load(TINY)).context_length == 512
    assert (await registry.load(TINY, context_length=256)).context_length == 256
    async with registry.lease(TINY):
        with pytest.raises(Conflict, match="in use"):
            await registry.load(TINY, context_length=1024)
    await registry.unload(TINY)
    assert (await registry.load(TINY)).context_length == 512


async def test_a_window_that_is_asked_for_while_the_model_loads_is_taken_up(registry: LocalModelRegistry) -> None:
    loading = asyncio.create_task(registry.load(TINY))
    await asyncio.sleep(0.1)
    assert (await registry.load(TINY, context_length=256)).context_length == 256
    await loading


async def test_clearing_prompt_caches_loads_models_anew_and_tells_what_it_freed(registry: LocalModelRegistry) -> None:
    prompt = "Once upon a time there was a llama. " * 10
    request = GenerationRequest(prompt=prompt, sampling=GREEDY, max_tokens=4)

    async def cached() -> int:
        async with registry.lease(TINY) as engine:
            ends = [event async for event in engine.generate(request) if isinstance(event, Finished)]
            return ends[0].usage.cached_tokens

    await cached()
    assert await cached() > 0
    assert await registry.clear_prompt_caches() >= 0
    assert await cached() == 0


async def test_prompt_caches_are_cleared_by_several_at_once_and_beside_an_unload(registry: LocalModelRegistry) -> None:
    await registry.load(TINY)
    await registry.load("third")
    await asyncio.gather(registry.clear_prompt_caches(), registry.clear_prompt_caches(), registry.unload("third"))
    assert set(registry.engines) == {TINY}


async def test_the_active_model_is_the_one_used_last(registry: LocalModelRegistry) -> None:
    assert registry.active_model is None
    for name in (TINY, "third", TINY):
        await registry.load(name)
        assert registry.active_model == name


async def test_unloading_ends_the_process_and_frees_its_memory(registry: LocalModelRegistry) -> None:
    async with registry.lease(TINY) as engine:
        status = await engine.status()
        assert status.memory_bytes > 10 << 20
        pid = engine.worker_pid
    assert [card.name for card in await registry.unload(TINY)] == [TINY]
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    assert registry.resolve(TINY).state == "available"
    assert await registry.unload(None) == []


async def test_a_model_larger_than_the_free_memory_is_refused(models: Path) -> None:
    registry = LocalModelRegistry(catalog(models), models, available_memory=lambda: 1 << 20)
    with pytest.raises(Unavailable, match="does not fit"):
        await registry.load(TINY)
    await registry.close()
    assert (available_memory_bytes() or 0) > 1 << 20


async def test_a_damaged_file_is_a_clear_failure_and_the_rest_goes_on(
    models: Path, registry: LocalModelRegistry
) -> None:
    (models / "broken.gguf").write_bytes(MODEL.read_bytes()[:2_000_000])
    (models / "junk.gguf").write_bytes(os.urandom(1000))
    for name in ("broken", "junk"):
        with pytest.raises(Unavailable):
            await registry.load(name)
        assert registry.resolve(name).state == "failed"
    assert await answer(registry, None)


async def test_a_gpu_format_says_what_it_needs(models: Path, registry: LocalModelRegistry) -> None:
    checkpoint(models / "exl", quantization_config={"quant_method": "exl2"})
    with pytest.raises(Unavailable, match="NVIDIA GPU"):
        await registry.load("exl")


async def test_listing_costs_no_reading_when_nothing_changed(
    models: Path, registry: LocalModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = registry.list_models()

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a header was read again")

    monkeypatch.setattr("llamastead_server.adapters.model_catalog.read_header", read)
    assert registry.list_models() == before
