"""Policy gradients on a language model: what a whole run logs and leaves behind, and how it goes on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import a2c, grpo, impala, off_policy, ppo, ppo_kl, reinforce, reinforce_pp, rloo, trpo
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.checks import fitting
from rlhf.lm.policy import CausalLM
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from rlhf.training import Duration
from tests.lm.worlds import improve, word_policy
from tests.whole_loops import RunConfig

UPDATES = 3


def run(
    folder: Path, method: Any, *, lag: int = 0, epochs: int = 1, updates: int = UPDATES, resume: bool = False
) -> tuple[CausalLM, list[dict[str, Any]]]:
    """The policy after the updates, as many steps each as epochs, and what was logged; one prompt has no scores."""
    accelerator, policy = Accelerator(cpu=True), word_policy()
    settings = optimize.Optimize(learning_rate=0.01, epochs=epochs, micro_batch_cost=1000, whiten="none")
    improve(
        policy,
        method,
        fitting(method, settings),
        duration=Duration(updates=updates, eval_every=0, checkpoint_every=0),
        phase=Run(folder, RunConfig(name="lm"), resume=resume, accelerator=accelerator).phase("improve"),
        prompts_per_rollout=4,
        responses_per_prompt=3,
        lag=lag,
    )
    rows = read_lines(folder / "improve" / "metrics.jsonl")
    return policy, [row for row in rows if "policy_loss" in row]


def weights(policy: CausalLM, *, critic: bool) -> Tensor:
    own = {id(parameter) for parameter in policy.critic_parameters()}
    return torch.cat([p.detach().flatten() for p in policy.parameters() if (id(p) in own) == critic])


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out", "step_mean", "step_leave_one_out", "value"])
def test_reinforce_trains_the_critic_only_for_a_value_baseline(baseline: str, tmp_path: Path) -> None:
    method = reinforce.Reinforce(baseline=baseline, kl_coef=0.1, critic_epochs=3)
    policy, rows = run(tmp_path / "run", method)
    began = word_policy()
    assert not torch.equal(weights(policy, critic=False), weights(began, critic=False))
    assert torch.equal(weights(policy, critic=True), weights(began, critic=True)) is (baseline != "value")
    assert len(rows) == UPDATES
    assert all(row["gradient_steps"] == 1 for row in rows)
    assert all(row["ratio_error_max"] < 1e-9 for row in rows)
    assert rows[0]["kl_ref_k3"] == pytest.approx(0.0, abs=1e-9)
    assert rows[-1]["kl_ref_k3"] > 1e-6


@pytest.mark.parametrize("ratios", ["action", "trajectory", "decision"])
def test_off_policy_learns_from_actors_that_lag(ratios: str, tmp_path: Path) -> None:
    """The first update acts as the learner would: every sample counts fully. Later ones weigh the actor's."""
    _, rows = run(tmp_path / "run", off_policy.OffPolicy(ratios=ratios, kl_coef=0.1), lag=1)
    counted = [row["episodes"] if ratios == "trajectory" else row["steps"] for row in rows]
    first, second = rows[0], rows[1]
    assert first["behaviour_kl_k3"] == pytest.approx(0.0, abs=1e-9)
    assert first["effective_samples"] == pytest.approx(counted[0], rel=1e-6)
    assert second["behaviour_kl_k3"] > 1e-6
    assert second["effective_samples"] < counted[1] - first["steps"] * (ratios != "trajectory") - 1e-3
    assert all(row["ratio_error_max"] < 1e-9 for row in rows)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        (ppo.PPO(kl_coef=0.1, kl_target=0.01), {"lag": 2, "epochs": 2}),
        (impala.Impala(kl_coef=0.1), {"lag": 2}),
        (off_policy.OffPolicy(kl_coef=0.1), {"lag": 1}),
        (grpo.GRPO(), {"epochs": 2}),
        (rloo.RLOO(), {}),
        (reinforce_pp.ReinforcePP(kl_coef=0.1), {"epochs": 2}),
        (reinforce.Reinforce(baseline="value"), {}),
        (a2c.A2C(critic=Critic(epochs=2)), {}),
        (ppo_kl.PPOKL(penalty_target=1e-3), {"epochs": 2}),
        (trpo.TRPO(), {}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.name,
)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(method: Any, how: dict[str, int], tmp_path: Path) -> None:
    """Critic, penalty and, with actors that lag, the weights of the last updates are in the checkpoint.

    In updates 4 to 6 all answers of a group are paid alike, and methods that compare them move nothing.
    """
    whole, rows = run(tmp_path / "whole", method, updates=7, **how)
    part, _ = run(tmp_path / "part", method, updates=3, **how)
    resumed, logged = run(tmp_path / "part", method, updates=7, resume=True, **how)
    for critic in (False, True):
        assert torch.equal(weights(whole, critic=critic), weights(resumed, critic=critic))
    assert not torch.equal(weights(whole, critic=False), weights(part, critic=False))
    # The shorter run evaluated where it ended.
    other = ("seconds", "steps_per_second", "memory", "eval")
    for a, b in zip(rows, logged, strict=True):
        assert {k: v for k, v in a.items() if not k.startswith(other)} == {
            k: v for k, v in b.items() if not k.startswith(other)
        }
