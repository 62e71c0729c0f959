"""A worker for the supervision's tests: it serves the engine's status and misbehaves on request."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from llamastead.internal.v1 import engine_pb2, engine_pb2_grpc
from llamastead_server.workers import child


class Servicer(engine_pb2_grpc.EngineServiceServicer):
    async def GetStatus(self, request: Any, context: Any) -> engine_pb2.GetStatusResponse:
        return engine_pb2.GetStatusResponse(state="ready")

    async def Generate(self, request: Any, context: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    async def CountTokens(self, request: Any, context: Any) -> engine_pb2.CountTokensResponse:
        raise NotImplementedError


def main() -> None:
    child.die_with_parent()
    child.configure_logging()
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--die", action="store_true")
    arguments = parser.parse_args()
    if arguments.die:
        print("ERROR the disk is on fire", file=sys.stderr)
        sys.exit(3)
    print("WARNING hello from the worker", file=sys.stderr, flush=True)
    register = engine_pb2_grpc.add_EngineServiceServicer_to_server
    asyncio.run(child.serve(arguments.socket, lambda server: register(Servicer(), server)))


main()
