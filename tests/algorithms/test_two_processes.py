"""Two processes (gloo) equal one: baselines, importance weights and sample sizes are those of all ranks' episodes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.algorithms.two_processes import UPDATES
from tests.processes import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """One launch of each kind computes every case; starting processes is what takes long."""
    folder = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run("tests/algorithms/two_processes.py", folder / str(processes), processes=processes)
    return [load_file(folder / str(processes) / "result.safetensors") for processes in (1, 2)]


def test_there_really_are_two_processes(results: list[dict[str, Tensor]]) -> None:
    assert [int(result["processes"]) for result in results] == [1, 2]


@pytest.mark.parametrize("update", UPDATES)
def test_two_processes_step_like_one(results: list[dict[str, Tensor]], update: str) -> None:
    one, two = (result[update] for result in results)
    assert float(one.norm()) > 1e-2
    torch.testing.assert_close(two, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratios", ["action", "trajectory", "decision"])
def test_two_processes_count_effective_samples_like_one(results: list[dict[str, Tensor]], ratios: str) -> None:
    one, two = (result[ratios] for result in results)
    assert float(one) > 1.0
    torch.testing.assert_close(two, one, rtol=1e-12, atol=0)
