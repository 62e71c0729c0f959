"""The one table from domain errors to gRPC codes, HTTP statuses and bodies."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from llamastead_server.domain import errors
from llamastead_server.domain.request_id import REQUEST_ID

_log = logging.getLogger("llamastead.errors")

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
ERROR_DOMAIN = "llamastead"
"""`domain` of every `google.rpc.ErrorInfo`."""

# gRPC clients take 8 KiB of metadata by default: the message travels twice in it, once percent-encoded.
_MESSAGE_BYTES = 1000
_DETAILS_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Rendering:
    """How one class of errors looks from outside.

    Args:
        code: The gRPC status.
        http: The HTTP status.
        reason: UPPER_SNAKE word for `google.rpc.ErrorInfo`; lower-cased it is the `code` of JSON bodies.
        type: The `type` of OpenAI-shaped bodies.
    """

    code: grpc.StatusCode
    http: int
    reason: str
    type: str


_Code = grpc.StatusCode
_TABLE: Mapping[type[errors.LlamasteadError], Rendering] = {
    errors.InvalidRequest: Rendering(_Code.INVALID_ARGUMENT, 400, "INVALID_REQUEST", "invalid_request_error"),
    errors.ValidationFailed: Rendering(_Code.INVALID_ARGUMENT, 422, "VALIDATION_FAILED", "invalid_request_error"),
    errors.ContextLengthExceeded: Rendering(
        _Code.INVALID_ARGUMENT, 400, "CONTEXT_LENGTH_EXCEEDED", "invalid_request_error"
    ),
    errors.Unauthenticated: Rendering(_Code.UNAUTHENTICATED, 401, "UNAUTHENTICATED", "authentication_error"),
    errors.PermissionDenied: Rendering(_Code.PERMISSION_DENIED, 403, "PERMISSION_DENIED", "permission_error"),
    errors.NotFound: Rendering(_Code.NOT_FOUND, 404, "NOT_FOUND", "invalid_request_error"),
    errors.ModelNotFound: Rendering(_Code.NOT_FOUND, 404, "MODEL_NOT_FOUND", "invalid_request_error"),
    errors.AlreadyExists: Rendering(_Code.ALREADY_EXISTS, 409, "ALREADY_EXISTS", "invalid_request_error"),
    errors.Conflict: Rendering(_Code.FAILED_PRECONDITION, 409, "CONFLICT", "invalid_request_error"),
    # As gRPC itself says of a message that is too large.
    errors.PayloadTooLarge: Rendering(_Code.RESOURCE_EXHAUSTED, 413, "PAYLOAD_TOO_LARGE", "invalid_request_error"),
    errors.UnsupportedMediaType: Rendering(
        _Code.INVALID_ARGUMENT, 415, "UNSUPPORTED_MEDIA_TYPE", "invalid_request_error"
    ),
    errors.RequestTimeout: Rendering(_Code.DEADLINE_EXCEEDED, 408, "REQUEST_TIMEOUT", "timeout_error"),
    errors.RateLimited: Rendering(_Code.RESOURCE_EXHAUSTED, 429, "RATE_LIMITED", "rate_limit_error"),
    # UNAVAILABLE, because no work was done and the same call may be sent again, which is what gRPC's retry
    # policies read in it; RESOURCE_EXHAUSTED would blame the caller's quota.
    errors.Overloaded: Rendering(_Code.UNAVAILABLE, 503, "OVERLOADED", "overloaded_error"),
    errors.Unavailable: Rendering(_Code.UNAVAILABLE, 503, "UNAVAILABLE", "server_error"),
    errors.EngineFailed: Rendering(_Code.UNAVAILABLE, 503, "ENGINE_FAILED", "server_error"),
    errors.ModelLoadFailed: Rendering(_Code.INTERNAL, 500, "MODEL_LOAD_FAILED", "server_error"),
    errors.NotSupported: Rendering(_Code.UNIMPLEMENTED, 501, "NOT_SUPPORTED", "server_error"),
    errors.Internal: Rendering(_Code.INTERNAL, 500, "INTERNAL", "server_error"),
}


def rendering(error: errors.LlamasteadError) -> Rendering:
    """The row of an error's class, or of the closest class above it."""
    return next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), _TABLE[errors.Internal])


