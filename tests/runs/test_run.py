from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.errors import InputError, NonFiniteError
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Inner:
    updates: int = 10
    clip: float = 0.2
    limit: float = math.inf
    hidden: tuple[int, ...] = (64, 64)


@dataclass(frozen=True, kw_only=True)
class Config:
    train: Inner = Inner()
    path: Path = Path("data.csv")
    output_dir: str = "runs/x"
    resume: bool = False


def enter(folder: Path, config: Config | None = None, *, resume: bool = False) -> Run:
    config = replace(config or Config(), resume=resume, output_dir=str(folder))
    accelerator = Accelerator(cpu=True)
    return Run(folder, config, resume=resume, accelerator=accelerator, extendable={"train.updates"})


def write_policy(text: str):
    return {"policy": lambda folder: (folder / "weights").write_text(text)}


def test_a_new_run_writes_its_config_and_versions(tmp_path):
    enter(tmp_path / "a/b")
    config = json.loads((tmp_path / "a/b/config.json").read_text())
    assert config["train"] == {"updates": 10, "clip": 0.2, "limit": "inf", "hidden": [64, 64]}
    assert config["path"] == "data.csv"
    versions = json.loads((tmp_path / "a/b/versions.json").read_text())
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["processes"] == 1


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("prepare", "resume", "message"),
    [
        (
            lambda folder: enter(folder),
            False,
            "already holds another run; --resume, if offered, continues it, another --output-dir",
        ),
        (lambda folder: (folder / "mine.txt").write_text("x"), False, "is not empty and holds no run"),
        (lambda folder: (folder / "mine.txt").write_text("x"), True, "there is no run in .* to resume"),
        (lambda folder: None, True, "there is no run in .* to resume"),
        (lambda folder: (folder.rmdir(), folder.write_text("x")), False, "is a file; name a folder"),
    ],
)
def test_the_door_explains_itself_and_changes_nothing(tmp_path, prepare, resume, message):
    prepare(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message):
        enter(tmp_path, resume=resume)
    assert tree(tmp_path) == before


def test_resume_lists_every_field_that_changed(tmp_path):
    enter(tmp_path)
    before = tree(tmp_path)
    changed = Config(train=Inner(clip=0.1, hidden=(32,), updates=20), path=Path("other.csv"))
    with pytest.raises(InputError) as error:
        enter(tmp_path, changed, resume=True)
    assert "train.clip: 0.2 -> 0.1\n" in str(error.value)
    assert "train.hidden: [64, 64] -> [32]\n" in str(error.value)
    assert "path: data.csv -> other.csv\n" in str(error.value)
    assert "updates" not in str(error.value)
    assert tree(tmp_path) == before


