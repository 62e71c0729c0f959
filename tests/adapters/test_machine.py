from __future__ import annotations

from pathlib import Path

import pytest

from llamastead_server.adapters import machine


def smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


async def test_a_machine_without_the_tool_has_no_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await machine.accelerators() == []
    (cpu,) = await machine.devices()
    assert cpu.kind == "cpu"
    assert 0 < cpu.memory_free_bytes < cpu.memory_total_bytes
    found = await machine.resources(tmp_path, 1 << 20)
    assert (found.gpu_usage, found.gpu_memory) == (None, None)
    assert found.memory_bytes > 2 << 20


async def test_accelerators_are_read_as_their_tool_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, "echo 'NVIDIA A, B, 1000, 250, 40'\necho 'NVIDIA C, 1000, 1000, [N/A]'\necho nonsense")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    first, second = await machine.accelerators()
    assert (first.name, first.memory_total_bytes, first.usage) == ("NVIDIA A, B", 1000 << 20, 40)
    assert (second.name, second.usage) == ("NVIDIA C", None)
    found = await machine.resources(tmp_path, 1 << 20)
    assert (found.gpu_usage, found.gpu_memory) == (40, 37.5)


async def test_a_tool_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, "exec sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(machine, "_SECONDS", 0.1)
    assert await machine.accelerators() == []