def expected(error: Exception) -> errors.LlamasteadError:
    """Gives a domain error as it is, and for anything else logs it and gives an error that leaks nothing."""
    if isinstance(error, errors.LlamasteadError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
        _log.error("the disk can't be written: %s", error)
        return errors.Unavailable(
            f"The server's disk can't be written ({os.strerror(error.errno)}). Put that right, then try again."
        )
    _log.error("unexpected error", exc_info=error)
    return errors.Internal(
        f"Something went wrong inside the server. Its log tells what, under request id {REQUEST_ID.get() or 'none'}."
    )


def is_home_path(path: str) -> bool:
    """Tells LlamaHome's paths (`/api/…`, `/v1/api/…`) from LlamaFarm's (`/v1/…`, and their alias `/api/v1/…`)."""
    return path.startswith("/v1/api/") or (path.startswith("/api/") and not path.startswith("/api/v1/"))


def error_object(error: errors.LlamasteadError, path: str) -> dict[str, Any]:
    """The `error` of a JSON body, in the shape of the path's family; of an SSE error event it is the whole.

    Args:
        error: What went wrong.
        path: The path of the REST request.
    """
    row = rendering(error)
    message, details = _bounded(error)
    code = row.reason.lower()
    if is_home_path(path):
        return {"code": code, "message": message, "details": details}
    described: dict[str, Any] = {"message": message, "type": row.type, "code": code}
    return {**described, "details": details} if details else described


def json_body(error: errors.LlamasteadError, path: str) -> str:
    """The JSON body of an error, ASCII only, in the shape of the path's family."""
    described = error_object(error, path)
    body = {"error": described} if is_home_path(path) else {"detail": described["message"], "error": described}
    return json.dumps(body, separators=(",", ":"))


def trailing_metadata(error: errors.LlamasteadError, path: str | None) -> list[tuple[str, str | bytes]]:
    """What goes out with a failed call besides code and message.

    Args:
        error: What went wrong.
        path: The path of the REST request that the gateway translated; None for native gRPC callers, who get a
            `google.rpc.Status` in place of the status and body that `envoy/http_status.lua` puts in the answer.
    """
    metadata: list[tuple[str, str | bytes]] = []
    if error.retry_after is not None:
        metadata.append(("retry-after", str(max(1, math.ceil(error.retry_after)))))
    if isinstance(error, errors.Unauthenticated):
        metadata.append(("www-authenticate", "Bearer"))
    if path is None:
        metadata.append(("grpc-status-details-bin", rich_status(error).SerializeToString()))
    else:
        metadata += [("x-http-status", str(rendering(error).http)), ("x-http-body", json_body(error, path))]
    return metadata


def rich_status(error: errors.LlamasteadError) -> status_pb2.Status:
    """The error as `google.rpc.Status`: ErrorInfo, BadRequest for fields at fault, RetryInfo for a time to wait."""
    row = rendering(error)
    message, facts = _bounded(error)
    of_fields = isinstance(error, errors.ValidationFailed)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=row.reason, domain=ERROR_DOMAIN, metadata={} if of_fields else facts)
    ]
    if of_fields and facts:
        violation = error_details_pb2.BadRequest.FieldViolation
        fields = [violation(field=name, description=reason) for name, reason in facts.items()]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after is not None:
        wait = duration_pb2.Duration()
        wait.FromMilliseconds(math.ceil(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=wait))
    status = status_pb2.Status(code=row.code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def status_message(error: errors.LlamasteadError) -> str:
    """The message of the gRPC status."""
    return _bounded(error)[0]


def _bounded(error: errors.LlamasteadError) -> tuple[str, dict[str, str]]:
    """Message and details, cut to what fits into metadata."""
    details: dict[str, str] = {}
    room = _DETAILS_BYTES
    for name, value in error.details.items():
        name, value = _cut(name, room), _cut(value, room)
        room -= len(name.encode()) + len(value.encode())
        if room < 0:
            break
        details[name] = value
    return _cut(error.message, _MESSAGE_BYTES), details


def _cut(text: str, limit: int) -> str:
    """Text that is at most `limit` bytes of sound UTF-8."""
    encoded = text.encode(errors="replace")
    return encoded.decode() if len(encoded) <= limit else encoded[: max(limit - 3, 0)].decode(errors="ignore") + "…"
