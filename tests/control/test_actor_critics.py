"""The actor-critic methods in the whole loop: a run that goes on after a stop, and on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.control.actor_critics import METHODS, trained
from tests.control.worlds import CPU
from tests.processes import run


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    whole, rows = trained(tmp_path / "whole", name, updates=4, accelerator=CPU)
    part, _ = trained(tmp_path / "part", name, updates=2, accelerator=CPU)
    resumed, logged = trained(tmp_path / "part", name, updates=4, accelerator=CPU, resume=True)
    assert not torch.equal(whole, part)
    assert torch.equal(whole, resumed)
    assert rows == logged
    assert rows[0]["ratio_error_max"] <= 1e-9
    # Where actors lag, the above compares the learner with itself. At first they have its weights.
    assert "lag_kl_k3" not in rows[0] or abs(rows[0]["lag_kl_k3"]) <= 1e-15


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        run("tests/control/actor_critics.py", tmp_path / name, processes=processes)
    one, two = (json.loads((tmp_path / name / "facts.json").read_text()) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    for name in METHODS:
        weights = [torch.tensor(facts[name]["weights"], dtype=torch.float64) for facts in (one, two)]
        torch.testing.assert_close(*weights, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        for a, b in zip(one[name]["rows"], two[name]["rows"], strict=True):
            assert b == pytest.approx(a, rel=1e-6, abs=1e-9)
