"""Two processes (gloo): one writes, both know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.runs.log import read_lines

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_ranks_agree_on_everything_and_one_writes(tmp_path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["tests/runs/two_ranks.py", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    main, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert main.pop("failed save") == "OSError: disk full"
    assert other.pop("failed save") == "RuntimeError: the main process failed: disk full"
    assert main == other
    assert main["fresh"] == [False, None]
    assert main["restored"] == [1, {"ranks": [0, 1]}]
    assert main["door"].startswith("InputError: ")
    assert main["finished"]
    assert main["on main"] == 0
    assert main["stop"]
    assert [row["update"] for row in read_lines(tmp_path / "run/ppo/metrics.jsonl")] == [0, 1]
    assert {record["rank"] for record in read_lines(tmp_path / "run/ppo/samples.jsonl")} == {0}
