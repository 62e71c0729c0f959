"""Request ids and one access log line per call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import Message

from llamastead_server.domain.operations.meters import Meters, NoMeters
from llamastead_server.domain.request_id import REQUEST_ID
from llamastead_server.services.interceptors import Call

_log = logging.getLogger("llamastead.access")
_LONGEST_USER = 200


class Telemetry:
    """The outermost layer: it names the request, logs how it ended and measures it.

    Attributes:
        active: Calls being served now.

    Args:
        meters: Where measurements go.
    """

    def __init__(self, meters: Meters | None = None) -> None:
        self.active = 0
        self._meters = meters or NoMeters()

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Surrounds one call."""
        # Never reset: gRPC serves each call in a task of its own.
        REQUEST_ID.set(call.request_id)
        began = time.monotonic()
        status = "OK"

        async def note(request: Message, first: bool) -> None:
            if first and "user" in request.DESCRIPTOR.fields_by_name:
                call.user = end_user(getattr(request, "user", None))

        call.checks.append(note)
        self.active += 1
        self._meters.call_began(call.method)
        try:
            yield
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            status = _code_name(call)
            raise
        finally:
            self.active -= 1
            seconds = time.monotonic() - began
            self._meters.call_ended(call.method, status, seconds)
            _write(call, status, seconds)


def end_user(named: object) -> str | None:
    """The end user's name for the log, cut to what a line can bear; None where nobody is named."""
    return named[:_LONGEST_USER] if isinstance(named, str) and named else None


def _code_name(call: Call) -> str:
    code = call.context.code()
    return code.name if isinstance(code, grpc.StatusCode) else grpc_code(code).name


def grpc_code(number: object) -> grpc.StatusCode:
    """The gRPC status with a number; UNKNOWN for no status."""
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def _write(call: Call, status: str, duration: float) -> None:
    path = call.metadata.rest_path
    request = f"{call.metadata.rest_method} {path.partition('?')[0]}" if path is not None else "gRPC"
    fields = {
        "method": call.method,
        "path": path.partition("?")[0] if path is not None else None,
        "status": status,
        "duration_ms": round(duration * 1000, 1),
        "caller": call.principal.id if call.principal else None,
        "user": call.user,
    }
    shown = {name: value for name, value in fields.items() if value is not None}
    _log.info("%s %s %s %.1f ms", request, call.method, status, duration * 1000, extra={"fields": shown})
