"""SIGKILL at every file operation of a run and of its resume: the same command ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.attacks import rig
from tests.attacks.operations import at_operation, die, written_to

pytestmark = pytest.mark.attack


# Of kills at random moments, for each recipe.
TRIALS = 10


@pytest.mark.parametrize("name", ["short cartpole", "short lm"])
def test_a_kill_at_any_file_operation_costs_nothing(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here = jobs[name], tmp_path / "whole", tmp_path / "here"
    tally = rig.Tally(f"kill at each file operation, {name}")
    for number in range(1, counted(job, whole) + 1):
        rig.fresh(here)
        killed = rig.attempt(job, here, before=at_operation(here / "run", die, number=number))
        judge(job, here, whole, tally, what=f"operation {number}", killed=killed)
    tally.require_all_good()


def test_a_kill_at_any_file_operation_of_a_resume_costs_nothing(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, source, here = jobs["short lm"], tmp_path / "whole", tmp_path / "killed", tmp_path / "here"
    tally = rig.Tally("kill at each file operation of a resume, short lm")
    rig.attempt(job, source, before=at_operation(source / "run", die, number=counted(job, whole) * 2 // 3))
    again = tmp_path / "again"
    shutil.copytree(source / "run", again / "run")
    for number in range(1, counted(job, again) + 1):
        rig.fresh(here)
        shutil.copytree(source / "run", here / "run")
        killed = rig.attempt(job, here, before=at_operation(here / "run", die, number=number))
        judge(job, here, whole, tally, what=f"operation {number}", killed=killed)
    tally.require_all_good()


@pytest.mark.parametrize("name", ["cartpole", "lm", "lora", "arithmetic"])
def test_kills_at_random_moments_cost_nothing(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = jobs[name], tmp_path / "whole", tmp_path / "here", rig.Tally(f"kills at random, {name}")
    seconds = rig.attempt(job, whole).seconds
    for trial in range(TRIALS):
        draw = random.Random(f"{name} {trial}")
        rig.fresh(here)
        for _ in range(draw.choice((1, 2, 3))):
            pid = rig.start(job, here)
            if rig.wait(pid, draw.uniform(0.0, seconds)) is None:
                rig.kill(pid)
                rig.wait(pid, rig.SECONDS)
        judge(job, here, whole, tally, what=f"trial {trial}")
    tally.require_all_good()


def counted(job: rig.Job, folder: Path, *, freeing: bool = True) -> int:
    """Runs a job to its end; how many operations on files that takes, with those that free room or without."""
    listing = folder.parent / "operations"
    folder.mkdir(exist_ok=True)
    lists = at_operation(folder / "run", written_to(listing), number=1, forever=True, freeing=freeing)
    done = rig.attempt(job, folder, before=lists)
    assert done.status == 0, done.log
    return len(listing.read_text().splitlines())


def judge(
    job: rig.Job, here: Path, whole: Path, tally: rig.Tally, *, what: str, killed: rig.Attempt | None = None
) -> None:
    """Resumes, and compares with the run that nothing happened to."""
    if killed is not None and killed.status != -signal.SIGKILL:
        tally.add("not killed", good=False, what=(what, killed.status, killed.last))
        return
    resumed = rig.attempt(job, here)
    if resumed.status != 0:
        tally.add("not resumed", good=False, what=(what, resumed.status, resumed.last))
        return
    changed, left = rig.differences(here / "run", whole / "run"), rig.litter(here / "run")
    outcome = "differ" if changed else "left half-written files" if left else "equal bit for bit"
    tally.add(outcome, good=not changed and not left, what=(what, changed[:4], left[:4]))
