"""ExLlamaV2 itself, loading included, on tensors that only pretend to be on a GPU: its kernels are PyTorch's here.

What runs is the package's own loading, layers, cache, generator and sampler, in half precision, for weights that are
not quantised.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from llamastead_server.workers import exllama_build
from tests.workers import exllama_stub

_FREE = 256 << 20
_MODULES = ("model", "module", "rmsnorm", "attn_params", "linear", "lora", "embedding", "device", "ext")


def stloader_read(file: str, begin: int, size: int, target: torch.Tensor) -> None:
    data = torch.from_numpy(numpy.fromfile(file, dtype=numpy.uint8, count=size, offset=begin))
    target.copy_(data.view(target.dtype).view(target.shape))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, result: torch.Tensor, epsilon: float) -> None:
    wide = x.float()
    result.copy_(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float())


def rope_(
    x: torch.Tensor,
    sin: torch.Tensor,
    cos: torch.Tensor,
    past: int,
    heads: int,
    width: int,
    offsets: torch.Tensor,
    neox: bool,
) -> None:
    assert neox
    assert x.shape[2:] == (heads, width)
    begins = torch.zeros(x.shape[0], dtype=torch.long) if offsets.is_meta else offsets.long()
    places = past + begins[:, None] + torch.arange(x.shape[1])
    sines, cosines = (each[0, 0][places][:, :, None] for each in (sin, cos))
    left, right = x.chunk(2, -1)
    x.copy_(x * cosines + torch.cat([-right, left], -1) * sines)


def moved(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


def pretended(patch: pytest.MonkeyPatch) -> None:
    """Makes `exllama_loading.load` load on the CPU, until the patch is undone."""
    exllama_stub.install()
    extension = importlib.import_module("exllamav2_ext")
    for function in (stloader_read, rms_norm, rope_):
        patch.setattr(extension, function.__name__, function, raising=False)
    for name in _MODULES:
        module = importlib.import_module(f"exllamav2.{name}")
        for attribute, stand_in in (("safe_move_tensor", moved), ("set_device_streams", lambda: None)):
            if hasattr(module, attribute):
                patch.setattr(module, attribute, stand_in)
        if hasattr(module, "_torch_device"):
            patch.setattr(module, "_torch_device", lambda index: "cpu")
    patch.setattr("exllamav2.device.global_streams", {0: None})
    for name, answer in (
        ("is_available", True), ("device_count", 1), ("synchronize", None), ("empty_cache", None), ("set_stream", None),
        ("memory_reserved", 0), ("memory_allocated", 0),
    ):  # fmt: skip
        patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    patch.setattr(torch.cuda, "mem_get_info", lambda index: (_FREE, _FREE))
    patch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=9))
    patch.setattr(exllama_build, "load_extension", lambda folder, report: extension)
    patch.setattr("llamastead_server.workers.paged_attention._choose_kernel", lambda device: None)
