"""NVIDIA's own tool, which tells about GPUs without loading anything of theirs into this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence


async def ask(columns: str, *, seconds: float) -> Sequence[str] | None:
    """A line of comma-separated values for each GPU; `None` when there is no such tool or it does not tell.

    Args:
        columns: What to ask, as the tool names it.
        seconds: How long it may take.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        return None
    return [line for line in said.decode(errors="replace").splitlines() if line.strip()]
