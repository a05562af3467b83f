"""Two processes (gloo), each with half of the buffer, learn what one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.control.replay_two_processes import METHODS
from tests.processes import run


def test_two_processes_replay_as_one(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        run("tests/control/replay_two_processes.py", tmp_path / name, processes=processes)
    one, two = (json.loads((tmp_path / name / "facts.json").read_text()) for name in ("one", "two"))
    assert (one.pop("num_processes"), two.pop("num_processes")) == (1, 2)
    assert one.keys() == two.keys() == METHODS.keys()
    for method, rows in one.items():
        for a, b in zip(rows, two[method], strict=True):
            assert b == {name: pytest.approx(value, rel=1e-7, abs=1e-9) for name, value in a.items()}
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
