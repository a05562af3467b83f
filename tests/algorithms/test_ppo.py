"""PPO's estimates, its adaptive KL coefficient and its schedules, against arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms import ppo
from rlhf.rollout import Batch, PolicyOutput, Rollout
from tests.batches import make_batch, make_rollout
from tests.tabular import TabularPolicy


def rollout_with_reference() -> Rollout:
    """Two rows of two and three actions; the last cell of the first row is padding."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=2, steps=3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    dones = torch.tensor([[False, True, False], [False, False, True]])
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    return replace(
        rollout,
        mask=mask,
        dones=dones,
        values=zeros,
        next_values=zeros,
        rewards=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64),
        logprobs=torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.5, -3.0]], dtype=torch.float64),
        ref_logprobs=torch.tensor([[-1.5, -1.0, 99.0], [-0.5, -2.5, -3.5]], dtype=torch.float64),
    )


def test_kl_is_taken_off_the_reward_of_its_action() -> None:
    """log p - log p_ref is .5, -1 | 0, 1, .5: what the policy likes more than its reference does costs it."""
    config = ppo.Config(kl_coef=0.1, gae_lambda=1.0)
    batch, metrics = ppo.estimate(rollout_with_reference(), ppo.initial_state(config), config)
    expected = torch.tensor([[1.05, 1.1, 0.0], [1.85, 1.85, 1.95]], dtype=torch.float64)
    torch.testing.assert_close(batch.advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(batch.returns, expected, rtol=0, atol=1e-12)
    kl = torch.tensor([[0.5, -1.0, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(metrics["kl_ref_per_episode"], kl, rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics["kl_ref_k1"], kl, rtol=0, atol=1e-12)
    assert float(metrics["kl_ref_k3"].min()) >= 0.0


def test_kl_is_charged_at_the_coefficient_of_the_state() -> None:
    config = ppo.Config(kl_coef=0.1, gae_lambda=1.0)
    charged = ppo.estimate(rollout_with_reference(), {"kl_coef": torch.tensor(0.3)}, config)[0].advantages
    expected = torch.tensor([1.0 + 0.3 * 0.5, 2.0 - 0.3 * 1.5], dtype=torch.float64)
    torch.testing.assert_close(charged[:, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kl", "factor"), [(2.1, 1.005), (1.9, 0.995), (10.0, 1.02), (0.0, 0.98), (-1.0, 0.98)])
def test_coefficient_moves_towards_the_target_by_two_percent_at_most(kl: float, factor: float) -> None:
    config = ppo.Config(kl_coef=0.1, kl_target=2.0)
    state = ppo.adapt(ppo.initial_state(config), {"kl_ref_per_episode": kl}, config)
    assert float(state["kl_coef"]) == pytest.approx(0.1 * factor, abs=1e-12)


def test_coefficient_without_a_target_stays() -> None:
    config = ppo.Config(kl_coef=0.1)
    state = ppo.initial_state(config)
    assert ppo.adapt(state, {"kl_ref_per_episode": 50.0}, config) is state


def policy_loss(output: PolicyOutput, batch: Batch, config: ppo.Config, *, progress: float, update: int = 0) -> Tensor:
    state = ppo.initial_state(config) | {"progress": torch.tensor(progress), "update": torch.tensor(update)}
    return ppo.loss(output, batch, state, config)[0]


def stepped() -> tuple[PolicyOutput, Batch]:
    """A batch under a policy that has moved: every ratio is e^.15, every advantage 1."""
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=2, steps=3)
    batch = batch._replace(advantages=torch.ones_like(batch.advantages), logprobs=batch.logprobs - 0.15)
    return policy(batch.inputs), batch._replace(mask=torch.ones_like(batch.mask))


def test_clip_shrinks_linearly_with_progress() -> None:
    """The ratio e^.15 = 1.1618 passes a clip of .2 and is cut by what three quarters of the run leave of it, .05."""
    output, batch = stepped()
    output = output._replace(logprobs=batch.logprobs + 0.15)
    config = ppo.Config(clip=0.2, clip_schedule="linear", value_coef=0.0)
    for progress, expected in ((0.0, -1.161834242728283), (0.75, -1.05)):
        terms = policy_loss(output, batch, config, progress=progress)
        torch.testing.assert_close(terms, torch.full_like(terms, expected), rtol=0, atol=1e-6)
    constant = policy_loss(output, batch, replace(config, clip_schedule="constant"), progress=0.75)
    assert float(constant.detach()[0, 0]) == pytest.approx(-1.161834242728283, abs=1e-9)


def test_warmup_trains_the_critic_only() -> None:
    config = ppo.Config(critic_warmup=2, entropy_coef=0.1)
    for update, moves in ((1, False), (2, True)):
        policy = TabularPolicy(4, 3)
        batch = make_batch(policy, rows=2, steps=3)
        policy_loss(policy(batch.inputs), batch, config, progress=0.0, update=update).sum().backward()
        assert bool(policy.logits.grad.any()) == moves
        assert bool(policy.state_values.grad.any())


def test_values_are_no_reward() -> None:
    """Targets are advantages plus the values captured while acting, before anything is whitened."""
    rollout = replace(rollout_with_reference(), values=torch.full((2, 3), 0.7, dtype=torch.float64))
    config = ppo.Config(gae_lambda=0.5)
    batch, _ = ppo.estimate(rollout, ppo.initial_state(config), config)
    torch.testing.assert_close(batch.returns, batch.advantages + rollout.values, rtol=0, atol=1e-12)
