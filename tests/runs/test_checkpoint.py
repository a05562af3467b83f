from __future__ import annotations

import itertools
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf.errors import InputError, NonFiniteError
from rlhf.runs import checkpoint
from rlhf.runs.checkpoint import (
    Damaged,
    commit_folder,
    find_checkpoint,
    latest_checkpoint,
    note_stop,
    save_checkpoint,
    verify_folder,
    write_json,
)
from rlhf.runs.state import load_state


def save(root: Path, update: int, **options) -> Path:
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(bytes([update % 256]) * 50)

    return save_checkpoint(root, update, {"x": torch.full((3,), float(update))}, {"policy": write}, **options)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest_good(root: Path) -> Path | None:
    """Fails if anything is reported: for places where nothing may be damaged."""
    folder, reports = find_checkpoint(root)
    assert not reports
    return folder


def test_checkpoint_round_trip(tmp_path):
    folder = save(tmp_path, 7)
    assert latest_checkpoint(tmp_path) == folder
    assert torch.equal(load_state(folder)["x"], torch.full((3,), 7.0))
    assert (folder / "policy/weights.bin").read_bytes() == b"\x07" * 50


def test_checkpoint_is_none_where_none_was_committed(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


def test_checkpoints_beyond_keep_are_pruned(tmp_path):
    for update in (0, 5, 10, 15):
        save(tmp_path, update, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010", "00000015"]


def test_checkpoint_order_is_numeric(tmp_path):
    for update in (99999999, 100000000):
        save(tmp_path, update)
    assert latest_checkpoint(tmp_path).name == "100000000"


def test_checkpoints_of_a_past_taken_back_are_removed(tmp_path):
    for update in (5, 10):
        save(tmp_path, update)
    (tmp_path / "00000010/state.json").write_text("")
    save(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000005", "00000007"]
    assert newest_good(tmp_path).name == "00000007"


def test_checkpoint_may_replace_a_damaged_one(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "00000005/state.json").write_text("")
    save(tmp_path, 5)
    assert newest_good(tmp_path).name == "00000005"


def test_a_failing_writer_leaves_the_older_checkpoint_and_no_leftover(tmp_path):
    def write(folder: Path) -> None:
        raise OSError("disk full")

    save(tmp_path, 1)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, {}, {"policy": write})
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def save_and_die(root: Path, stage: int) -> None:
    """Replaces every operation by which a save changes the disk, or waits for it; the one after `stage` kills."""
    calls = itertools.count(1)

    def dying(function: Callable) -> Callable:
        def call(*args, **kwargs):
            if next(calls) > stage:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    os.fsync, shutil.rmtree, checkpoint.save_state = map(dying, (os.fsync, shutil.rmtree, checkpoint.save_state))
    Path.rename, Path.mkdir, Path.write_text = map(dying, (Path.rename, Path.mkdir, Path.write_text))
    save(root, 2, keep=1)


def test_a_kill_at_any_stage_leaves_a_good_checkpoint(tmp_path):
    survivors = []
    for stage in range(60):
        root = tmp_path / f"stage{stage}"
        save(root, 1)
        # A fork, not a new interpreter, for speed.
        child = os.fork()
        if child == 0:
            try:
                save_and_die(root, stage)
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        found = newest_good(root)
        survivors.append(int(found.name))
        assert torch.equal(load_state(found)["x"], torch.full((3,), float(found.name)))
        assert not list(root.glob(".tmp-*"))
        if status == 0:
            break
    assert status == 0
    # The old one until the rename, the new one from then on.
    assert survivors == sorted(survivors)
    assert survivors.count(1) > 10
    assert survivors.count(2) > 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["state", "writer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_what_is_not_finite_is_never_committed(tmp_path, place, dtype, bad):
    save(tmp_path, 1)
    tensor = torch.ones(7)
    tensor[5] = bad
    tensor = tensor.to(dtype)

    def write(folder: Path) -> None:
        save_file({"head.weight": tensor} if place == "writer" else {}, folder / "model.safetensors")

    state = {"moments": [{"exp_avg": tensor if place == "state" else torch.ones(7)}], "epoch": torch.tensor([3])}
    name = r"policy/model.safetensors" if place == "writer" else r"state\['moments'\]\[0\]\['exp_avg'\] in state"
    with pytest.raises(NonFiniteError, match=rf"{name}.* is not finite"):
        save_checkpoint(tmp_path, 2, state, {"policy": write})
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_checkpoint_from_which_a_run_stopped_again_is_passed_over_while_there_is_an_older(tmp_path, capsys):
    save(tmp_path, 1)
    note_stop(save(tmp_path, 2), "loss is not finite.")
    assert latest_checkpoint(tmp_path).name == "00000001"
    assert re.search(
        r"From .*2 the run stopped again: loss is not finite. Using the older .*1\.", capsys.readouterr().out
    )
    # One that is written in its place is another.
    save(tmp_path, 2)
    assert newest_good(tmp_path).name == "00000002"
    note_stop(tmp_path / "00000001", "loss is not finite.")
    note_stop(tmp_path / "00000002", "loss is not finite.")
    assert newest_good(tmp_path).name == "00000002"
    for update in (3, 4):
        save(tmp_path, update)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000004"]


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "policy/weights.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_damage_is_reported_and_the_older_checkpoint_used(tmp_path, capsys, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "grow":
        path.write_bytes(content + b" ")
    else:
        path.unlink()
    assert latest_checkpoint(tmp_path).name == "00000001"
    said = capsys.readouterr().out
    assert re.fullmatch(rf".*00000002 is damaged: .*{Path(name).name}.* Using the older .*00000001\.\n", said)


def test_every_byte_of_a_checkpoint_is_guarded(tmp_path):
    folder = save(tmp_path, 3)
    for path in files(folder):
        content = bytearray(path.read_bytes())
        for position in range(0, len(content), 3):
            content[position] ^= 1 << (position % 8)
            path.write_bytes(content)
            with pytest.raises(Damaged):
                verify_folder(folder)
            content[position] ^= 1 << (position % 8)
        path.write_bytes(content)
    verify_folder(folder)


def test_all_damaged_is_an_input_error_that_names_each(tmp_path):
    for update in (1, 2):
        (save(tmp_path, update) / "state.json").unlink()
    with pytest.raises(InputError, match=r"no good checkpoint.*00000002 is damaged: state.json is missing.*00000001"):
        latest_checkpoint(tmp_path)


def test_files_added_later_are_no_damage(tmp_path):
    folder = save(tmp_path, 1)
    (folder / "policy/notes.txt").write_text("mine")
    verify_folder(folder)


def test_leftovers_of_a_kill_are_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".tmp-abc/policy").mkdir(parents=True)
    assert newest_good(tmp_path).name == "00000001"
    assert not (tmp_path / ".tmp-abc").exists()


def test_commit_folder_replaces(tmp_path):
    for text in ("old", "new"):
        commit_folder(tmp_path / "final", lambda folder, text=text: (folder / "model").write_text(text))
    assert (tmp_path / "final/model").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_write_json_replaces_in_one_piece(tmp_path):
    for value in (1, 2):
        write_json(tmp_path / "a.json", {"value": value})
    assert (tmp_path / "a.json").read_text() == '{\n  "value": 2\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_nothing_in_runs_can_execute_code_from_a_file():
    sources = (Path(__file__).parents[2] / "rlhf/runs").glob("*.py")
    assert not [path.name for path in sources if {"pickle", "torch.load", "torch.save"} & set(path.read_text().split())]


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_what_is_committed_has_the_mode_that_the_umask_gives(umask, tmp_path):
    tmp_path.chmod(0o700)
    before = os.umask(umask)
    try:
        folder = save(tmp_path / "checkpoints", 1)
    finally:
        os.umask(before)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o777 & ~umask}
    assert {path.stat().st_mode & 0o777 for path in files(folder)} == {0o666 & ~umask}


def test_links_in_a_run_are_followed_and_what_they_lead_to_is_never_removed(tmp_path):
    """A folder of checkpoints, a checkpoint, the final folder or a leftover on another disk."""
    away = tmp_path / "away"
    (away / "checkpoints").mkdir(parents=True)
    root = tmp_path / "checkpoints"
    root.symlink_to(away / "checkpoints")
    save(root, 1).rename(away / "one")
    (root / "00000001").symlink_to(away / "one")
    assert newest_good(root) == root / "00000001"
    for update in (2, 3, 4):
        save(root, update)
    assert sorted(path.name for path in root.iterdir()) == ["00000003", "00000004"]
    final = tmp_path / "final"
    final.symlink_to(away / "one")
    commit_folder(final, lambda folder: (folder / "new").write_text("new"))
    assert (final / "new").exists()
    (root / f"{checkpoint.TEMPORARY}left").symlink_to(away / "one")
    checkpoint.remove_leftovers(root)
    assert sorted(path.name for path in root.iterdir()) == ["00000003", "00000004"]
    verify_folder(away / "one")


def test_a_manifest_with_other_ends_of_lines_is_damaged(tmp_path):
    folder = commit_folder(tmp_path / "one", lambda folder: (folder / "x").write_text("x"))
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(Damaged, match=r"manifest\.json has changed"):
        verify_folder(folder)
