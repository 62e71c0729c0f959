"""What the server knows of GPUs and how it starts workers for them, on a machine that pretends to have some."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llamastead_server.adapters import gpu as gpu_module
from llamastead_server.adapters.gpu import GpuHost
from llamastead_server.adapters.gpu_models import FILE_NAME, GpuModels
from llamastead_server.adapters.model_catalog import ModelCatalog
from llamastead_server.adapters.model_registry import LocalModelRegistry
from llamastead_server.adapters.supervision import Supervision
from llamastead_server.domain.errors import Conflict, Overloaded, Unavailable
from llamastead_server.domain.models.generation import Delta, GenerationRequest, Sampling
from llamastead_server.domain.models.gpu_settings import GpuSettings
from tests.workers.exllama_cpu import make_model

GIGABYTE = 1 << 30
Say = Callable[[str], None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """An nvidia-smi that says what it is told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def say(body: str) -> None:
        script = folder / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    say("echo '0, GPU-aaa, 20000'; echo '1, GPU-bbb, 10000'")
    return say


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuHost:
    root = tmp_path / "root"
    (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    (root / "dev").mkdir()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_module, "_torch_has_cuda", lambda: True)
    return GpuHost(root=root)


async def test_free_memory_is_what_the_driver_says_of_the_visible_gpus(
    driver: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await GpuHost().free_bytes() == 30000 << 20
    for visible, left in (("1", 10000), ("GPU-aaa", 20000), ("0,1", 30000), ("", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert await GpuHost().free_bytes() == left << 20


@pytest.mark.parametrize("body", ["exit 9", "echo 'No devices were found'", "echo '0, GPU-a, [N/A]'"])
async def test_a_driver_that_does_not_tell_is_not_believed(driver: Say, body: str) -> None:
    driver(body)
    assert await GpuHost().free_bytes() is None


async def test_no_driver_at_all_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await GpuHost().gpus() is None


def test_what_is_missing_is_named(machine: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.missing() == ""
    assert "LLAMASTEAD_GPU" in GpuHost(enabled=False).missing()
    (tmp_path / "bare").mkdir()
    assert "NVIDIA GPU" in GpuHost(root=tmp_path / "bare").missing()
    monkeypatch.setattr(gpu_module, "_torch_has_cuda", lambda: False)
    assert "CUDA build of PyTorch" in machine.missing()
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "exllamav2" else real(name, *rest)
    )
    assert "llamastead[cuda]" in machine.missing()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "NVIDIA GPU" in machine.missing()


def test_asking_loads_no_torch_into_the_server() -> None:
    import subprocess

    code = (
        "import sys; from llamastead_server.adapters.gpu import GpuHost; GpuHost().missing(); "
        "import llamastead_server.app; assert not {'torch', 'exllamav2'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def checkpoint(folder: Path, **config: object) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096, **config}))
    (folder / "model.safetensors").write_bytes(b"0" * 100)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    checkpoint(folder / "exl", quantization_config={"quant_method": "exl2"})
    checkpoint(folder / "plain")
    checkpoint(folder / "small")
    return folder


def launcher(models: Path, host: GpuHost, **defaults: Any) -> tuple[ModelCatalog, GpuModels]:
    catalog = ModelCatalog(models, gpu=True)
    return catalog, GpuModels(catalog, host, GpuSettings(**defaults), models.parent / "extensions")


def test_unquantised_folders_go_to_the_gpu_where_there_is_one(models: Path) -> None:
    for gpu, engine in ((True, "exllamav2"), (False, "llamacpp")):
        catalog = ModelCatalog(models, gpu=gpu)
        assert catalog.find("plain").card.engine == engine
        assert catalog.find("exl").card.engine == "exllamav2"


async def test_a_models_own_file_changes_the_servers_settings(models: Path, machine: GpuHost) -> None:
    catalog, gpu = launcher(models, machine, slots=16, margin=2.0)
    assert (await gpu.launch(catalog.find("plain"))).settings == GpuSettings(slots=16, margin=2.0)
    (models / "plain" / "style").mkdir()
    (models / "plain" / "style" / "adapter_config.json").write_text("{}")
    (models / "plain" / FILE_NAME).write_text(
        "slots: 4\ncache: q4\ndraft_model: small\nloras:\n  - path: style\n    scale: 0.5\n"
    )
    launch = await gpu.launch(catalog.find("plain"))
    assert (launch.settings.slots, launch.settings.cache, launch.settings.margin) == (4, "q4", 2.0)
    assert launch.settings.loras[0].scale == 0.5
    arguments = list(launch.arguments)
    assert arguments[arguments.index("--draft") + 1] == str(models / "small")
    assert GpuSettings.model_validate_json(arguments[arguments.index("--settings") + 1]) == launch.settings
    assert launch.weight_bytes > 200


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slots: many", "slots"),
        ("cache: fp8", "cache"),
        ("speed: 11", "speed"),
        ("- a list", "mapping"),
        ("a: [", "YAML"),
        ("draft_model: nobody", "nobody"),
        ("loras: [{path: ../small}]", "small"),
        ("loras: [{path: nothing}]", "adapter_config"),
        ("draft_model: small\nngram_draft: true", "not both"),
    ],
)
async def test_a_wrong_file_is_a_clear_conflict(models: Path, machine: GpuHost, text: str, reason: str) -> None:
    (models / "plain" / FILE_NAME).write_text(text)
    catalog, gpu = launcher(models, machine)
    with pytest.raises(Conflict, match=reason) as wrong:
        await gpu.launch(catalog.find("plain"))
    assert FILE_NAME in wrong.value.message


WORKER = """
import os, pathlib, time
from tests.workers.exllama_cpu import CpuLoader
from llamastead_server.workers import exllama, engine

def before(report):
    report(0.5, "loading")
    while pathlib.Path(os.environ["TEST_HOLD"]).exists():
        time.sleep(0.01)

exllama.ExLlama.__init__.__defaults__ = (CpuLoader(before=before), None)
engine.main()
"""


@pytest.fixture
async def registry(
    tmp_path: Path, machine: GpuHost, driver: Say, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalModelRegistry]:
    """A registry whose GPU workers are real ones over the CPU's arithmetic."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "cpu_exllama_worker.py").write_text(WORKER)
    root = Path(__file__).parent.parent.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), str(root), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TEST_HOLD", str(tmp_path / "hold"))
    monkeypatch.setattr("llamastead_server.adapters.model_registry._WORKER", "cpu_exllama_worker")
    for name in ("one", "two"):
        make_model(tmp_path / "hf" / name)
        (tmp_path / "hf" / name / FILE_NAME).write_text("context_length: 512\nslots: 2\nchunk: 256\n")
    catalog, gpu = launcher(tmp_path / "hf", machine)
    quick = Supervision(start_timeout=90, heartbeat_interval=0.2, first_backoff=0.05)
    from llamastead_server.adapters.model_registry import EngineOptions

    registry = LocalModelRegistry(catalog, tmp_path / "hf", EngineOptions(supervision=quick), gpu=gpu)
    yield registry
    await registry.close()


async def answer(registry: LocalModelRegistry, name: str) -> str:
    async with registry.lease(name) as engine:
        request = GenerationRequest(prompt="Once", sampling=Sampling(temperature=0), max_tokens=8)
        return "".join([event.text async for event in engine.generate(request) if isinstance(event, Delta)])


async def test_a_folder_is_served_by_the_gpu_worker_and_survives_its_death(registry: LocalModelRegistry) -> None:
    first = await answer(registry, "one")
    card = registry.resolve("one")
    assert (card.engine, card.state, card.context_length) == ("exllamav2", "ready", 512)
    engine = registry.engines["one"]
    assert engine.worker_pid is not None
    os.kill(engine.worker_pid, 9)
    async with asyncio.timeout(90):
        while True:
            try:
                assert await answer(registry, "one") == first
                break
            except Unavailable:
                await asyncio.sleep(0.1)


async def test_the_progress_of_loading_shows(registry: LocalModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    loading = asyncio.create_task(registry.load("one"))
    async with asyncio.timeout(60):
        while registry.resolve("one").load_progress != 0.5:
            await asyncio.sleep(0.01)
    assert registry.resolve("one").state == "loading"
    (tmp_path / "hold").unlink()
    assert (await loading).load_progress is None


async def test_a_worker_that_finds_no_gpu_says_so(
    registry: LocalModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamastead_server.adapters.model_registry._WORKER", "llamastead_server.workers.engine")
    with pytest.raises(Unavailable, match="PyTorch sees no NVIDIA GPU"):
        await registry.load("one")
    assert registry.resolve("one").state == "failed"


async def test_a_gpu_that_is_full_makes_room_or_says_so(registry: LocalModelRegistry, driver: Say) -> None:
    await registry.load("one")
    driver(f"[ -e '{os.environ['PATH'].split(os.pathsep)[0]}/freed' ] && echo '0, GPU-a, 500' || echo '0, GPU-a, 0'")
    async with registry.lease("one"):
        with pytest.raises(Overloaded, match="wait for room"):
            await registry.load("two")
    with pytest.raises(Unavailable, match="GPU memory are free"):
        await registry.load("two")
    assert not registry.engines


async def test_a_format_that_needs_a_gpu_says_what_is_missing(models: Path, tmp_path: Path) -> None:
    catalog, gpu = launcher(models, GpuHost(root=tmp_path))
    registry = LocalModelRegistry(catalog, models, gpu=gpu)
    with pytest.raises(Unavailable, match="EXL2 format, which needs an NVIDIA GPU"):
        await registry.load("exl")
    assert registry.resolve("exl").state == "failed"
