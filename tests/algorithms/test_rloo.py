from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlhf.algorithms.rloo import RLOO
from rlhf.errors import InputError
from tests.algorithms.batches_of_episodes import gradient_of_return
from tests.algorithms.groups_of_episodes import expected_gradient, gradient, one_group
from tests.algorithms.groups_of_episodes import expected_gradient_at_once as at_once
from tests.algorithms.test_enumeration import TinyLm, TinyMdp, rollout_of


@pytest.mark.parametrize("gamma", [1.0, 0.6])
@pytest.mark.parametrize(("size", "expectation"), [(2, expected_gradient), (2, at_once), (3, at_once)])
def test_the_expected_gradient_is_exact(size: int, expectation: Callable, gamma: float) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    ours = expectation(RLOO(gamma=gamma), policy, problem, size)["logits"]
    torch.testing.assert_close(ours, gradient_of_return(policy, problem, gamma), rtol=0, atol=1e-9)


def test_the_expected_gradient_is_exact_with_a_charge_for_leaving_the_reference() -> None:
    """That of J_beta = E[R - beta sum(log pi - log ref)], by autograd through the probabilities."""
    problem, beta = TinyLm(), 0.3
    policy = problem.policy()
    inputs, mask, rewards = problem.trajectories()
    with torch.no_grad():
        reference = problem.trajectory_logprobs(problem.policy(seed=7), inputs, mask)
    ours = at_once(RLOO(kl_coef=beta), policy, problem, 2, reference)
    policy.zero_grad()
    logprobs = problem.trajectory_logprobs(policy, inputs, mask)
    (logprobs.sum(1).exp() * (rewards - beta * (logprobs - reference)).sum(1)).sum().backward()
    for name, parameter in policy.named_parameters():
        exact = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(ours[name], exact, rtol=0, atol=1e-9)
    assert max(float(part.abs().max()) for part in ours.values()) > 1e-3


def test_equal_scores_teach_exactly_nothing() -> None:
    problem = TinyMdp()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    same = one_group(rollout.rows(torch.tensor([2, 2, 2])))
    assert not any(part.any() for part in gradient(RLOO(), policy, same).values())


def test_the_entropy_bonus_climbs_towards_the_uniform_policy() -> None:
    problem = TinyMdp()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    group = one_group(rollout.rows(torch.tensor([0, 1])))
    entropy = torch.where(rollout.mask[:2], policy({k: x[:2] for k, x in rollout.inputs.items()}).entropy, 0.0)
    exact = torch.autograd.grad(0.1 * entropy.sum(1).mean(), policy.logits)[0]
    with_bonus, without = (gradient(RLOO(entropy_coef=c), policy, group)["logits"] for c in (0.1, 0.0))
    torch.testing.assert_close(with_bonus - without, exact, rtol=0, atol=1e-9)


def test_a_row_without_another_of_its_start_is_refused() -> None:
    problem = TinyMdp()
    rollout, _ = rollout_of(problem, problem.policy(), None)
    with pytest.raises(InputError, match="rows that share a start to at least 2"):
        RLOO().estimate(rollout, {})


@pytest.mark.parametrize("bad", [{"gamma": 1.1}, {"kl_coef": -1.0}, {"entropy_coef": -1.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        RLOO(**bad)
