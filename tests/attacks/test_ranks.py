"""One of two ranks fails: all end, the cause is named, nothing is left behind, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.attacks import rig

pytestmark = pytest.mark.attack

ROOT = Path(__file__).parents[2]
# Where, how, at which call of this, on which rank: each in every phase, and on either rank.
PHASES = {"collect": 2, "reward": 4, "score": 1, "update": 1, "evaluate": 1, "checkpoint": 2, "finish": 0}
FAULTS = [
    (place, kind, number, (row + column) % 2)
    for row, (place, number) in enumerate(PHASES.items())
    for column, kind in enumerate(("exception", "sys.exit", "kill", "stall"))
] + [("evaluate", "int", 1, 1), ("collect", "input", 2, 1), ("collect", "term", 2, 1)]


def ranks(job: rig.Job, folder: Path, *fault: object) -> rig.Attempt:
    """The job as two processes; whoever still lives afterwards is an orphan, and says so in the log."""
    resume = ["--resume"] if (folder / "run" / "config.json").exists() else []
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        str(Path(__file__).with_name("failing_rank.py")),
        *map(str, fault or ("nowhere", "nothing", 0, 0)),
        *(str(rig.RECIPES / job.recipe), *job.arguments, "--output-dir", "run", *resume),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["RLHF_PATIENCE"] = "10"
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        log = process.communicate(timeout=150)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return rig.Attempt(None, process.communicate()[0])
    left = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()
    for pid in left:
        rig.kill(int(pid))
    return rig.Attempt(process.returncode, log + f"\n{len(left)} ORPHANS" * bool(left))


def _names(line: str, rank: int) -> bool:
    """It says of this rank that it failed, and how."""
    return (line.startswith("error: ") and f"rank {rank} of 2" in line) or line.startswith(f"[rank {rank}] error: ")


def test_a_rank_that_fails_ends_all_and_costs_nothing(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = (
        jobs["lm"],
        rig.fresh(tmp_path / "whole"),
        tmp_path / "here",
        rig.Tally("one of two ranks fails"),
    )
    done = ranks(job, whole)
    assert done.status == 0, done.log
    for fault in FAULTS:
        done = ranks(job, rig.fresh(here), *fault)
        seconds = time.time() - float((here / "struck").read_text())
        kind = fault[1]
        # Who asks from outside knows it.
        named = kind in ("int", "term") or sum(_names(line, fault[3]) for line in done.log.splitlines()) == 1
        if done.status is None or "ORPHANS" in done.log or not named or seconds > 30:
            what = "hung" if done.status is None else "late" if seconds > 30 else "left orphans or no cause"
            tally.add(what, good=False, what=(fault, seconds, done.log[-3000:]))
            continue
        if done.status == 0:
            tally.add("ended with 0 in spite of it", good=kind == "int", what=fault)
            continue
        again = ranks(job, here) if done.status else done
        changed = rig.differences(here / "run", whole / "run") if again.status == 0 else ["did not end"]
        outcome = "differ" if changed else "all ended, then resumed to the same"
        tally.add(outcome, good=not changed, what=(fault, done.status, again.status, changed[:4], again.log[-300:]))
    tally.require_all_good()


def test_another_number_of_processes_goes_on(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    """What it comes to is in tests/lm/test_sharded.py: that of one number of processes, but for rounding."""
    job, here = jobs["lm"], rig.fresh(tmp_path / "here")
    assert ranks(job, here, "collect", "exception", 2, 1).status not in (0, None)
    alone = rig.attempt(job, here, resume=True)
    assert alone.status == 0, alone.log


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_launcher_for_gpus_says_that_there_is_none_and_what_to_run(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    """The line of the README, and then the one that the message gives."""
    config, recipe = rig.RECIPES / "accelerate" / "multi_gpu.yaml", str(rig.RECIPES / jobs["lm"].recipe)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def launched(module: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *options, recipe, *jobs["lm"].arguments, "--output-dir", "run"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=150, check=False
        )

    refused = launched("accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2")
    assert refused.returncode != 0
    assert "2 processes, one GPU each, and 0 GPUs are here" in refused.stderr
    assert f"`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 {recipe} ...`" in refused.stderr
    assert not (tmp_path / "run").exists()
    told = launched("torch.distributed.run", "--nproc_per_node", "2", ACCELERATE_USE_CPU="true")
    assert told.returncode == 0, told.stderr
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["processes"] == 2
