"""A second process in the folder of a run that is alive is told who is there; what both leave is the first one's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.attacks import rig

pytestmark = pytest.mark.attack

TRIALS = 20


@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_two_in_one_folder_are_one(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = jobs[name], tmp_path / "whole", tmp_path / "here", rig.Tally(f"two in one folder, {name}")
    seconds = rig.attempt(job, whole).seconds
    for trial in range(TRIALS):
        draw = random.Random(f"{name} {trial}")
        rig.fresh(here)
        first = rig.start(job, here, resume=False)
        if rig.wait(first, draw.uniform(0.0, 0.8 * seconds)) is not None:
            continue
        begun = (here / "run" / "config.json").exists()
        second = rig.wait(rig.start(job, here, resume=begun and trial % 2 == 0), rig.SECONDS)
        done = rig.ended(first, here)
        told = "in use by process" in done.log
        if sorted([done.status or 0, second or 0]) != [0, 2] or done.traceback:
            tally.add("not one of two", good=False, what=(trial, done.status, second, done.last))
            continue
        changed = rig.differences(here / "run", whole / "run")
        outcome = "differ" if changed else "the other was told" if told or not begun else "the other was refused"
        tally.add(outcome, good=not changed, what=(trial, done.status, second, changed[:4]))
    tally.require_all_good()
