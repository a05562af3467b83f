"""What else works in the folder of a run that is alive: a second run is told who is there, and what is taken away from
under the first one costs nothing that a checkpoint holds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks import rig
from tests.attacks.operations import at_operation, telling
from tests.attacks.test_kills import counted

pytestmark = pytest.mark.attack

TRIALS = 20
LONGER = ("--improve.train.updates", "24")


@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_two_in_one_folder_are_one(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = jobs[name], tmp_path / "whole", tmp_path / "here", rig.Tally(f"two in one folder, {name}")
    operations, reached = counted(job, whole), here / "reached"
    for trial in range(TRIALS):
        draw, at_the_door = random.Random(f"{name} {trial}"), trial % 2 == 1
        rig.fresh(here)
        # Half of them together on the way through the door; the others anywhere, the first held there meanwhile.
        number = 1 + int(draw.uniform(0.0, 0.2 if at_the_door else 1.0) * (operations - 1))
        come = at_operation(here / "run", telling(reached, stop=not at_the_door), number=number)
        first = rig.start(job, here, resume=False, before=come)
        rig.wait_for(reached, first)
        begun = (here / "run" / "config.json").exists()
        second = rig.wait(rig.start(job, here, resume=begun and trial % 4 < 2), rig.SECONDS)
        rig.kill(first, signal.SIGCONT)
        done = rig.ended(first, here)
        told = "in use by process" in done.log
        if sorted([done.status or 0, second or 0]) != [0, 2] or done.traceback:
            tally.add("not one of two", good=False, what=(trial, done.status, second, done.last))
            continue
        changed = rig.differences(here / "run", whole / "run")
        outcome = "differ" if changed else "the other was told who is there" if told else "the other was refused"
        tally.add(outcome, good=not changed, what=(trial, done.status, second, changed[:4]))
    tally.require_all_good()


def removed(name: str) -> Callable[[Path], None]:
    def act(here: Path) -> None:
        path = here / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    return act


def emptied(name: str) -> Callable[[Path], None]:
    return lambda here: os.truncate(here / name, 0)


def written_to(name: str) -> Callable[[Path], None]:
    def act(here: Path) -> None:
        with (here / name).open("a") as file:
            file.write("{}\n")

    return act


def moved(here: Path) -> None:
    (here / "run").rename(here / "moved")


DONE_TO_IT: dict[str, Callable[[Path], None]] = {
    "the folder moved": moved,
    **{
        f"{name} removed": removed(name)
        for name in (
            *("run", "run/config.json", "run/versions.json", "run/ppo", "run/ppo/phase.json", "run/ppo/checkpoints"),
            *("run/ppo/metrics.jsonl", "run/ppo/samples.jsonl", "run/.lock"),
        )
    },
    **{f"{name} emptied": emptied(f"run/{name}") for name in ("config.json", "ppo/metrics.jsonl", "ppo/samples.jsonl")},
    "metrics written to": written_to("run/ppo/metrics.jsonl"),
    "samples written to": written_to("run/ppo/samples.jsonl"),
}


def test_what_is_done_to_the_folder_of_a_run_costs_nothing(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here = jobs["lm"].with_options(*LONGER), tmp_path / "whole", tmp_path / "here"
    tally = rig.Tally("files of a run removed or changed while it is alive, lm")
    assert rig.attempt(job, whole).status == 0
    for what, act in DONE_TO_IT.items():
        rig.fresh(here)
        pid = rig.start(job, here)
        rig.wait_for(here / "run/ppo/checkpoints/00000003", pid)
        act(here)
        done = rig.ended(pid, here)
        if done.traceback or done.status not in (0, 4):
            tally.add("traceback" if done.traceback else f"status {done.status}", good=False, what=(what, done.last))
            continue
        if (here / "moved").exists():
            shutil.rmtree(here / "run", ignore_errors=True)
            (here / "moved").rename(here / "run")
        resumed = rig.attempt(job, here, resume=(here / "run").exists())
        changed = rig.differences(here / "run", whole / "run") if resumed.status == 0 else ["did not end"]
        outcome = "not resumed to the same" if changed else "stopped in one line" if done.status else "went on"
        told = (what, done.status, done.last[:300], resumed.status, resumed.last[:300], changed[:4])
        tally.add(outcome, good=not changed, what=told)
    tally.require_all_good()
