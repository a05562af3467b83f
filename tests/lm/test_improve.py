"""The reference and the adaptive coefficient in a whole PPO run, by what the run logs."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from rlhf.runs.log import read_lines
from tests.lm.worlds import word_policy
from tests.whole_loops import KL_COEF, KL_TARGET, Speed, lm

INPUTS = {
    "tokens": torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]),
    "lengths": torch.tensor([4, 2]),
    "actions": torch.tensor([[1, 2, 3], [1, 0, 0]]),
}


def test_reference_is_where_the_policy_began_and_the_policy_leaves_it(tmp_path: Path) -> None:
    policy = lm(tmp_path / "run", updates=4, speed=Speed())
    began = word_policy(temperature=0.8)
    with torch.no_grad():
        assert torch.equal(policy.reference_logprobs(INPUTS), began(INPUTS).logprobs)
        assert not torch.allclose(policy(INPUTS).logprobs, began(INPUTS).logprobs, atol=0.01)
    rows = [row for row in read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl") if "kl_ref_k3" in row]
    assert rows[0]["kl_ref_per_episode"] == pytest.approx(0.0, abs=1e-9)
    assert rows[0]["kl_ref_k3"] == pytest.approx(0.0, abs=1e-9)
    assert all(row["kl_ref_k3"] > 1e-3 for row in rows[1:])


def test_coefficient_is_steered_by_the_kl_that_is_logged(tmp_path: Path) -> None:
    """And what is logged is the mean, over the samples that count, of what each sample's record says."""
    lm(tmp_path / "run", updates=6, speed=Speed())
    rows = [row for row in read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl") if "kl_ref_k3" in row]
    records = [r for r in read_lines(tmp_path / "run" / "ppo" / "samples.jsonl") if r["kind"] == "training"]
    coefficient = KL_COEF
    for row in rows:
        kls = [r["kl"] for r in records if r["update"] == row["update"] and r["score"] is not None]
        assert row["kl_ref_per_episode"] == pytest.approx(statistics.mean(kls), abs=1e-9)
        error = min(max(row["kl_ref_per_episode"] / KL_TARGET - 1.0, -0.2), 0.2)
        coefficient *= 1.0 + 0.1 * error
        assert row["kl_coef"] == pytest.approx(coefficient, rel=1e-9)
    assert len({row["kl_coef"] for row in rows}) == len(rows)
