from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.domain.config.project import DatasetConfig, ProjectConfig
from llamastead_server.domain.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from llamastead_server.domain.names import ProjectRef

REF = ProjectRef("org", "bot")


def config(ref: ProjectRef = REF, **fields: object) -> ProjectConfig:
    return ProjectConfig.parse(
        {"version": "v1", "name": ref.name, "namespace": ref.namespace, "runtime": {"model": "tiny"}, **fields}
    )


@pytest.fixture
def files(tmp_path: Path) -> ProjectFiles:
    return ProjectFiles(tmp_path)


def yaml_of(folder: Path, ref: ProjectRef = REF) -> Path:
    return folder / ref.namespace / ref.name / "llamafarm.yaml"


async def test_a_project_is_a_readable_file_that_round_trips(files: ProjectFiles, tmp_path: Path) -> None:
    given = config(mcp={"servers": []}, prompts=[{"role": "system", "content": "Line one.\nLine two."}])
    created = await files.create(REF, given)
    assert created.config == given
    assert yaml.safe_load(yaml_of(tmp_path).read_text()) == given.plain()
    assert "content: |-\n" in yaml_of(tmp_path).read_text()
    assert (await ProjectFiles(tmp_path).get(REF)).raw == given.plain()


async def test_a_taken_name_is_refused_and_its_file_untouched(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    before = yaml_of(tmp_path).read_bytes()
    with pytest.raises(AlreadyExists):
        await files.create(REF, config(prompts=[]))
    assert yaml_of(tmp_path).read_bytes() == before


async def test_of_concurrent_creations_one_wins(files: ProjectFiles) -> None:
    results = await asyncio.gather(*(files.create(REF, config()) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, AlreadyExists) for result in results) == 9


async def test_listing_is_by_name_and_skips_what_is_no_project(files: ProjectFiles, tmp_path: Path) -> None:
    for name in ("b", "a"):
        await files.create(ProjectRef("org", name), config(ProjectRef("org", name)))
    (tmp_path / "org" / "empty").mkdir()
    (tmp_path / "org" / ".hidden").mkdir()
    (tmp_path / "org" / "notes.txt").write_text("x")
    assert [project.ref.name for project in await files.list_projects("org")] == ["a", "b"]
    assert await files.list_projects("nobody") == []


async def test_an_edit_by_hand_is_seen_at_once(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    text = yaml_of(tmp_path).read_text()
    yaml_of(tmp_path).write_text(text.replace("tiny", "huge"))
    assert (await files.config(REF)).runtime.model == "huge"


async def test_an_unchanged_file_is_not_read_again(files: ProjectFiles) -> None:
    await files.create(REF, config())
    assert await files.config(REF) is await files.config(REF)


async def test_the_content_of_large_files_is_not_held_without_bound(files: ProjectFiles) -> None:
    refs = [ProjectRef("org", f"large{number}") for number in range(12)]
    made = [await files.create(ref, config(ref, voice={"x": "y" * 2_000_000})) for ref in refs]
    assert await files.get(refs[-1]) is made[-1]
    assert await files.get(refs[0]) is not made[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("runtime: [", "not valid YAML"),
        ("- a\n", "mapping"),
        ("version: v1\nname: bot\nnamespace: org\n", "runtime"),
        ("version: v1\nname: other\nnamespace: org\nruntime: {model: x}\n", "org/other"),
        ("\x00", "not valid YAML"),
    ],
)
async def test_a_broken_file_is_listed_with_its_error_and_not_used(
    files: ProjectFiles, tmp_path: Path, text: str, reason: str
) -> None:
    await files.create(REF, config())
    yaml_of(tmp_path).write_text(text)
    (project,) = await files.list_projects("org")
    assert project.config is None
    with pytest.raises(Conflict, match=reason):
        await files.config(REF)
    await files.replace(REF, config())
    assert (await files.get(REF)).validation_error is None


async def test_a_yaml_bomb_is_refused(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12)]
    yaml_of(tmp_path).write_text("\n".join(lines))
    assert "more than" in ((await files.get(REF)).validation_error or "")


