"""Two processes (gloo) learn from preferences, and from conversations, what one does, and measure the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.lm.preferring_two_processes import TASKS
from tests.processes import run

OF_THE_CLOCK = ("seconds", "steps_per_second", "memory")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """One launch of each kind does every task; starting processes is what takes long."""
    folder = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run("tests/lm/preferring_two_processes.py", folder / str(processes), processes=processes)
    return [_read(folder / str(processes)) for processes in (1, 2)]


def _read(folder: Path) -> tuple[Any, Any]:
    return json.loads((folder / "result.json").read_text()), load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_learn_and_measure_like_one(results: list[tuple[Any, Any]], task: str) -> None:
    (one, weights), (two, others) = results
    for row, again in zip(one[task], two[task], strict=True):
        assert set(row) == set(again)
        for name, value in row.items():
            if not name.startswith(OF_THE_CLOCK):
                assert again[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name
    for name, tensor in weights.items():
        if name.startswith(f"{task}: "):
            torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-7)
