"""Eligibility traces against the forward view, and against sums written out."""

import pytest
import torch
from torch import Tensor

from rlhf.core.advantages import gae
from rlhf.core.traces import accumulate

GAMMA = 0.9


def steps(num_rows: int = 3, num_steps: int = 8) -> tuple[Tensor, ...]:
    """Gradients, rewards, values, next values and dones; every row's last step ends an episode."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(num_rows, num_steps, 4, generator=generator, dtype=torch.float64)
    rewards, values, finals = torch.randn(3, num_rows, num_steps, generator=generator, dtype=torch.float64)
    dones = torch.rand(num_rows, num_steps, generator=generator) < 0.3
    dones[:, -1] = True
    next_values = torch.where(dones, finals, torch.cat([values[:, 1:], finals[:, -1:]], dim=1))
    return gradients, rewards, values, next_values, dones


def decays(lambda_: float) -> Tensor:
    return torch.full((4,), GAMMA * lambda_, dtype=torch.float64)


def fresh(num_rows: int = 3) -> Tensor:
    return torch.zeros(num_rows, 4, dtype=torch.float64)


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_backward_and_forward_view_agree_offline(lambda_: float) -> None:
    """Sutton and Barto, 2018, section 12.2: with weights held, sum_t delta_t z_t = sum_t g_t (G_t^lambda - V(s_t))."""
    gradients, rewards, values, next_values, dones = steps()
    deltas = rewards + GAMMA * next_values - values
    updates, _ = accumulate(gradients, deltas, dones, fresh(), decay=decays(lambda_))
    forward = gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=lambda_)
    check(updates, (gradients * forward.unsqueeze(-1)).sum(1))


def test_each_parameter_has_its_own_decay() -> None:
    """Gradients 1, 1 and errors 0, 1: the update is 1 + decay."""
    decay = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    errors = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    updates, traces = accumulate(
        torch.ones(1, 2, 4, dtype=torch.float64), errors, torch.zeros(1, 2, dtype=torch.bool), fresh(1), decay=decay
    )
    check(updates, 1.0 + decay.unsqueeze(0))
    check(traces, 1.0 + decay.unsqueeze(0))


def test_step_by_step_is_all_at_once() -> None:
    gradients, rewards, _, _, dones = steps()
    whole, after = accumulate(gradients, rewards, dones, fresh(), decay=decays(0.7))
    total, traces = fresh(), fresh()
    for t in range(gradients.shape[1]):
        updates, traces = accumulate(gradients[:, [t]], rewards[:, [t]], dones[:, [t]], traces, decay=decays(0.7))
        total += updates
    check(total, whole)
    check(traces, after)


def test_an_episode_that_ends_leaves_no_trace() -> None:
    gradients, rewards, _, _, dones = steps()
    dones[:, 3] = True
    whole, _ = accumulate(gradients, rewards, dones, fresh(), decay=decays(0.9))
    parts = [
        accumulate(gradients[:, part], rewards[:, part], dones[:, part], fresh(), decay=decays(0.9))
        for part in (slice(0, 4), slice(4, 8))
    ]
    check(whole, parts[0][0] + parts[1][0])
    check(parts[0][1], fresh())
