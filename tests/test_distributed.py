"""Two processes (gloo) equal one: the unclipped gradient, the weights after ten updates, every metric (law 1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent


def run(script: str, output: Path, *arguments: str, processes: int) -> dict[str, Any]:
    output.mkdir()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, script, str(output), *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((output / "facts.json").read_text())


@pytest.mark.parametrize("problem", ["control", "lm"])
@pytest.mark.parametrize(
    ("dtype", "gradient_tolerance", "change_tolerance"), [("float32", 1e-5, None), ("float64", 1e-12, 1e-9)]
)
def test_two_processes_equal_one(
    problem: str, dtype: str, gradient_tolerance: float, change_tolerance: float | None, tmp_path: Path
) -> None:
    one = run("tests/two_processes.py", tmp_path / "one", problem, dtype, processes=1)
    two = run("tests/two_processes.py", tmp_path / "two", problem, dtype, processes=2)
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert two["distributed_type"] == "MULTI_CPU"
    assert two["wrapped"] == "DistributedDataParallel"
    results = [load_file(tmp_path / name / "result.safetensors") for name in ("one", "two")]
    for kind, tolerance in (("gradient", gradient_tolerance), ("change", change_tolerance)):
        if tolerance is None:
            continue
        a, b = (
            torch.cat([tensor.flatten() for name, tensor in sorted(result.items()) if name.startswith(kind)])
            for result in results
        )
        assert float(a.norm()) > 1e-3
        assert float((a - b).norm() / a.norm()) <= tolerance, kind
    for name, value in one["last"].items():
        assert two["last"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
