"""The import rules that keep the layers apart (see CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).parent.parent / "server" / "llamastead_server"
OURS = "llamastead_server"
ALLOWED = {
    "domain": {f"{OURS}.domain"},
    "adapters": {f"{OURS}.domain", f"{OURS}.adapters", f"{OURS}.workers", "llamastead.internal.v1"},
    "workers": {f"{OURS}.domain", f"{OURS}.workers", "llamastead.internal.v1"},
    "services": {f"{OURS}.domain", f"{OURS}.services", "llamastead.v1"},
}


def modules(layer: str) -> list[Path]:
    return sorted((SERVER / layer).rglob("*.py"))


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_the_layers_below_it(layer: str) -> None:
    broken = [
        f"{module.relative_to(SERVER)} imports {name}"
        for module in modules(layer)
        for name in imports(module)
        if within(name, {OURS, "llamastead"}) and not within(name, ALLOWED[layer])
    ]
    assert modules(layer)
    assert not broken


def test_the_domain_imports_nothing_but_the_standard_library_and_pydantic() -> None:
    broken = [
        f"{module.relative_to(SERVER)} imports {name}"
        for module in modules("domain")
        for name in imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names | {"pydantic", OURS}
    ]
    assert not broken


def test_only_services_and_the_composition_root_know_grpc_servicers_of_the_public_contract() -> None:
    broken = [
        f"{module.relative_to(SERVER)} imports {name}"
        for module in SERVER.rglob("*.py")
        if module.parent.name != "services" and module.name not in {"app.py"}
        for name in imports(module)
        if within(name, {"llamastead.v1"})
    ]
    assert not broken
