"""Discrete SAC against soft values found by enumeration on tiny problems."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.discrete_sac import DiscreteSAC
from rlhf.algorithms.replayed import follow as follow_targets
from rlhf.errors import InputError
from tests.learners import learner_of
from tests.twins import TabularTwins, replayed

GAMMA, TEMPERATURE = 0.9, 0.5
CPU = Accelerator(cpu=True)


def tiny_mdp() -> tuple[Tensor, Tensor, Tensor]:
    """Three states, two actions: rewards `(3, 2)`, next states `(3, 2)`, and where the episode ends `(3, 2)`."""
    rewards = torch.tensor([[1.0, 0.0], [0.3, -0.2], [0.0, 2.0]], dtype=torch.float64)
    next_states = torch.tensor([[1, 2], [0, 2], [0, 1]])
    terminals = torch.tensor([[False, False], [False, True], [False, False]])
    return rewards, next_states, terminals


def soft_optimum() -> Tensor:
    """Q*, the fixed point of Q = r + gamma (1 - terminal) temperature log sum exp(Q' / temperature)."""
    rewards, next_states, terminals = tiny_mdp()
    values = torch.zeros(3, 2, dtype=torch.float64)
    for _ in range(1000):
        soft = TEMPERATURE * (values / TEMPERATURE).logsumexp(-1)
        values = rewards + GAMMA * soft[next_states].masked_fill(terminals, 0.0)
    return values


def all_transitions() -> tuple[Tensor, ...]:
    rewards, next_states, terminals = tiny_mdp()
    states, actions = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    return states, actions, rewards.flatten(), next_states.flatten(), terminals.flatten()


def twins(values: Tensor, logits: Tensor | None = None, **options: float) -> TabularTwins:
    logits = values / TEMPERATURE if logits is None else logits
    return TabularTwins(logits, torch.stack([values, values], dim=1), **options)


def gradients(policy: TabularTwins, method: DiscreteSAC) -> dict[str, Tensor]:
    batch, _ = method.estimate(replayed(*all_transitions()), {})
    terms, _ = method.loss(policy(batch.inputs), batch, {})
    policy.zero_grad()
    terms.mean().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.requires_grad}


METHOD = DiscreteSAC(gamma=GAMMA)


def test_discrete_sac_rests_at_the_soft_optimum() -> None:
    """Where Q = Q* and pi = softmax(Q* / temperature), neither critic nor actor has a gradient."""
    found = gradients(twins(soft_optimum(), temperature=TEMPERATURE), METHOD)
    assert float(found["critic.values"].abs().max()) < 1e-9
    assert float(found["actor"].abs().max()) < 1e-9


def test_discrete_sac_critics_converge_to_the_soft_optimum() -> None:
    """Soft policy iteration: its critic steps and target moves, between improvements pi = softmax(Q / temperature)."""
    policy = twins(torch.zeros(3, 2, dtype=torch.float64), temperature=TEMPERATURE)
    # The mean over six transitions makes this the whole way to the target.
    optimizer = torch.optim.SGD([policy.critic.values], lr=6.0)
    batch, _ = METHOD.estimate(replayed(*all_transitions()), {})
    follow = follow_targets(policy, rate=1.0)
    for _ in range(180):
        optimizer.zero_grad()
        METHOD.loss(policy(batch.inputs), batch, {})[0].mean().backward()
        optimizer.step()
        follow()
        policy.actor.data = policy.critic.values.data[:, 0] / TEMPERATURE
    for k in range(2):
        torch.testing.assert_close(policy.critic.values[:, k], soft_optimum(), rtol=0, atol=1e-6)


def test_discrete_sac_target_is_the_soft_value_of_the_lower_critic_by_hand() -> None:
    """One state, even odds: y = r + gamma (mean of min Q + temperature log 2); a terminal step is worth r alone."""
    values = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]], dtype=torch.float64)
    policy = TabularTwins(torch.zeros(1, 2, dtype=torch.float64), values, temperature=0.25)
    zero = torch.zeros(2, dtype=torch.int64)
    rollout = replayed(zero, zero, torch.tensor([0.7, 0.7], dtype=torch.float64), zero, torch.tensor([False, True]))
    batch, _ = METHOD.estimate(rollout, {})
    metrics = METHOD.loss(policy(batch.inputs), batch, {})[1]
    alive, dead = 0.7 + 0.9 * (0.5 * (1.0 + 2.0) + 0.25 * math.log(2.0)), 0.7
    expected = [0.5 * ((y - 1.0) ** 2 + (y - 3.0) ** 2) for y in (alive, dead)]
    assert metrics["value_loss"].flatten().tolist() == pytest.approx(expected, abs=1e-9)
    assert metrics["td_error"].flatten().tolist() == pytest.approx(
        [0.5 * (abs(y - 1.0) + abs(y - 3.0)) for y in (alive, dead)], abs=1e-9
    )


def test_discrete_sac_actor_gradient_is_that_of_the_exact_expectation() -> None:
    """d/dtheta of -E_s sum_a pi(a | s) (min Q(s, a) - temperature log pi(a | s)), by autograd on the definition."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    logits = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    found = gradients(TabularTwins(logits, values, temperature=0.3), METHOD)["actor"]
    free = logits.clone().requires_grad_()
    probabilities = free.softmax(-1)
    soft = (probabilities * (values.min(dim=1).values - 0.3 * probabilities.log())).sum(-1)
    (exact,) = torch.autograd.grad(-soft.mean(), free)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("share", "sign"), [(0.9, -1.0), (0.1, 1.0)])
def test_discrete_sac_temperature_rises_where_entropy_is_short(share: float, sign: float) -> None:
    """Its gradient is entropy - share log |A|, so descent raises the temperature where the entropy is too low."""
    logits = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    method = replace(METHOD, target_entropy=share)
    found = gradients(twins(soft_optimum(), logits, temperature=1.0), method)["log_temperature"]
    p = torch.tensor([1.0, 0.0], dtype=torch.float64).softmax(-1)
    assert float(found) == pytest.approx(float(-(p * p.log()).sum()) - share * math.log(2.0), abs=1e-9)
    assert math.copysign(1.0, float(found)) == sign


def test_discrete_sac_update_moves_the_targets_after_each_step() -> None:
    """With rate 1 the targets are the critics, with a small one they lag behind."""
    settings = optimize.Optimize(epochs=1, minibatches=3, whiten="none", learning_rate=0.1)
    for rate, same in ((1.0, True), (0.1, False)):
        policy, method = twins(torch.zeros(3, 2, dtype=torch.float64)), replace(METHOD, target_rate=rate)
        rollout = replayed(*all_transitions())
        batch, _ = method.estimate(rollout, {})
        metrics, _ = method.update(learner_of(policy, settings), rollout, batch, {})
        assert metrics["gradient_steps"] == 3
        moved = policy.target_critic.values
        assert bool(moved.any())
        assert torch.equal(moved, policy.critic.values) is same


def test_discrete_sac_refuses_a_share_above_one() -> None:
    with pytest.raises(InputError, match="target_entropy"):
        DiscreteSAC(target_entropy=1.5)
