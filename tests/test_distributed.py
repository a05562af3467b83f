"""Two processes (gloo) equal one: the unclipped gradient, the weights after ten updates, every metric (law 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of each kind computes every case; starting processes is what takes long."""
    folder = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run("tests/two_processes.py", folder / str(processes), processes=processes)
    return folder


def read(folder: Path, kind: str) -> torch.Tensor:
    tensors = load_file(folder / "result.safetensors")
    return torch.cat([tensor.flatten() for name, tensor in sorted(tensors.items()) if name.startswith(kind)])


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "facts.json").read_text())


CASES = pytest.mark.parametrize(
    "case", ["control-float32", "control-float64", "lm-float32", "lm-float64", "cramped-float64"]
)


@CASES
def test_there_really_are_two_processes(results: Path, case: str) -> None:
    one, two = facts(results / "1" / case), facts(results / "2" / case)
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert (one["distributed_type"], two["distributed_type"]) == ("NO", "MULTI_CPU")
    assert two["wrapped"] == "DistributedDataParallel"


def test_memory_that_ends_on_one_process_cuts_the_rows_of_both(results: Path) -> None:
    """The cases below see that the gradient is that of one process, where it does not end."""
    fits = [facts(results / processes / "cramped-float64")["fits"] for processes in ("1", "2")]
    assert fits[0] is None
    assert 1 <= fits[1] < 9


@CASES
def test_two_processes_have_the_unclipped_gradient_of_one(results: Path, case: str) -> None:
    one, two = (read(results / processes / case, "gradient") for processes in ("1", "2"))
    assert float(one.norm()) > 1e-3
    assert float((one - two).norm() / one.norm()) <= (1e-5 if case.endswith("float32") else 1e-12)


@pytest.mark.parametrize("case", ["control-float64", "lm-float64", "cramped-float64"])
def test_two_processes_change_weights_like_one(results: Path, case: str) -> None:
    one, two = (read(results / processes / case, "change") for processes in ("1", "2"))
    assert float(one.norm()) > 1e-3
    assert float((one - two).norm() / one.norm()) <= 1e-9


@CASES
def test_two_processes_report_the_metrics_of_one(results: Path, case: str) -> None:
    one, two = facts(results / "1" / case)["metrics"], facts(results / "2" / case)["metrics"]
    assert two == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in one.items()}
