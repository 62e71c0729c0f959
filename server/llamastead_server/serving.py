"""`llamastead serve`: the server from its start to its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from contextlib import AsyncExitStack
from importlib.metadata import version

import uvloop

from llamastead_server import app, logs
from llamastead_server.domain.operations.log_book import LogBook
from llamastead_server.domain.operations.shutdown import Shutdown
from llamastead_server.settings import Settings

_log = logging.getLogger("llamastead")


def run(settings: Settings, *, example: str | None) -> int:
    """Serves until SIGINT or SIGTERM and returns the exit status."""
    book = LogBook()
    secrets = [*settings.api_tokens, *filter(None, [settings.milvus_token])]
    logs.configure(settings.log_level, settings.log_format, book=book, secrets=secrets)
    return uvloop.run(_until_signalled(settings, example, book))


async def _until_signalled(settings: Settings, example: str | None, book: LogBook) -> int:
    """Runs the server in a task of its own, so that a signal can also interrupt its start."""
    stop = Shutdown(settings.shutdown_grace)
    serving = asyncio.create_task(_serve(settings, example, book, stop))

    def signalled() -> None:
        if stop.wanted:
            serving.cancel()
        stop.ask()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    try:
        await serving
    except asyncio.CancelledError:
        return 130
    return 0


async def _serve(settings: Settings, example: str | None, book: LogBook, stop: Shutdown) -> None:
    async with AsyncExitStack() as stack:
        starting = asyncio.create_task(app.start(stack, settings, example, book, stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return
            tokens = await starting
            # What stands now stands to the end: looking through it for garbage would hold the event loop for 0.1 s.
            gc.collect()
            gc.freeze()
            print(_banner(settings, example, needs_token=tokens.required), flush=True)
            await stopped
        finally:
            starting.cancel()
            stopped.cancel()
            await asyncio.wait([starting, stopped])
            if stop.wanted:
                _log.info("stopping")


def _banner(settings: Settings, example: str | None, *, needs_token: bool) -> str:
    host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host
    url = f"http://{host}:{settings.port}"
    token = " -H 'Authorization: Bearer <token>'" if needs_token else ""
    if example is None:
        attempt = f"curl -s{token} {url}/health"
    else:
        body = '{"messages": [{"role": "user", "content": "When does the barn gate close?"}]}'
        attempt = (
            f"curl -s{token} {url}/v1/projects/default/quickstart/chat/completions \\\n"
            f"    -H 'Content-Type: application/json' -d '{body}'"
        )
    return f"""
Llamastead {version("llamastead")} is ready.

  REST, SSE, gRPC and gRPC-Web   {url}
  gRPC without the gateway       {host}:{settings.grpc_port}
  data                           {settings.data_dir}

Try:
  {attempt}

The model on board is tiny, for trying things out. Get a real one: llamastead pull <org/repo[:file]>
Stop with Ctrl-C.
"""
