from __future__ import annotations

from pathlib import Path

import pytest

from llamastead_server.adapters.configuration_file import ConfigurationFile
from llamastead_server.adapters.yaml_files import TEMPORARY
from llamastead_server.domain.errors import Conflict, Internal


async def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = ConfigurationFile(tmp_path)
    assert await file.read() is None
    await file.write({"model_settings": {"top_k": 3}})
    (tmp_path / f"{TEMPORARY}torn").write_text("half")
    assert await file.read() == {"model_settings": {"top_k": 3}}
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


async def test_saving_keeps_the_comments_people_wrote(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("# ours\nmodel_settings:\n  top_k: 3   # enough\n  top_p: 0.5\n")
    await ConfigurationFile(tmp_path).write({"model_settings": {"top_k": 3, "top_p": 0.75}})
    assert (tmp_path / "settings.yaml").read_text() == (
        "# ours\nmodel_settings:\n  top_k: 3   # enough\n  top_p: 0.75\n"
    )


async def test_a_file_that_is_no_yaml_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("a: [")
    with pytest.raises(Conflict, match=r"settings\.yaml"):
        await ConfigurationFile(tmp_path).read()


async def test_a_folder_that_cannot_be_written_is_an_error_of_the_server(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="can't be saved"):
        await ConfigurationFile(tmp_path / "absent").write({})