def test_resume_may_extend_and_records_it(tmp_path):
    enter(tmp_path)
    enter(tmp_path, Config(train=Inner(updates=20)), resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["updates"] == 20


def test_resume_may_not_shorten(tmp_path):
    enter(tmp_path)
    with pytest.raises(InputError, match=r"train.updates: 10 -> 5 \(it may only grow\)"):
        enter(tmp_path, Config(train=Inner(updates=5)), resume=True)


def test_resume_works_from_a_moved_folder(tmp_path):
    enter(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    enter(tmp_path / "there", resume=True)


def test_resume_tells_of_other_versions(tmp_path, capsys):
    enter(tmp_path)
    versions = json.loads((tmp_path / "versions.json").read_text())
    (tmp_path / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    enter(tmp_path, resume=True)
    begin = f"{tmp_path} goes on with torch 1.0 -> {importlib.metadata.version('torch')}; its numbers"
    assert capsys.readouterr().out.startswith(begin)


def test_resume_by_another_number_of_processes_is_refused_and_changes_nothing(tmp_path):
    run = enter(tmp_path)
    versions = json.loads((tmp_path / "versions.json").read_text())
    (tmp_path / "versions.json").write_text(json.dumps(versions | {"processes": 2}))
    run.phase("ppo").save(0, {}, {})
    run.close()
    before = tree(tmp_path)
    with pytest.raises(InputError, match="was saved by 2 processes and this run has 1; resume it with as many"):
        enter(tmp_path, resume=True)
    assert tree(tmp_path) == before


def test_a_run_killed_at_the_door_can_be_started_again(tmp_path):
    (tmp_path / "versions.json").write_text("{}")
    (tmp_path / ".tmp-config.json").write_text("{")
    enter(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "versions.json"]


def test_restore_forgets_what_was_logged_after_the_checkpoint(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    assert phase.restore() is None
    for update in range(5):
        phase.log({"update": update, "steps": 8 * update})
        phase.record([{"update": update, "text": "é"}])
        if update == 2:
            phase.save(update, {"x": torch.tensor(0.5)}, write_policy("two"))
    again = enter(tmp_path, resume=True).phase("ppo")
    restored = again.restore()
    assert restored.update == 2
    assert torch.equal(restored.state["x"], torch.tensor(0.5))
    assert (restored.folders / "policy/weights").read_text() == "two"
    again.log({"update": 3, "steps": 24})
    again.record([{"update": 3, "text": ""}])
    assert [row["update"] for row in read_lines(again.folder / "metrics.jsonl")] == [0, 1, 2, 3]
    assert [row["update"] for row in read_lines(again.folder / "samples.jsonl")] == [0, 1, 2, 3]


def test_a_checkpoint_holds_the_config_and_the_versions(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    phase.save(0, {}, {})
    for name in ("config.json", "versions.json"):
        kept = tmp_path / "ppo/checkpoints/00000000/run" / name
        assert kept.read_bytes() == (tmp_path / name).read_bytes()


def test_a_phase_without_a_checkpoint_starts_again(tmp_path):
    enter(tmp_path).phase("ppo").log({"update": 0})
    again = enter(tmp_path, resume=True).phase("ppo")
    assert again.restore() is None
    again.log({"update": 0})
    assert read_lines(again.folder / "metrics.jsonl") == [{"update": 0}]


def test_restore_falls_back_to_the_older_checkpoint_and_its_logs(tmp_path, capsys):
    phase = enter(tmp_path).phase("ppo")
    for update in range(3):
        phase.log({"update": update})
        phase.save(update, update, write_policy(str(update)))
    (tmp_path / "ppo/checkpoints/00000002/policy/weights").write_text("x")
    again = enter(tmp_path, resume=True).phase("ppo")
    restored = again.restore()
    assert "policy/weights is not what manifest.json says" in capsys.readouterr().out
    assert (restored.update, restored.state) == (1, 1)
    assert [row["update"] for row in read_lines(phase.folder / "metrics.jsonl")] == [0, 1]


def test_a_finished_phase_is_known_and_can_be_extended(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    assert not phase.finished(10)
    phase.save(10, {}, {})
    phase.finish(10, write_policy("ten"))
    assert phase.finished(10)
    assert not phase.finished(20)
    with pytest.raises(InputError, match="was trained for 10 updates; it cannot end at 5"):
        phase.finished(5)
    assert (phase.final_policy / "weights").read_text() == "ten"
    phase.finish(20, write_policy("twenty"))
    assert phase.finished(20)
    assert (phase.final_policy / "weights").read_text() == "twenty"


def test_a_phase_may_be_counted_in_steps(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    assert not phase.finished(500, "steps")
    phase.finish(500, write_policy("five hundred"))
    assert phase.finished(500, "steps")
    assert not phase.finished(501, "steps")
    with pytest.raises(InputError, match="was trained for 500 steps; it cannot end at 499"):
        phase.finished(499, "steps")


def test_a_damaged_final_model_is_not_finished(tmp_path, capsys):
    phase = enter(tmp_path).phase("ppo")
    phase.finish(10, write_policy("ten"))
    (phase.final_policy / "weights").write_text("net")
    assert not phase.finished(10)
    assert "policy/weights is not what" in capsys.readouterr().out


def test_a_finished_phase_without_checkpoints_cannot_go_on(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    phase.log({"update": 10})
    phase.finish(10, write_policy("ten"))
    with pytest.raises(InputError, match="final is there, but"):
        phase.restore()
    assert read_lines(phase.folder / "metrics.jsonl") == [{"update": 10}]


def test_once_writes_once_and_is_verified(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    first = phase.once("reference", lambda folder: (folder / "weights").write_text("first"))
    assert phase.once("reference", lambda folder: (folder / "weights").write_text("second")) == first
    assert (first / "weights").read_text() == "first"
    (first / "weights").write_text("other")
    with pytest.raises(InputError, match=r"weights is not what manifest\.json says"):
        phase.once("reference", lambda folder: None)


def test_leftovers_of_a_kill_are_cleared_when_a_phase_goes_on(tmp_path):
    run = enter(tmp_path)
    for folder in (".tmp-a", "stored/.tmp-b", "checkpoints/.tmp-c"):
        (tmp_path / "ppo" / folder).mkdir(parents=True)
    run.phase("ppo").restore()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_checkpoints_that_a_kill_kept_from_being_pruned_go_when_a_phase_goes_on(tmp_path):
    """A save leaves two; killed between writing its own and removing the oldest, it leaves three."""
    phase = enter(tmp_path).phase("ppo")
    for update in range(3):
        phase.log({"update": update})
        phase.save(update, update, {})
    checkpoints = tmp_path / "ppo/checkpoints"
    shutil.copytree(checkpoints / "00000001", checkpoints / "00000000")
    assert enter(tmp_path, resume=True).phase("ppo").restore().update == 2
    assert sorted(path.name for path in checkpoints.iterdir()) == ["00000001", "00000002"]


def test_each_update_is_logged_once_and_in_order(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    phase.log({"update": 1})
    with pytest.raises(ValueError, match="update 1 was logged after update 1"):
        phase.log({"update": 1})
    phase.save(1, {}, {})
    again = enter(tmp_path, resume=True).phase("ppo")
    again.restore()
    with pytest.raises(ValueError, match="update 1 was logged after update 1"):
        again.log({"update": 1})


def test_a_metric_that_is_not_finite_stops_the_run(tmp_path):
    phase = enter(tmp_path).phase("ppo")
    with pytest.raises(NonFiniteError, match="metric entropy is nan at update 1"):
        phase.log({"update": 1, "entropy": math.nan})
    assert read_lines(phase.folder / "metrics.jsonl") == []


def test_the_result_is_flat_json(tmp_path):
    enter(tmp_path).write_result({"return": 500.0, "solved": True})
    assert json.loads((tmp_path / "result.json").read_text()) == {"return": 500.0, "solved": True}


def test_a_tracker_of_accelerate_gets_every_row(tmp_path):
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path / "board")
    run = Run(tmp_path / "run", Config(), resume=False, accelerator=accelerator)
    run.phase("ppo").log({"update": 3, "entropy": 0.25})
    accelerator.end_training()
    [events] = (tmp_path / "board/run").glob("events*")
    assert b"ppo/entropy" in events.read_bytes()


def test_tensorboard_forgets_what_was_taken_back(tmp_path):
    """And keeps what was not, of phases that came before too, whose later updates stand at later steps."""

    def begin(*, resume: bool) -> Run:
        accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path / "run/tensorboard")
        config = Config(output_dir=str(tmp_path / "run"), resume=resume)
        return Run(tmp_path / "run", config, resume=resume, accelerator=accelerator)

    def shown(name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "run/tensorboard/run"), size_guidance={"scalars": 0})
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(name)]

    run = begin(resume=False)
    clone = run.phase("clone")
    clone.finished(7)
    for update in range(8):
        clone.log({"update": update, "loss": update / 2})
    clone.save(7, {}, {})
    clone.finish(7, {})
    phase = run.phase("ppo")
    for update in range(5):
        phase.log({"update": update, "entropy": update / 4})
        if update == 2:
            phase.save(update, {}, {})
    run.accelerator.end_training()
    assert len(shown("ppo/entropy")) == 5
    run = begin(resume=True)
    assert run.phase("clone").finished(7)
    phase = run.phase("ppo")
    phase.restore()
    for update in (3, 4):
        phase.log({"update": update, "entropy": update / 8})
    run.accelerator.end_training()
    assert shown("ppo/entropy") == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.375), (4, 0.5)]
    assert shown("clone/loss") == [(update, update / 2) for update in range(8)]
