"""What the contract declares about who may call each RPC."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from google.api import httpbody_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from llamastead.v1 import access_pb2
from llamastead_server.domain.access.rights import Principal, Scope

_SCOPES = {
    access_pb2.SCOPE_OPEN: None,
    access_pb2.SCOPE_READ: Scope.READ,
    access_pb2.SCOPE_WRITE: Scope.WRITE,
    access_pb2.SCOPE_ADMIN: Scope.ADMIN,
}


@dataclass(frozen=True, slots=True)
class MethodAccess:
    """The rules of one RPC.

    Attributes:
        scope: The least scope a token needs; None: no token at all.
        any_project: Whether tokens restricted to a project may call although no project is named.
        batch: Whether a call is a batch operation.
        unlimited: Whether calls are not counted.
        streams: Whether answers are streams: `asked` is those to requests whose `stream` is true.
        holder: Field of the request that names the project in its place; empty: the request itself does.
        project: Field that names the project beside `namespace`; empty: none does.
        namespaced: Whether `namespace` is there.
    """

    scope: Scope | None
    any_project: bool = False
    batch: bool = False
    unlimited: bool = False
    streams: Literal["never", "asked", "always"] = "never"
    holder: str = ""
    project: str = ""
    namespaced: bool = False

    def demand_scope(self, caller: Principal) -> None:
        """Raises `PermissionDenied` unless the caller holds the scope."""
        if self.scope is not None:
            caller.demand_scope(self.scope)

    def demand_project(self, caller: Principal, request: Message, *, first: bool = True) -> None:
        """Raises `PermissionDenied` if the request reaches beyond the caller's projects.

        Args:
            caller: Who calls.
            request: A message of theirs.
            first: Whether it is the call's first; a later one need not name the project again.
        """
        if caller.projects is None or self.any_project or self.scope is None:
            return
        if not self.namespaced:
            caller.demand_all_projects()
        named: Any = getattr(request, self.holder) if self.holder else request
        namespace = named.namespace
        project = getattr(named, self.project) if self.project else ""
        if not first and not namespace and not project:
            return
        if self.project:
            caller.demand_project(namespace, project)
        else:
            caller.demand_namespace(namespace)

    def is_stream(self, request: Message) -> bool:
        """Whether the answer to the request is a stream."""
        return self.streams == "always" or (self.streams == "asked" and bool(getattr(request, "stream", False)))


_UNDECLARED = MethodAccess(Scope.ADMIN)


@cache
def access(method: str) -> MethodAccess:
    """The rules of the RPC with a full name such as `/llamastead.v1.ChatService/GetChatHistory`.

    An RPC that declares none is for administrators alone.
    """
    pool: Any = descriptor_pool.Default()
    try:
        described: MethodDescriptor = pool.FindMethodByName(method.removeprefix("/").replace("/", "."))
    except KeyError:
        return _UNDECLARED
    declared: access_pb2.Access = described.GetOptions().Extensions[access_pb2.access]
    if declared.scope not in _SCOPES:
        return _UNDECLARED
    request = described.input_type
    holder = "" if "namespace" in request.fields_by_name else _holder(request)
    named = request.fields_by_name[holder].message_type if holder else request
    assert named is not None
    names = set() if declared.server_wide else set(named.fields_by_name)
    return MethodAccess(
        scope=_SCOPES[declared.scope],
        any_project=declared.any_project,
        batch=declared.batch,
        unlimited=declared.unlimited,
        streams=_streams(described, always=declared.streams),
        holder=holder,
        project=next((name for name in ("project", "name") if "namespace" in names and name in names), ""),
        namespaced="namespace" in names,
    )


def _streams(described: MethodDescriptor, *, always: bool) -> Literal["never", "asked", "always"]:
    if not described.server_streaming:
        return "never"
    is_body = described.output_type.full_name == httpbody_pb2.HttpBody.DESCRIPTOR.full_name
    return "asked" if is_body and "stream" in described.input_type.fields_by_name and not always else "always"


def _holder(request: Descriptor) -> str:
    """The field whose message names the project, as the header of an upload does."""
    return next(
        (
            field.name
            for field in request.fields
            if field.message_type is not None and "namespace" in field.message_type.fields_by_name
        ),
        "",
    )
