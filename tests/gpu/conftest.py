"""These tests need an NVIDIA GPU: they are collected only by `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves this folder out of every run that does not ask for the marker `gpu`."""
    return None if config.getoption("markexpr") == "gpu" else True
