"""Two processes collect and evaluate what one does: tokens, rewards, every metric and record (laws 1, 4 and 9)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(output: Path, *, processes: int) -> dict[str, Any]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "tests/lm/two_processes.py", str(output)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((output / "facts.json").read_text())


def assert_close(first: Any, second: Any) -> None:
    """Equal but for rounding in float64."""
    if isinstance(first, dict):
        assert list(first) == list(second)
        for name in first:
            assert_close(first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_close(one, two)
    else:
        assert first == (pytest.approx(second, abs=1e-9) if isinstance(second, float) else second)


@pytest.mark.slow
def test_two_processes_collect_and_evaluate_as_one(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = run(tmp_path / "one", processes=1), run(tmp_path / "two", processes=2)
    assert (one.pop("num_processes"), two.pop("num_processes")) == (1, 2)
    assert len(one["updates"][0]["rows"]) == 12
    assert_close(one, two)
