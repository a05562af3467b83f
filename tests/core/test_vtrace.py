"""V-trace against published numbers, its definition as a sum of products, and what it reduces to."""

import math

import pytest
import torch
from torch import Tensor

from rlhf.core.advantages import gae, lambda_returns, monte_carlo_returns
from rlhf.core.vtrace import vtrace

GAMMA = 0.9


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def steps(*, num_rows: int = 4, num_steps: int = 9, ends: float = 0.25) -> tuple[Tensor, ...]:
    """Rewards, values, next values, dones and ratios; some ends are terminal, some cut."""
    generator = torch.Generator().manual_seed(0)
    rewards, values, finals, log_ratios = torch.randn(4, num_rows, num_steps, generator=generator, dtype=torch.float64)
    dones = torch.rand(num_rows, num_steps, generator=generator) < ends
    terminal = dones & (torch.rand(num_rows, num_steps, generator=generator) < 0.5)
    following = torch.cat([values[:, 1:], finals[:, -1:]], dim=1)
    next_values = torch.where(dones, finals, following).masked_fill(terminal, 0.0)
    return rewards, values, next_values, dones, log_ratios.exp()


def targets_of(*tensors: Tensor, lambda_: float = 1.0, rho_clip: float = 1.0, c_clip: float = 1.0, gamma=GAMMA):
    return vtrace(*tensors, gamma=gamma, lambda_=lambda_, rho_clip=rho_clip, c_clip=c_clip)


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def published(*, lambda_: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values, targets and advantages of the rows that rlax tests its V-trace with (`rlax/_src/vtrace_test.py`)."""
    actor = [[[8.9, 0.7], [5.0, 1.0], [0.6, 0.1], [-0.9, -0.1]], [[0.3, -5.0], [1.0, -8.0], [0.3, 1.7], [4.7, 3.3]]]
    learner = [[[0.4, 0.5], [9.2, 8.8], [0.7, 4.4], [7.9, 1.4]], [[1.0, 0.9], [1.0, -1.0], [-4.3, 8.7], [0.8, 0.3]]]
    logprobs = [torch.tensor(logits).double().log_softmax(-1) for logits in (learner, actor)]
    taken = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]]).unsqueeze(-1)
    ratios = (logprobs[0] - logprobs[1]).exp().gather(-1, taken).squeeze(-1)
    values = torch.tensor([[2.1, 1.1, -3.1, 0.0], [3.1, 0.1, -1.1, 7.4]]).double()
    targets, advantages = targets_of(
        torch.tensor([[-1.3, -1.3, 2.3, 42.0], [1.3, 5.3, -3.3, -5.0]]).double(),
        values,
        torch.cat([values[:, 1:], torch.tensor([[8.4], [-1.2]]).double()], dim=1),
        torch.zeros(2, 4, dtype=torch.bool),
        ratios,
        gamma=torch.tensor([[0.0, 0.89, 0.85, 0.99], [0.88, 1.0, 0.83, 0.95]]).double(),
        lambda_=lambda_,
    )
    return values, targets, advantages


def test_vtrace_matches_published_numbers() -> None:
    values, targets, advantages = published(lambda_=1.0)
    expected = torch.tensor([[-1.6155143, -3.4973226, 1.8670533, 50.316002], [1.4662437, 3.6116405, -8.33e-5, -13.54]])
    torch.testing.assert_close(targets - values, expected.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(advantages, expected.double(), rtol=1e-6, atol=1e-6)


def test_vtrace_advantages_below_lambda_1_are_those_published() -> None:
    """rlax holds its own to targets = V + min(1, rho) (q - V) at lambda 0.8, with advantages min(1, rho) (q - V)."""
    values, targets, advantages = published(lambda_=0.8)
    check(advantages, targets - values)


@pytest.mark.parametrize("lambda_", [1.0, 0.7, 0.0])
@pytest.mark.parametrize(("rho_clip", "c_clip"), [(1.0, 1.0), (2.0, 0.5), (math.inf, math.inf)])
def test_targets_are_the_sum_of_corrected_td_errors(rho_clip: float, c_clip: float, lambda_: float) -> None:
    """Eq. 1: v_s = V(x_s) + sum_{t >= s} gamma^(t-s) (prod_{s <= i < t} c_i) rho_t (r_t + gamma V' - V), to the end;
    c_i = lambda min(c_clip, ratio_i), remark 2."""
    rewards, values, next_values, dones, ratios = steps()
    expected, weighted = values.clone(), torch.zeros_like(values)
    for b, s in torch.cartesian_prod(torch.arange(4), torch.arange(9)).tolist():
        product = 1.0
        for t in range(s, 9):
            delta = rewards[b, t] + GAMMA * next_values[b, t] - values[b, t]
            expected[b, s] += GAMMA ** (t - s) * product * min(rho_clip, float(ratios[b, t])) * delta
            product *= lambda_ * min(c_clip, float(ratios[b, t]))
            if dones[b, t]:
                break
    for b, s in torch.cartesian_prod(torch.arange(4), torch.arange(9)).tolist():
        after = next_values[b, s]
        if not dones[b, s] and s < 8:
            after = lambda_ * expected[b, s + 1] + (1 - lambda_) * after
        weighted[b, s] = min(rho_clip, float(ratios[b, s])) * (rewards[b, s] + GAMMA * after - values[b, s])
    targets, advantages = targets_of(*steps(), lambda_=lambda_, rho_clip=rho_clip, c_clip=c_clip)
    check(targets, expected)
    check(advantages, weighted)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_on_policy_targets_are_lambda_returns(lambda_: float) -> None:
    rewards, values, next_values, dones, ratios = steps()
    targets, _ = targets_of(rewards, values, next_values, dones, torch.ones_like(ratios), lambda_=lambda_)
    check(targets, lambda_returns(rewards, next_values, dones, gamma=GAMMA, lambda_=lambda_))


def test_on_policy_advantages_are_monte_carlo_minus_values() -> None:
    rewards, values, next_values, dones, ratios = steps()
    _, advantages = targets_of(rewards, values, next_values, dones, torch.ones_like(ratios))
    check(advantages, monte_carlo_returns(rewards, next_values, dones, gamma=GAMMA) - values)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_on_policy_advantages_are_gae(lambda_: float) -> None:
    rewards, values, next_values, dones, ratios = steps()
    _, advantages = targets_of(rewards, values, next_values, dones, torch.ones_like(ratios), lambda_=lambda_)
    check(advantages, gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=lambda_))


def test_what_the_learner_never_does_teaches_nothing() -> None:
    rewards, values, next_values, dones, ratios = steps()
    targets, advantages = targets_of(rewards, values, next_values, dones, torch.zeros_like(ratios))
    check(targets, values)
    check(advantages, torch.zeros_like(values))


def test_a_batch_with_a_cut_in_its_middle_is_two_batches() -> None:
    rewards, values, next_values, dones, ratios = steps(num_steps=10, ends=0.0)
    dones[:, 3] = True
    tensors = (rewards, values, next_values, dones, ratios)
    parts = [targets_of(*(x[:, part] for x in tensors)) for part in (slice(0, 4), slice(4, 10))]
    for whole, halves in zip(targets_of(*tensors), zip(*parts, strict=True), strict=True):
        check(whole, torch.cat(halves, dim=1))


def test_padding_cannot_be_seen() -> None:
    tensors = steps(num_steps=6, ends=0.0)
    tensors[3][:, -1] = True
    garbage = torch.full((4, 2), math.nan, dtype=torch.float64)
    padded = [torch.cat([x, garbage.to(x.dtype)], dim=1) for x in tensors]
    for alone, long in zip(targets_of(*tensors), targets_of(*padded), strict=True):
        check(long[:, :6], alone)


def test_expected_targets_are_those_of_the_learner() -> None:
    """One step, unclipped: averaged over the actor's actions, v - V is the learner's expected TD error."""
    actor, learner = torch.tensor([0.7, 0.3]).double(), torch.tensor([0.2, 0.8]).double()
    rewards = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    values, ends = torch.full((2, 1), 0.4, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    targets, _ = targets_of(
        rewards, values, torch.zeros_like(values), ends, (learner / actor).unsqueeze(1), rho_clip=math.inf
    )
    check(actor @ (targets - values), learner @ (rewards - values))


def test_vtrace_maps_over_a_batch_of_rollouts() -> None:
    stacked = [torch.stack([x, x.flip(0)]) for x in steps()]
    mapped = torch.func.vmap(targets_of)(*stacked)
    for i, tensors in enumerate((steps(), [x.flip(0) for x in steps()])):
        for whole, single in zip(mapped, targets_of(*tensors), strict=True):
            check(whole[i], single)
