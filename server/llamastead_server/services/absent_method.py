"""What callers of methods that do not exist are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

if TYPE_CHECKING:
    # Generic in its stub only.
    _Handler = grpc.RpcMethodHandler[Any, Any]

_LONGEST_NAME = 200
_PUBLIC = ("llamastead.v1.", "grpc.")


def absent(method: str) -> _Handler:
    """Ends every call of a method with UNIMPLEMENTED and what there is in its place.

    Reflection tells the same to anybody, so no token is asked for.

    Args:
        method: The name the caller used, such as `/llamastead.v1.ChatService/Chat`.
    """
    message = _message(method[:_LONGEST_NAME])

    async def behaviour(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)

    return grpc.stream_stream_rpc_method_handler(behaviour)


def _message(method: str) -> str:
    name, _, wanted = method.removeprefix("/").partition("/")
    pool: Any = descriptor_pool.Default()
    try:
        # The pool knows the workers' services too, which nobody can call here.
        service: ServiceDescriptor = pool.FindServiceByName(name if name.startswith(_PUBLIC) else "")
    except KeyError:
        return f"There is no service {name!r} here: ask by reflection which there are, or see gen/descriptors.binpb."
    return f"{name} has no method {wanted!r}: it has {', '.join(each.name for each in service.methods)}."
