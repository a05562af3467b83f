"""Several processes that do not find each other, or not the same folder, are told so and leave nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.errors import InputError
from rlhf.runs.processes import require_shared
from tests.processes import ROOT


def launched(folder: Path, *options: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("ACCELERATE_USE_CPU", None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "tests/runs/processes_child.py"), *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200).stderr


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_processes_for_gpus_are_refused_where_there_are_none(tmp_path: Path) -> None:
    said = launched(tmp_path)
    for start in ("error: ", "[rank 1] error: "):
        assert f"{start}the launcher started 2 processes, one GPU each, and 0 GPUs are here." in said
    assert "`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/custom_reward.py ...`" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_a_folder_that_one_machine_does_not_see_is_refused(own: bool, tmp_path: Path) -> None:
    said = launched(tmp_path, "--cpu", *(["--own"] if own else []))
    if not own:
        names = (".lock", "config.json", "versions.json")
        assert left(tmp_path) == {"ended0", "ended1", *(f"shared/run/{name}" for name in names)}, said
        return
    assert "is not the same folder for all processes: process 1 on" in said
    assert "Name one that all machines share" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_and_what_was_made_for_it_goes(tmp_path: Path) -> None:
    """As the main process does it; no other has to be there for that."""
    first = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True, wait_for_everyone=lambda: None)
    (tmp_path / "file").touch()
    for folder in (Path("/proc/x/y"), tmp_path / "file" / "run", tmp_path / "new" / ("x" * 300)):
        with pytest.raises(InputError, match=re.escape(f"--output-dir {folder} cannot be written: ")):
            require_shared(folder, first)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


ENDING = """
import atexit, os, sys
import torch.distributed
from types import SimpleNamespace
from rlhf.training import make_accelerator

policy = SimpleNamespace(memoryless=True)
for case in ("ends", "ended", "fails", "exits"):
    if os.fork():
        os.wait()
        continue
    # What is registered first is done last.
    atexit.register(lambda: print(case, torch.distributed.is_initialized(), flush=True))
    store = f"file://{sys.argv[1]}/{case}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    make_accelerator(policy, mixed_precision="no")
    # As a second `train` does it, after which a script may have something to exchange.
    make_accelerator(policy, mixed_precision="no")
    torch.distributed.barrier()
    if case == "ended":
        torch.distributed.destroy_process_group()
    if case == "fails":
        raise ValueError("mine")
    if case == "exits":
        sys.exit(3)
    break
"""


def test_gloo_ends_before_python_is_taken_down_in_a_script_that_has_no_launch(tmp_path: Path) -> None:
    """Else a thread of it may abort the process then; where an error ends the process it could wait for others."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split("\n")[:4] == ["ends False", "ended False", "fails True", "exits False"], done.stderr