async def test_dates_in_yaml_become_text(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    yaml_of(tmp_path).write_text(yaml_of(tmp_path).read_text() + "since: 2024-01-02\nfive: 5\nnan: .nan\n")
    raw = (await files.get(REF)).raw
    assert (raw["since"], raw["five"], raw["nan"]) == ("2024-01-02", 5, "nan")


async def test_replacing_drops_what_the_new_configuration_leaves_out(files: ProjectFiles) -> None:
    await files.create(REF, config(prompts=[{"role": "system", "content": "x"}], extra={"kept": 1}))
    assert (await files.replace(REF, config())).raw == config().plain()
    with pytest.raises(NotFound):
        await files.replace(ProjectRef("org", "absent"), config(ProjectRef("org", "absent")))
    with pytest.raises(InvalidRequest, match="org/other"):
        await files.replace(REF, config(ProjectRef("org", "other")))


async def test_concurrent_updates_are_all_kept(files: ProjectFiles) -> None:
    await files.create(REF, config(rag={"databases": [{"name": "db"}]}))

    async def add(number: int) -> None:
        new = DatasetConfig(name=f"d{number}", database="db")
        await files.update(REF, lambda old: old.model_copy(update={"datasets": [*old.datasets, new]}))

    await asyncio.gather(*(add(number) for number in range(20)))
    assert {dataset.name for dataset in (await files.config(REF)).datasets} == {f"d{n}" for n in range(20)}


async def test_an_update_that_breaks_a_rule_writes_nothing(files: ProjectFiles) -> None:
    await files.create(REF, config())
    with pytest.raises(InvalidRequest):
        await files.update(REF, lambda old: old.model_copy(update={"name": "other"}))
    assert (await files.config(REF)) == config()


async def test_deleting_removes_the_whole_folder(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    (tmp_path / "org" / "bot" / "more").mkdir()
    (tmp_path / "org" / "bot" / "more" / "file").write_text("x")
    await files.delete(REF)
    assert list((tmp_path / "org").iterdir()) == []
    for call in (files.get(REF), files.delete(REF)):
        with pytest.raises(NotFound):
            await call
    await files.create(REF, config())


async def test_leftovers_of_a_crash_are_swept(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    (tmp_path / "org" / ".deleted-1" / "x").mkdir(parents=True)
    (tmp_path / "org" / "bot" / ".writing-1").write_text("half")
    await files.sweep()
    assert [path.name for path in tmp_path.rglob("*")] == ["org", "bot", "llamafarm.yaml"]


async def test_killed_while_writing_the_file_is_the_old_one_or_the_new_one(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config(description="x" * 100))
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from llamastead_server.adapters import yaml_files
        path, number = Path(sys.argv[1]), 0
        content = yaml_files.parse(path.read_bytes())
        print("writing", flush=True)
        while True:
            number += 1
            yaml_files.write(path, {**content, "description": str(number % 10) * 200_000})
        """
    )
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(yaml_of(tmp_path))], stdout=subprocess.PIPE, env=os.environ
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        await asyncio.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        project = await ProjectFiles(tmp_path).get(REF)
        assert project.validation_error is None
        assert len(set(project.raw["description"])) == 1


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "con"])
async def test_no_name_leads_outside(files: ProjectFiles, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await files.get(ProjectRef("org", name))
    with pytest.raises(InvalidRequest):
        await files.list_projects(name)


BY_HAND = """\
# The shop's bot
name: bot   # as in the invoices
namespace: org
version: v1
runtime:
  model: tiny
  description:   # nothing yet
  temperature_note: 1e3
prompts:
- content: |
    Be kind.

    Be short.
rag:
  databases:
    - name: first  # the first
      type: MilvusStore
      # cosine, as measured
      config: {distance_metric: cosine}

# --- data ---
datasets:
  - {name: kept, database: first}   # in brackets
  # goes
  - name: gone
    database: first
# the end
"""


async def test_a_change_touches_only_its_own_lines_of_a_file_written_by_hand(
    files: ProjectFiles, tmp_path: Path
) -> None:
    await files.create(REF, config())
    yaml_of(tmp_path).write_text(BY_HAND)
    new = DatasetConfig(name="new", database="first")
    await files.update(REF, lambda old: old.model_copy(update={"datasets": [old.datasets[0], new]}))
    expected = BY_HAND.replace("  - name: gone", "  - name: new")
    assert yaml_of(tmp_path).read_text() == expected
    await files.update(
        REF, lambda old: old.model_copy(update={"datasets": [*old.datasets, new.model_copy(update={"name": "x"})]})
    )
    assert yaml_of(tmp_path).read_text() == expected.replace("# the end", "  - name: x\n    database: first\n# the end")


async def test_replacing_keeps_the_comments_and_the_order_of_what_stays(files: ProjectFiles, tmp_path: Path) -> None:
    await files.create(REF, config())
    yaml_of(tmp_path).write_text(BY_HAND)
    given = {key: value for key, value in (await files.get(REF)).raw.items() if key != "prompts"}
    given["runtime"] = {"model": "huge"}
    project = await files.replace(REF, ProjectConfig.parse(given))
    assert project.raw == given
    text = yaml_of(tmp_path).read_text()
    before, _, after = BY_HAND.partition("runtime:\n")
    assert text == f"{before}runtime:\n  model: huge\n{after[after.index('rag:') :]}"


async def test_a_file_whose_names_are_said_otherwise_is_changed_all_the_same(
    files: ProjectFiles, tmp_path: Path
) -> None:
    await files.create(REF, config())
    yaml_of(tmp_path).write_text("{version: v1, name: bot, namespace: org, runtime: {model: tiny}} # one line\n")
    await files.update(REF, lambda old: old.model_copy(update={"description": "x"}))
    assert (await files.get(REF)).raw["description"] == "x"
