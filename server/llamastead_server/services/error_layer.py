"""The layer that turns exceptions into gRPC statuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from llamastead_server.services import errors
from llamastead_server.services.interceptors import Call


@asynccontextmanager
async def error_layer(call: Call) -> AsyncIterator[None]:
    """Ends a failed call with the status, details and body of its error; cancellation passes."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as raised:
        error = errors.expected(raised)
        metadata = [*call.headers, *errors.trailing_metadata(error, call.metadata.rest_path)]
        await call.context.abort(errors.rendering(error).code, errors.status_message(error), tuple(metadata))
