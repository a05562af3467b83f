"""The chain by enumeration: how rarely it is crossed by chance, and how rarely a batch has a gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.rollout import Rollout
from tests.control.worlds import bare
from tests.tabular import TabularPolicy
from theory.mdp import expected_return, optimal_values, policy_gradient
from theory.worlds.chain import NUM_ACTIONS


@pytest.mark.parametrize("horizon", [1, 2, 5, 10, 20])
def test_chain_is_crossed_with_probability_3_to_minus_h(horizon: int) -> None:
    mdp = bare(f"theory/Chain-v0,horizon={horizon}").mdp
    uniform = torch.full((horizon, NUM_ACTIONS), 1.0 / 3.0, dtype=torch.float64)
    assert float(expected_return(mdp, uniform, gamma=1.0)) == pytest.approx(3.0**-horizon, rel=1e-9)
    assert float(mdp.start @ optimal_values(mdp, gamma=1.0, num_iterations=horizon)) == 1.0


def test_chain_has_no_pattern_of_right_actions() -> None:
    """A policy that sees no state must not do better than chance for long."""
    right = bare("theory/Chain-v0,horizon=60").right_actions
    assert np.bincount(right).min() >= 12
    assert len({tuple(right[i : i + 2]) for i in range(59)}) == 9


def test_chain_is_the_same_for_every_length() -> None:
    long, short = (bare(f"theory/Chain-v0,horizon={horizon}").right_actions for horizon in (20, 5))
    np.testing.assert_array_equal(long[:5], short)


def test_chain_with_a_near_reward_has_a_local_optimum_there() -> None:
    """Where the near action is likelier than crossing by its pay, the exact gradient leads to it, away from 1."""
    env = bare("theory/Chain-v0,horizon=6,near_reward=0.1")
    logits = torch.zeros(6, NUM_ACTIONS, dtype=torch.float64)
    mdp = env.mdp
    for _ in range(40):
        logits = logits + 30.0 * policy_gradient(mdp, logits, gamma=1.0)
    policy = logits.softmax(-1)
    assert float(policy[0, env.near_action]) > 0.95
    assert float(expected_return(mdp, policy, gamma=1.0)) == pytest.approx(0.1, abs=0.005)


def chain_episodes(horizon: int) -> tuple[Rollout, Tensor]:
    """Every episode of the chain once, by stepping it, and their probabilities under the uniform policy."""
    env = bare(f"theory/Chain-v0,horizon={horizon}")
    episodes: dict[tuple[tuple[int, int, float], ...], None] = {}
    for actions in itertools.product(range(NUM_ACTIONS), repeat=horizon):
        state, _ = env.reset(seed=0)
        steps, terminated = [], False
        for action in actions:
            if not terminated:
                after, reward, terminated, _, _ = env.step(action)
                steps.append((state, action, reward))
                state = after
        assert terminated
        episodes[tuple(steps)] = None
    lengths = torch.tensor([len(steps) for steps in episodes])
    table = torch.tensor([[*steps, *[(0, 0, 0.0)] * (horizon - len(steps))] for steps in episodes], dtype=torch.float64)
    mask = torch.arange(horizon) < lengths.unsqueeze(1)
    policy = TabularPolicy(horizon, NUM_ACTIONS)
    with torch.no_grad():
        policy.logits.zero_()
        policy.critic.zero_()
    inputs = {"states": table[..., 0].long(), "actions": table[..., 1].long()}
    output = policy(inputs)
    rollout = Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs.detach(),
        logprobs=output.logprobs.detach(),
        values=torch.zeros_like(table[..., 2]),
        next_values=torch.zeros_like(table[..., 2]),
        rewards=table[..., 2],
        dones=torch.arange(horizon) == lengths.unsqueeze(1) - 1,
        mask=mask,
        sample_ids=torch.arange(len(episodes)),
        costs=lengths,
    )
    return rollout, 3.0 ** -lengths.double()


def test_chain_share_of_batches_without_a_gradient_by_enumeration() -> None:
    """(1 - 3^-H)^N for H = 2, N = 3: all batches of three episodes, each with our own gradient."""
    horizon, batch_size = 2, 3
    episodes, probabilities = chain_episodes(horizon)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    policy = TabularPolicy(horizon, NUM_ACTIONS)
    with torch.no_grad():
        policy.logits.zero_()
    method = ppo.PPO(gae_lambda=1.0, value_coef=0.0)
    state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    share = 0.0
    for chosen in itertools.product(range(len(probabilities)), repeat=batch_size):
        batch, _ = method.estimate(episodes.rows(torch.tensor(chosen)), state)
        batch = batch._replace(sample_ids=torch.arange(batch_size))
        policy.zero_grad()
        optimize.gradient(
            policy,
            batch,
            batch.rows(torch.tensor([0])),
            method.objective(state),
            accelerator=Accelerator(),
            micro_batch_cost=100,
        )
        if not policy.logits.grad.any():
            share += float(probabilities[list(chosen)].prod())
    assert share == pytest.approx((1.0 - 3.0**-horizon) ** batch_size, abs=1e-12)
