"""What the disk refuses is one line: where, why, what is kept, and how to go on."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from rlhf.errors import DiskError, InputError
from rlhf.runs.disk import one_line
from rlhf.runs.log import read_lines
from rlhf.runs.phase import Phase
from rlhf.runs.run import Run
from rlhf.runs.summary import conclude

# It takes no byte: every write to it is refused as one to a full disk.
FULL = Path("/dev/full")


@dataclass(frozen=True, kw_only=True)
class Config:
    updates: int = 2


def enter(folder: Path, *, resume: bool = False) -> Run:
    return Run(folder, Config(), resume=resume, accelerator=Accelerator(cpu=True))


def begun(folder: Path) -> Phase:
    """A phase with one checkpoint."""
    phase = enter(folder).phase("ppo")
    phase.finished(2)
    phase.restore()
    phase.log({"update": 0})
    phase.save(0, {}, {})
    return phase


def record_full(phase: Phase) -> None:
    """A log whose disk is full."""
    (phase.folder / "samples.jsonl").symlink_to(FULL)
    phase.record([{"update": 1}])


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Files may not become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log_too_much(phase: Phase) -> None:
    with limited((phase.folder / "metrics.jsonl").stat().st_size):
        phase.log({"update": 1})


def write_full(folder: Path) -> None:
    FULL.write_text("x")


def write_too_much(folder: Path) -> None:
    """The writer of safetensors has exceptions of its own."""
    with limited(1000):
        save_file({"x": torch.zeros(1000)}, folder / "x.safetensors")


def in_the_way(phase: Phase) -> None:
    """A file where the folder of checkpoints was."""
    (phase.folder / "stored").write_text("")
    phase.once("reference", lambda folder: None)


@pytest.mark.parametrize(
    ("act", "number"),
    [
        (log_too_much, errno.EFBIG),
        (record_full, errno.ENOSPC),
        (lambda phase: phase.save(1, {}, {"policy": write_full}), errno.ENOSPC),
        (lambda phase: phase.save(1, {"x": torch.zeros(3)}, {"policy": write_too_much}), errno.EFBIG),
        (lambda phase: phase.finish(2, {"policy": write_full}), errno.ENOSPC),
        (lambda phase: phase.finish(2, {"policy": write_too_much}), errno.EFBIG),
        (lambda phase: phase.once("reference", write_full), errno.ENOSPC),
        (in_the_way, errno.EEXIST),
    ],
)
def test_a_fault_of_the_disk_names_the_reason_the_room_what_is_kept_and_the_way_on(tmp_path, capsys, act, number):
    phase = begun(tmp_path / "run")
    with pytest.raises(DiskError) as refused:
        act(phase)
    message = str(refused.value)
    assert os.strerror(number) in message
    assert re.search(r"\d (bytes|[kMGT]B) are free", message)
    assert f"The checkpoint {phase.folder / 'checkpoints/00000000'} is kept." in message
    assert "--resume" in message
    assert "\n" not in message
    assert not list(phase.folder.rglob(".tmp-*"))
    # Once there is room, the run goes on.
    for path in phase.folder.glob("*.jsonl"):
        path.unlink()
    again = enter(tmp_path / "run", resume=True).phase("ppo")
    assert again.restore().update == 0
    assert "metrics.jsonl was lost" in capsys.readouterr().out
    assert read_lines(again.folder / "metrics.jsonl") == [{"update": 0}]


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EDQUOT, errno.ESTALE, errno.EMFILE],
)
def test_every_number_of_the_operating_system_is_told_in_its_words(tmp_path, number):
    with pytest.raises(DiskError) as refused, one_line(tmp_path, needed=3_200_000_000):
        raise OSError(number, "words", "runs/x/file")
    assert str(refused.value).startswith(f"runs/x/file: {os.strerror(number)}; 3.2 GB are needed, ")
    assert "There is no checkpoint yet." in str(refused.value)


def test_errors_that_are_not_the_disks_come_through(tmp_path):
    """Libraries raise OSError for their own reasons, with words and no number."""
    with pytest.raises(OSError, match="no such model") as raised, one_line(tmp_path):
        raise OSError("no such model")
    assert not isinstance(raised.value, DiskError)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_a_door_that_the_disk_keeps_shut_is_bad_input_and_nothing_is_left(tmp_path, there):
    if there:
        (tmp_path / "run").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(InputError, match=rf"{tmp_path}/run cannot be written to: .*{os.strerror(errno.EFBIG)}"):
            enter(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    enter(tmp_path / "run").close()


def test_a_run_for_which_there_is_no_room_is_refused_and_leaves_no_folder(tmp_path):
    """Two checkpoints are kept, and the next one is whole before the oldest goes; the final model comes on top."""
    phase = enter(tmp_path / "run").phase("ppo")
    with pytest.raises(InputError, match=r"needs about 300 TB for checkpoints .* are free; make room"):
        phase.require_space(10**14, 1000)
    assert tree(tmp_path) == []
    phase = enter(tmp_path / "run").phase("ppo")
    phase.require_space(1000, 1000)


@pytest.mark.parametrize("board", ["run/tensorboard", "."])
def test_a_run_for_which_there_is_no_room_leaves_nothing_of_its_trackers(board, tmp_path):
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path / board)
    run = Run(tmp_path / "run", Config(), resume=False, accelerator=accelerator)
    phase = run.phase("ppo")
    assert list((tmp_path / board / "run").rglob("events*"))
    with pytest.raises(InputError, match="make room"):
        phase.require_space(10**14, 1000)
    assert tree(tmp_path) == []


def test_a_second_phase_for_which_there_is_no_room_takes_nothing_of_the_first(tmp_path):
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    run = Run(tmp_path / "run", Config(), resume=False, accelerator=accelerator)
    first = run.phase("clone")
    first.log({"update": 0, "loss": 0.5})
    first.save(0, {}, {})
    second = run.phase("ppo")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="make room"):
        second.require_space(10**14, 1000)
    assert set(before) - set(tree(tmp_path)) == {"run/.lock.json"}


def test_a_resumed_run_for_which_there_is_no_room_is_refused_and_left_as_it_is(tmp_path):
    begun(tmp_path / "run")
    phase = enter(tmp_path / "run", resume=True).phase("ppo")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="make room"):
        phase.require_space(10**14, 1000)
    assert tree(tmp_path) == before


def test_a_report_that_cannot_be_written_does_not_fail_a_run_that_is_finished(tmp_path, capsys):
    run = enter(tmp_path / "run")
    phase = run.phase("ppo")
    phase.log({"update": 0, "loss": 0.5})
    (tmp_path / "run/report.html").mkdir()
    conclude(run, {"score": 0.5})
    assert json.loads((tmp_path / "run/result.json").read_text()) == {"score": 0.5}
    [line] = capsys.readouterr().err.splitlines()
    assert "IsADirectoryError" in line
    assert f"python -m rlhf.runs.report --run-folder {tmp_path / 'run'}" in line


def test_curves_that_cannot_be_drawn_do_not_fail_a_run_that_is_finished(tmp_path, capsys):
    run = enter(tmp_path / "run")
    run.phase("ppo").log({"update": 0, "loss": 0.5})
    (tmp_path / "run/ppo/curves").write_text("in the way")
    conclude(run, {"score": 0.5})
    assert "FileExistsError" in capsys.readouterr().err
