"""REINFORCE and off-policy policy gradient on whole episodes: acting, learning and going on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import off_policy, reinforce
from rlhf.control.evaluate import EvaluateEpisodes
from rlhf.control.tasks import Envs
from rlhf.loop import Duration
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from rlhf.training import train_phase
from tests.control.worlds import CPU
from tests.whole_loops import RunConfig

METHODS = {
    "value": (reinforce.Reinforce(gamma=0.97, baseline="value", critic_epochs=2), 0),
    "least_variance": (reinforce.Reinforce(baseline="least_variance"), 0),
    "action": (off_policy.OffPolicy(gamma=0.97), 1),
    "trajectory": (off_policy.OffPolicy(ratios="trajectory", self_normalised=True, units="episode"), 1),
}


def trained(folder: Path, name: str, *, updates: int, resume: bool = False) -> tuple[Tensor, list[dict[str, Any]]]:
    method, lag = METHODS[name]
    evaluate = EvaluateEpisodes(episodes=1, sampled_episodes=0)
    task = Envs("CartPole-v1", evaluate=evaluate, episodes=3, lag=lag)
    policy = task.policy(hidden_sizes=(8,))
    train_phase(
        policy,
        task,
        method,
        optimize.Optimize(learning_rate=0.01, epochs=1, whiten="none"),
        duration=Duration(updates=updates, eval_every=0, checkpoint_every=1),
        phase=Run(folder, RunConfig(name=name), resume=resume, accelerator=CPU).phase("learn"),
        seed=0,
    )
    rows = [row for row in read_lines(folder / "learn" / "metrics.jsonl") if "policy_loss" in row]
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]), rows


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    whole, rows = trained(tmp_path / "whole", name, updates=4)
    part, _ = trained(tmp_path / "part", name, updates=2)
    resumed, logged = trained(tmp_path / "part", name, updates=4, resume=True)
    assert not torch.equal(whole, part)
    assert torch.equal(whole, resumed)
    # The learner scores every rollout as it was scored when it was handed over.
    assert max(row["ratio_error_max"] for row in rows) < 1e-5
    # The shorter run evaluated where it ended.
    other = ("seconds", "steps_per_second", "memory", "eval")
    for a, b in zip(rows, logged, strict=True):
        assert {k: v for k, v in a.items() if not k.startswith(other)} == {
            k: v for k, v in b.items() if not k.startswith(other)
        }


@pytest.mark.parametrize("name", ["action", "trajectory"])
def test_actors_that_lag_leave_fewer_effective_samples(name: str, tmp_path: Path) -> None:
    _, rows = trained(tmp_path / "run", name, updates=3)
    before = [0, *(row["steps"] for row in rows)]
    for i, row in enumerate(rows):
        samples = row["episodes"] if name == "trajectory" else row["steps"] - before[i]
        assert row["effective_samples"] < samples - 1e-6 if i else row["effective_samples"] == pytest.approx(samples)
