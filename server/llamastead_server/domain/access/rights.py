"""Who calls, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from llamastead_server.domain import names
from llamastead_server.domain.errors import InvalidRequest, PermissionDenied


class Scope(IntEnum):
    """What a token may do; each scope includes the ones before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, word: str) -> Scope:
        """Reads `read`, `write` or `admin`."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise InvalidRequest(
                f"Unknown scope {word[:50]!r}: use read, write or admin.", details={"field": "scope"}
            ) from None


@dataclass(frozen=True, slots=True)
class ProjectPattern:
    """One project, or with `project` None all of a namespace."""

    namespace: str
    project: str | None = None

    @classmethod
    def parse(cls, text: str) -> ProjectPattern:
        """Reads `namespace/project` or `namespace/*`."""
        namespace, slash, project = text.partition("/")
        if not slash:
            raise InvalidRequest(
                f"Invalid project {text[:80]!r}: write namespace/project, or namespace/* for all of a namespace.",
                details={"field": "project"},
            )
        names.segment("namespace", namespace)
        return cls(namespace, None if project == "*" else names.segment("project", project))

    def covers(self, namespace: str, project: str) -> bool:
        """Whether a project is among them."""
        return namespace == self.namespace and self.project in (None, project)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.project or '*'}"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call.

    Attributes:
        id: Stands for the credentials in logs and limits, without giving them away.
        scope: What they may do.
        projects: The projects they may use; None: all.
        has_token: Whether a token stands behind them, and not just an address.
    """

    id: str
    scope: Scope = Scope.ADMIN
    projects: ProjectPattern | None = None
    has_token: bool = False

    def demand_scope(self, needed: Scope) -> None:
        """Raises `PermissionDenied` unless they hold the scope."""
        if self.scope < needed:
            raise PermissionDenied(
                f"This token's scope is `{self.scope}`, and this call needs `{needed}`.",
                details={"scope": str(self.scope), "required_scope": str(needed)},
            )

    def demand_project(self, namespace: str, project: str) -> None:
        """Raises `PermissionDenied` unless they may use the project."""
        if self.projects is not None and not self.projects.covers(namespace, project):
            raise self._outside()

    def demand_namespace(self, namespace: str) -> None:
        """Raises `PermissionDenied` unless they may use projects of the namespace."""
        if self.projects is not None and namespace != self.projects.namespace:
            raise self._outside()

    def demand_all_projects(self) -> None:
        """Raises `PermissionDenied` if they are restricted to some projects."""
        if self.projects is not None:
            raise self._outside()

    def may_use(self, ref: names.ProjectRef) -> bool:
        """Whether they may use the project."""
        return self.projects is None or self.projects.covers(ref.namespace, ref.name)

    def may_see(self, owner: str | None) -> bool:
        """Whether they may see what a caller of the id `owner` made; None: nobody knows who did."""
        return self.scope >= Scope.ADMIN or owner == self.id

    def _outside(self) -> PermissionDenied:
        return PermissionDenied(
            f"This token is restricted to {self.projects}, and this call reaches beyond it.",
            details={"project": str(self.projects)},
        )
