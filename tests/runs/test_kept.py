"""Every file of a run's folder is known by its copy in the newest good checkpoint, and made good from it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate import Accelerator

from rlhf.errors import DiskError, InputError
from rlhf.runs.checkpoint import commit_folder, write_json
from rlhf.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Config:
    updates: int = 3
    clip: float = 0.2


def enter(folder: Path, *, resume: bool = True, config: Config = Config()) -> Run:
    return Run(folder, config, resume=resume, accelerator=Accelerator(cpu=True), extendable={"updates"})


def trained(folder: Path, *, finished: bool) -> None:
    """Two phases of three updates, of which the last was killed after two if it is not finished."""
    run = enter(folder, resume=False)
    for name in ("clone", "ppo"):
        phase = run.phase(name)
        phase.finished(3)
        phase.restore()
        for update in range(4 if finished or name == "clone" else 3):
            phase.log({"update": update, "loss": 0.5 / (update + 1)})
            phase.record([{"update": update, "text": "ä"}])
            if update != 2:
                phase.save(update, update, {})
        if finished or name == "clone":
            phase.finish(3, {})
    run.close()


def resumed(folder: Path, *, config: Config = Config()) -> None:
    """As a recipe asks for the phases again; those that are not finished go on to their end."""
    run = enter(folder, config=config)
    for name in ("clone", "ppo"):
        phase = run.phase(name)
        if phase.finished(3):
            continue
        restored = phase.restore()
        for update in range(0 if restored is None else restored.update + 1, 4):
            phase.log({"update": update, "loss": 0.5 / (update + 1)})
            phase.record([{"update": update, "text": "ä"}])
            phase.save(update, update, {})
        phase.finish(3, {})
    run.close()


def tree(folder: Path) -> dict[str, bytes]:
    """Less whether it was resumed, which config.json does not say here."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3] if path.stat().st_size < 40 else path.read_bytes()[:30])


def edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def drop_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(True)[1:]))


def double_line(path: Path) -> None:
    first, *rest = path.read_text().splitlines(True)
    path.write_text("".join([first, first, *rest]))


def windows_lines(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"garbage")


def nonsense(path: Path) -> None:
    path.write_text("[1, 2]")


DAMAGES: list[Callable[[Path], object]] = [Path.unlink, cut, nonsense]
LINES = [*DAMAGES, edit, grow, drop_line, double_line, windows_lines, lambda path: path.write_text("")]


@pytest.fixture(scope="module", params=[False, True], ids=["killed", "finished"])
def run(request, tmp_path_factory) -> tuple[Path, Path]:
    """A run that goes on, and what it comes to."""
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "run", finished=request.param)
    shutil.copytree(folder / "run", folder / "whole")
    resumed(folder / "whole")
    return folder / "run", folder / "whole"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("ppo/metrics.jsonl", damage) for damage in LINES),
        *((name, damage) for name in ("ppo/samples.jsonl", "clone/metrics.jsonl") for damage in (cut, edit)),
        *((name, damage) for name in ("config.json", "versions.json", "clone/phase.json") for damage in DAMAGES),
    ],
)  # fmt: skip
def test_what_was_lost_or_changed_comes_back(run, tmp_path, name, damage):
    damaged, whole = run
    shutil.copytree(damaged, tmp_path / "run")
    damage(tmp_path / "run" / name)
    resumed(tmp_path / "run")
    assert tree(tmp_path / "run") == tree(whole)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("ppo/metrics.jsonl", cut, "ppo/metrics.jsonl was changed or cut after it was saved; it is restored from "),
        ("ppo/samples.jsonl", Path.unlink, "ppo/samples.jsonl was lost after it was saved; it is restored from "),
        ("config.json", Path.unlink, "config.json was lost; it is restored from "),
        ("versions.json", cut, "versions.json is damaged; it is restored from "),
    ],
)
def test_what_is_restored_is_said_in_one_line(tmp_path, capsys, name, damage, said):
    trained(tmp_path / "run", finished=True)
    damage(tmp_path / "run" / name)
    capsys.readouterr()
    resumed(tmp_path / "run")
    told = [line for line in capsys.readouterr().out.splitlines() if "restored" in line]
    assert told == [f"{tmp_path / 'run'}/{said}{tmp_path / 'run/ppo/checkpoints/00000003/run'}."]


def test_the_copy_tells_other_settings_where_the_configuration_was_edited(tmp_path):
    trained(tmp_path / "run", finished=False)
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"clip": 0.3}))
    resumed(tmp_path / "run")
    with pytest.raises(InputError, match=r"clip: 0.2 -> 0.3"):
        enter(tmp_path / "run", config=Config(clip=0.3))


def test_a_configuration_that_cannot_be_read_and_has_no_copy_is_refused(tmp_path):
    enter(tmp_path / "run", resume=False).close()
    (tmp_path / "run/config.json").write_text("{")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"config.json cannot be read and no checkpoint has a copy"):
        enter(tmp_path / "run")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("gone", [True, False], ids=["deleted", "damaged"])
