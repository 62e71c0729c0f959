"""The NVIDIA GPUs of this machine, asked without loading anything of theirs into this process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from llamastead_server.adapters import nvidia_smi

_COLUMNS = "index,uuid,memory.free"
_TIMEOUT = 15.0
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that workers may use."""

    index: int
    uuid: str
    free_bytes: int


class GpuHost:
    """What this machine offers to the GPU engine.

    Args:
        enabled: Whether GPUs may be used at all.
        root: The file system's root.
    """

    def __init__(self, *, enabled: bool = True, root: Path = Path("/")) -> None:
        self._enabled = enabled
        self._root = root

    def missing(self) -> str:
        """What the GPU engine lacks here, completing "needs ..."; empty when it can run."""
        if not self._enabled:
            return "an NVIDIA GPU, and their use is switched off by LLAMASTEAD_GPU"
        if not self._has_device():
            return "an NVIDIA GPU, and this machine shows none to the server"
        if importlib.util.find_spec("exllamav2") is None:
            return "the package exllamav2 beside the NVIDIA GPU: install `llamastead[cuda]`"
        if not _torch_has_cuda():
            return "a CUDA build of PyTorch beside the NVIDIA GPU, and the one installed runs on the CPU only"
        return ""

    async def gpus(self) -> list[Gpu] | None:
        """The GPUs with their free memory now; `None` when the driver does not tell."""
        said = await nvidia_smi.ask(_COLUMNS, seconds=_TIMEOUT)
        if said is None:
            return None
        try:
            found = [_gpu(line) for line in said]
        except ValueError:
            return None
        return _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))

    async def free_bytes(self) -> int | None:
        """Free memory of all GPUs together; `None` when the driver does not tell."""
        found = await self.gpus()
        return None if found is None else sum(gpu.free_bytes for gpu in found)

    def _has_device(self) -> bool:
        if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None and visible.strip() in ("", "-1"):
            return False
        driver = self._root / "proc/driver/nvidia/gpus"
        with contextlib.suppress(OSError):
            if any(driver.iterdir()):
                return True
        device = self._root / "dev"
        # The second is how the Windows subsystem for Linux shows a GPU.
        return any(device.glob("nvidia[0-9]*")) or (device / "dxg").exists()


def _gpu(line: str) -> Gpu:
    index, uuid, free = (part.strip() for part in line.split(","))
    return Gpu(int(index), uuid, int(free) * _MEBIBYTE)


def _visible(found: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves to the workers."""
    if visible is None:
        return found
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [gpu for gpu in found if any(name == str(gpu.index) or gpu.uuid.startswith(name) for name in names)]


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return any((Path(spec.origin).parent / "lib").glob("*torch_cuda*"))
