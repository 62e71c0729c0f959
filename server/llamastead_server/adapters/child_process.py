"""The end of a child process."""

from __future__ import annotations

import asyncio
import signal


async def end(process: asyncio.subprocess.Process, grace: float) -> None:
    """Ends a process by SIGTERM, after `grace` seconds by SIGKILL; it is gone when this returns.

    When this is cancelled, the process is killed at once.
    """
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(grace):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def epitaph(returncode: int | None, last_line: str) -> str:
    """Says how a process ended, with the last line it printed."""
    if returncode is not None and returncode < 0:
        return f"it was killed by {signal.Signals(-returncode).name}."
    said = f" Its last words: {last_line}" if last_line else ""
    return f"it exited with status {returncode}.{said}"