def test_without_the_last_checkpoint_the_last_updates_of_a_finished_phase_are_done_again(tmp_path, capsys, gone):
    """Nothing else tells whether their lines are as they were."""
    trained(tmp_path / "run", finished=True)
    whole = tree(tmp_path / "run")
    newest = tmp_path / "run/ppo/checkpoints/00000003"
    drop_line(tmp_path / "run/ppo/metrics.jsonl")
    if gone:
        shutil.rmtree(newest)
    else:
        edit(newest / "state.json")
    capsys.readouterr()
    resumed(tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("metrics.jsonl was changed or cut") == 1
    assert said.count("content of state.json is not what manifest.json says") == (not gone)
    again = tree(tmp_path / "run")
    assert {name: again[name] for name in again if "checkpoints" not in name} == {
        name: whole[name] for name in whole if "checkpoints" not in name
    }


def test_a_finished_run_needs_no_checkpoints(tmp_path):
    trained(tmp_path / "run", finished=True)
    for phase in ("clone", "ppo"):
        shutil.rmtree(tmp_path / "run" / phase / "checkpoints")
    before = tree(tmp_path / "run")
    resumed(tmp_path / "run")
    assert tree(tmp_path / "run") == before


def test_a_checkpoint_of_an_older_version_is_refused_and_nothing_is_lost(tmp_path):
    run = enter(tmp_path / "run", resume=False)
    phase = run.phase("ppo")
    phase.log({"update": 0})
    phase.save(0, 0, {})
    checkpoint = tmp_path / "run/ppo/checkpoints/00000000"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in ("metrics.jsonl", "samples.jsonl"):
        (checkpoint / "run" / name).unlink()
        del manifest["files"][f"run/{name}"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(InputError, match=re.escape("run has no copy of metrics.jsonl, since an older version")):
        phase.restore()
    assert (tmp_path / "run/ppo/metrics.jsonl").read_text() == '{"update": 0}\n'


def test_a_final_folder_of_an_older_version_is_refused_and_nothing_is_lost(tmp_path):
    """It did not say at which update the phase ended."""
    trained(tmp_path / "run", finished=True)
    final = tmp_path / "run/clone/final"
    shutil.rmtree(final)
    commit_folder(final, lambda folder: write_json(folder / "finished.json", {"updates": 3}))
    before = {path: path.read_bytes() for path in (tmp_path / "run/clone").rglob("*") if path.is_file()}
    phase = enter(tmp_path / "run").phase("clone")
    with pytest.raises(InputError, match=re.escape("clone/final/finished.json has no update, since an older version")):
        phase.finished(3)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["config.json", "versions.json", "ppo/phase.json"])
@pytest.mark.parametrize(
    "harm", [Path.unlink, edit, lambda path: path.write_text("")], ids=["lost", "edited", "emptied"]
)
def test_what_befalls_a_file_of_a_run_that_is_alive_reaches_no_checkpoint(tmp_path, name, harm):
    run = enter(tmp_path / "run", resume=False)
    phase = run.phase("ppo")
    phase.restore()
    written = (tmp_path / "run" / name).read_bytes()
    phase.save(0, 0, {})
    harm(tmp_path / "run" / name)
    phase.save(1, 1, {})
    kept = tmp_path / "run/ppo/checkpoints/00000001/run" / Path(name).name
    assert kept.read_bytes() == written


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize(
    "harm",
    [Path.unlink, cut, drop_line, lambda path: path.write_text(path.read_text() + "{}\n")],
    ids=["lost", "cut", "a line lost", "a line more"],
)
def test_a_log_that_somebody_else_changed_while_the_run_is_alive_is_neither_kept_nor_added_to(tmp_path, name, harm):
    run = enter(tmp_path / "run", resume=False)
    phase = run.phase("ppo")
    phase.restore()

    def log(update: int) -> None:
        phase.record([{"update": update, "text": "ä" * 40}])
        phase.log({"update": update, "loss": 0.5})

    log(0)
    log(1)
    phase.save(1, 1, {})
    harm(tmp_path / "run/ppo" / name)
    size = (tmp_path / "run/ppo" / name).stat().st_size if (tmp_path / "run/ppo" / name).exists() else 0
    told = rf"{name} has {size} bytes and not the \d+ .*--resume"
    with pytest.raises(DiskError, match=told):
        phase.save(2, 2, {})
    with pytest.raises(DiskError, match=told):
        log(2)
    run.close()
    again = enter(tmp_path / "run").phase("ppo")
    restored = again.restore()
    assert restored is not None
    assert restored.update == 1
    assert [row["update"] for row in again.rows()] == [0, 1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_log_that_was_replaced_by_a_link_is_a_file_again(tmp_path, name):
    trained(tmp_path / "run", finished=False)
    path, other = tmp_path / "run/ppo" / name, tmp_path / "other"
    # As it is in the checkpoint, so that nothing else tells them apart.
    shutil.copyfile(sorted((tmp_path / "run/ppo/checkpoints").iterdir())[-1] / "run" / name, other)
    before = other.read_bytes()
    path.unlink()
    path.symlink_to(other)
    resumed(tmp_path / "run")
    assert other.read_bytes() == before
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["config.json", "versions.json", "ppo/phase.json", "ppo/metrics.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    trained(tmp_path / "run", finished=False)
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    with pytest.raises((InputError, DiskError), match=rf"run/{name}: Is a directory"):
        resumed(tmp_path / "run")
