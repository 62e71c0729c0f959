"""What every worker process shares: it dies with the server, serves gRPC on a unix socket and stops on SIGTERM.

The child's half of `adapters.worker_process`. A worker's `main` calls `die_with_parent` before its heavy
imports, loads its model, then runs `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

_PR_SET_PDEATHSIG = 1
_OPTIONS = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 256 << 20),
)


def die_with_parent() -> None:
    """Ties this process's life to its parent's, who holds the other end of stdin.

    The end of stdin means that the parent is gone, by whatever means; on Linux the kernel also kills this
    process then, even while a native library holds the interpreter. Ctrl-C is left to the parent, which
    stops its workers in order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_exit_at_end_of_stdin, name="watch-parent", daemon=True).start()


def give_way(by: int) -> None:
    """Lets the server's own process, and answers people wait for, go before this one's work on busy processors.

    Args:
        by: Steps of niceness; 10 gets about a tenth of what a process of step 0 gets beside it.
    """
    os.nice(by)


def configure_logging() -> None:
    """Sends log lines to stderr, each beginning with its level, as the parent expects."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)


def resident_bytes() -> int:
    """Memory that this process holds; where the system does not tell, the most it ever held."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


async def serve(socket: Path, register: Callable[[grpc.aio.Server], None], *, grace: float = 1.0) -> None:
    """Serves gRPC on `socket` until SIGTERM.

    Args:
        socket: Path of the unix socket to make; its folder must be private to this user.
        register: Adds the servicers to the server.
        grace: Seconds that running calls get to end after SIGTERM.
    """
    server = grpc.aio.server(options=_OPTIONS)
    register(server)
    server.add_insecure_port(f"unix:{socket}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    stopping = asyncio.create_task(server.stop(2 * grace))
    await asyncio.wait([stopping], timeout=grace)
    if not stopping.done():
        # The calls that are left end with the process: gRPC would print a traceback for each that it cancels.
        os._exit(0)


def _exit_at_end_of_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)
