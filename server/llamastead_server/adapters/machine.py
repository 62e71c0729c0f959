"""This machine: its processors, accelerators and memory, and what the server uses of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from llamastead_server.adapters import nvidia_smi
from llamastead_server.domain.operations.diagnosis import Device
from llamastead_server.domain.operations.meters import Resources

_COLUMNS = "name,memory.total,memory.free,utilization.gpu"
_SECONDS = 5.0
_MIB = 1 << 20


async def accelerators() -> Sequence[Device]:
    """NVIDIA's accelerators, as their own tool lists them; none where there is no such tool."""
    said = await nvidia_smi.ask(_COLUMNS, seconds=_SECONDS)
    return [device for line in said or () if (device := _device(line)) is not None]


async def devices() -> Sequence[Device]:
    """The processor and the accelerators."""
    memory = psutil.virtual_memory()
    name = platform.processor() or platform.machine()
    cpu = Device(f"{name}, {os.cpu_count() or 1} cores", "cpu", memory.total, memory.available)
    return [cpu, *await accelerators()]


async def resources(folder: Path, children_bytes: int) -> Resources:
    """What is used now; processor time is counted since the last call.

    Args:
        folder: A folder on the disk to report.
        children_bytes: Resident memory of all child processes.
    """
    cards = await accelerators()
    cpu, memory, own, disk, network = await asyncio.to_thread(_used, folder)
    total = sum(card.memory_total_bytes for card in cards)
    used = total - sum(card.memory_free_bytes for card in cards)
    busy = [card.usage for card in cards if card.usage is not None]
    return Resources(
        cpu_usage=cpu,
        memory_usage=memory,
        memory_bytes=own + children_bytes,
        disk_usage=disk,
        gpu_usage=sum(busy) / len(busy) if busy else None,
        gpu_memory=100.0 * used / total if total else None,
        network_io=network,
    )


def children_memory() -> Sequence[tuple[int, int]]:
    """Process id and resident memory of each child, children's children included; not for the event loop."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append((child.pid, child.memory_info().rss))
    return found


def available_memory_bytes() -> int | None:
    """Memory that new processes may use without swapping; `None` where the system does not tell."""
    try:
        return int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return None


def _used(folder: Path) -> tuple[float, float, int, float, dict[str, int]]:
    network = psutil.net_io_counters()
    counted = {} if network is None else {"bytes_sent": network.bytes_sent, "bytes_received": network.bytes_recv}
    return (
        psutil.cpu_percent(None),
        psutil.virtual_memory().percent,
        int(psutil.Process().memory_info().rss),
        psutil.disk_usage(str(folder)).percent,
        counted,
    )


def _device(line: str) -> Device | None:
    name, *numbers = [part.strip() for part in line.rsplit(",", 3)]
    try:
        total, free = int(numbers[0]) * _MIB, int(numbers[1]) * _MIB
        usage = float(numbers[2]) if numbers[2].replace(".", "", 1).isdigit() else None
    except (IndexError, ValueError):
        return None
    return Device(name, "cuda", total, free, usage)
