"""Two processes (gloo) take TRPO's steps, fit the critic and diagnose as one does (law 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.processes import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run("tests/algorithms/trpo_two_processes.py", folder / str(processes), processes=processes)
    return folder


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize("case", ["control", "lm"])
def test_two_processes_change_weights_and_measure_like_one(results: Path, case: str) -> None:
    one, two = (results / processes / case for processes in ("1", "2"))
    assert [facts(folder)["num_processes"] for folder in (one, two)] == [1, 2]
    assert facts(two)["wrapped"] == "DistributedDataParallel"
    alone, together = (load_file(folder / "change.safetensors")["change"] for folder in (one, two))
    assert float(alone.norm()) > 1e-3
    assert float((alone - together).norm()) <= 1e-8 * float(alone.norm())
    for name in ("metrics", "diagnosis"):
        assert facts(two)[name] == pytest.approx(facts(one)[name], rel=1e-6, abs=1e-9)
