"""Importance weights by hand on rows that hold several episodes, and their means by enumeration."""

import math

import pytest
import torch
from torch import Tensor

from rlhf.core import advantages
from rlhf.core.importance import (
    action_ratios,
    corrected_discounts,
    decision_ratios,
    effective_sample_size,
    episode_sums,
    surrogate_loss,
    trajectory_ratios,
)
from rlhf.core.losses import policy_gradient_loss


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


# Episodes of two steps, of one, and one that goes on; and a whole episode followed by padding.
RATIOS = torch.stack([tensor(2, 3, 5, 7, 11), tensor(0.5, 4, 0.25, 1, 1)])
LOGS = RATIOS.log()
DONES = torch.tensor([[False, True, True, False, False], [False, False, True, False, False]])


def test_episode_sums_stay_within_episodes():
    check(episode_sums(RATIOS, DONES), torch.stack([tensor(5, 5, 5, 18, 18), tensor(4.75, 4.75, 4.75, 2, 2)]))


def test_action_ratios_are_of_the_action_alone():
    check(action_ratios(LOGS), RATIOS)


def test_trajectory_ratios_are_products_over_whole_episodes():
    check(trajectory_ratios(LOGS, DONES), torch.stack([tensor(6, 6, 5, 77, 77), tensor(0.5, 0.5, 0.5, 1, 1)]))


def test_decision_ratios_are_products_until_now():
    check(decision_ratios(LOGS, DONES), torch.stack([tensor(2, 6, 5, 7, 77), tensor(0.5, 2, 0.5, 1, 1)]))


def test_every_step_may_end_an_episode():
    dones = torch.ones_like(DONES)
    for product in (trajectory_ratios(LOGS, dones), decision_ratios(LOGS, dones)):
        check(product, RATIOS)


def test_corrected_discounts_hold_the_next_ratio_within_an_episode():
    expected = torch.stack([tensor(1.5, 0.5, 0.5, 5.5, 0.5), tensor(2, 0.125, 0.5, 0.5, 0.5)])
    check(corrected_discounts(LOGS, DONES, gamma=0.5), expected)


def test_products_and_corrected_returns_split_the_trajectory_ratio():
    """decision_t times the product after t is the product over the episode, so with one reward, at the end, weighed
    corrected returns are the returns times the trajectory ratio."""
    rewards = torch.zeros_like(RATIOS)
    rewards[0, 1], rewards[1, 2] = 3.0, -2.0
    discounts = corrected_discounts(LOGS, DONES, gamma=1.0)
    zeros = torch.zeros_like(rewards)
    corrected = advantages.monte_carlo_returns(rewards, zeros, DONES, gamma=discounts)
    plain = advantages.monte_carlo_returns(rewards, zeros, DONES, gamma=1.0)
    check(decision_ratios(LOGS, DONES) * corrected, trajectory_ratios(LOGS, DONES) * plain)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(tensor(1, 1, 1, 1), 4.0), (tensor(7, 7), 2.0), (tensor(1, 0, 0), 1.0), (tensor(1, 2), 9 / 5), (tensor(), 0.0)],
)
def test_effective_sample_size_is_that_of_equal_weights(weights, expected):
    assert float(effective_sample_size(weights.sum(), weights.square().sum())) == pytest.approx(expected, abs=1e-12)


def test_the_gradient_of_the_surrogate_at_the_old_policy_is_the_policy_gradient():
    """grad L_IS = grad L_PG at theta_old, and elsewhere it is the ratio times as large."""
    logits = tensor(0.3, -0.7, 1.1).requires_grad_()
    actions, weights = torch.tensor([0, 2, 1, 2]), tensor(1.5, -2, 0.25, 3)
    old = torch.log_softmax(logits, -1)[actions].detach()

    def gradient(loss, *arguments: Tensor) -> Tensor:
        logprobs = torch.log_softmax(logits, -1)[actions]
        return torch.autograd.grad(loss(logprobs, *arguments).sum(), logits)[0]

    expected = gradient(policy_gradient_loss, weights)
    check(gradient(surrogate_loss, old, weights), expected)
    check(gradient(surrogate_loss, old - math.log(3.0), weights), 3.0 * expected)
