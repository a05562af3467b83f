"""GSPO, CISPO, clip-higher, dual clip, scaling by the batch, leave-one-out with a deviation: by their definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.cispo import CISPO
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.gspo import GSPO
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.rloo import RLOO
from rlhf.budget import filler_of
from rlhf.core.losses import clipped_surrogate_loss, dual_clipped
from rlhf.errors import InputError
from rlhf.loop import framed
from rlhf.rollout import Batch, PolicyOutput, Rollout
from tests.algorithms.batches_of_episodes import gradient_of_return
from tests.algorithms.groups_of_episodes import expected_gradient_at_once
from tests.algorithms.test_enumeration import TinyMdp
from tests.batches import make_rollout
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)
STATE = {"update": torch.tensor(0), "progress": torch.tensor(0.0)}


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def groups_of_three(policy: TabularPolicy) -> Rollout:
    rollout = make_rollout(policy, rows=6, steps=4)
    return replace(rollout, groups=torch.tensor([0, 0, 0, 1, 1, 1]))


def moved(policy: TabularPolicy, rollout: Rollout, method: Method) -> tuple[PolicyOutput, Batch]:
    """What the loss sees where the policy is no longer what it was."""
    batch = framed(replace_rows(method), policy, rollout, method.estimate(rollout, STATE)[0])
    with torch.no_grad():
        policy.logits.add_(0.4 * torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    return policy(batch.inputs), batch


def replace_rows(method: Method) -> Any:
    """Whole rows, so that cells stay where they were."""
    return type("Whole", (), {"rows": "episodes"})()


def row_ratios(output: PolicyOutput, batch: Batch) -> list[list[float]]:
    """new / old of each action, row by row."""
    ratios = torch.exp(output.logprobs - batch.logprobs).detach()
    return [row[acted].tolist() for row, acted in zip(ratios, batch.mask, strict=True)]


def advantages_of(rollout: Rollout, *, scaled: bool = True) -> list[float]:
    scores = rollout.rewards.masked_fill(~rollout.mask, 0.0).sum(1).view(-1, 3)
    deviations = scores - scores.mean(1, keepdim=True)
    return (deviations / (scores.std(1, keepdim=True) + 1e-4) if scaled else deviations).flatten().tolist()


def test_clip_higher_leaves_room_above_and_none_below() -> None:
    logs, ones = doubles(1.5, 1.25, 0.7, 1.5, 0.7).log(), torch.zeros(5, dtype=torch.float64)
    losses = clipped_surrogate_loss(logs, ones, doubles(1, 1, 1, -1, -1), clip=0.2, clip_high=0.28)
    check(losses, doubles(-1.28, -1.25, -0.7, 1.5, 0.8))


def test_dual_clip_bounds_what_a_large_ratio_costs() -> None:
    """Ye et al., eq. 5: max(min(r A, clip(r) A), c A) where A < 0, here of ratios 2, 5, 5 with c = 3."""
    ratios, advantages = doubles(2, 5, 5), doubles(-1, -2, 2)
    plain = clipped_surrogate_loss(ratios.log(), torch.zeros_like(ratios), advantages, clip=0.2)
    check(dual_clipped(plain, advantages, most=3.0), doubles(2.0, 6.0, -2.4))


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_a_dual_clip_that_takes_all_gradient_is_refused(kind: type) -> None:
    with pytest.raises(InputError, match=r"dual_clip is 0.9; at 1 or below nothing would be learned"):
        kind(dual_clip=0.9)


def test_methods_pass_their_clips_on() -> None:
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    settings = {"clip": 0.05, "clip_high": 0.3, "dual_clip": 1.2}
    ppo, grpo = PPO(value_coef=0.0, **settings), GRPO(**settings)
    for method in (ppo, grpo):
        output, batch = moved(TabularPolicy(4, 3), rollout, method)
        terms, _ = method.loss(output, batch, STATE | method.initial_state())
        plain = clipped_surrogate_loss(output.logprobs, batch.logprobs, batch.advantages, clip=0.05, clip_high=0.3)
        expected = dual_clipped(plain, batch.advantages, most=1.2)
        check(terms[batch.mask], expected[batch.mask])
        assert not torch.equal(plain[batch.mask], expected[batch.mask])
        _, metrics = method.objective(STATE | method.initial_state())(output, batch)
        ratios = torch.exp(output.logprobs - batch.logprobs)
        beyond = ((ratios < 0.95) | (ratios > 1.3))[batch.mask].double()
        check(metrics["clip_fraction"][batch.mask].double(), beyond)
        assert 0 < beyond.mean() < 1


def test_gspo_is_the_clipped_ratio_of_rows() -> None:
    """Eq. 5: the mean over rows of -min(s A, clip(s) A), s the geometric mean of the row's ratios."""
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    advantages = advantages_of(rollout)
    method = GSPO(clip=0.03, clip_high=0.1)
    output, batch = moved(policy, rollout, method)
    terms, metrics = method.loss(output, batch, STATE)
    expected, clipped = 0.0, []
    for ratios, advantage in zip(row_ratios(output, batch), advantages, strict=True):
        s = math.prod(ratios) ** (1 / len(ratios))
        expected -= min(s * advantage, min(max(s, 0.97), 1.1) * advantage) / 6
        clipped.append(float(not 0.97 <= s <= 1.1))
    found = (batch.weights * terms).sum() / batch.units.sum()
    assert float(found.detach()) == pytest.approx(expected, abs=1e-12)
    check(metrics["clip_fraction"][:, 0].double(), doubles(*clipped))
    assert 0 < sum(clipped) < 6


def test_gspo_gradient_of_an_unclipped_row_is_its_ratio_times_the_mean_gradient() -> None:
    """Eq. 10: s A / |y| sum_t grad log pi(y_t)."""
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    advantages = advantages_of(rollout)
    method = GSPO(clip=0.9, clip_high=100.0)
    output, batch = moved(policy, rollout, method)
    loss = (batch.weights * method.loss(output, batch, STATE)[0]).sum() / batch.units.sum()
    (found,) = torch.autograd.grad(loss, policy.logits, retain_graph=True)
    expected = torch.zeros_like(found)
    for row, (ratios, advantage) in enumerate(zip(row_ratios(output, batch), advantages, strict=True)):
        (direction,) = torch.autograd.grad(
            output.logprobs[row][batch.mask[row]].sum(), policy.logits, retain_graph=True
        )
        expected -= math.prod(ratios) ** (1 / len(ratios)) * advantage / len(ratios) * direction / 6
    check(found, expected)


def test_cispo_is_the_policy_gradient_weighed_by_a_clipped_ratio() -> None:
    """Eq. 4 and 5: the mean over all actions of -sg(min(r, 1 + high)) A grad log pi, clipped or not."""
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    advantages = advantages_of(rollout)
    method = CISPO(clip_high=0.1)
    output, batch = moved(policy, rollout, method)
    loss = (batch.weights * method.loss(output, batch, STATE)[0]).sum() / batch.units.sum()
    (found,) = torch.autograd.grad(loss, policy.logits, retain_graph=True)
    expected, num_actions, num_clipped = torch.zeros_like(found), int(batch.mask.sum()), 0
    for row, (ratios, advantage) in enumerate(zip(row_ratios(output, batch), advantages, strict=True)):
        for t, ratio in enumerate(ratios):
            (direction,) = torch.autograd.grad(output.logprobs[row, t], policy.logits, retain_graph=True)
            expected -= min(ratio, 1.1) * advantage / num_actions * direction
            num_clipped += ratio > 1.1
    check(found, expected)
    assert num_clipped > 0


@pytest.mark.parametrize("method", [GSPO(scale="none"), CISPO(scale="none", average="constant")])
def test_the_first_step_is_the_plain_gradient_of_group_scores(method: Method) -> None:
    """Of CISPO in the sum over a row: enumeration gives (N - 1) / N of the exact gradient, as of Dr. GRPO."""
    policy, problem = TinyMdp().policy(), TinyMdp()
    ours = expected_gradient_at_once(method, policy, problem, 2)["logits"]
    exact = gradient_of_return(policy, problem, 1.0)
    if isinstance(method, CISPO):
        check(ours, exact / 2)
    else:
        # A row counts by the mean over its actions, so it is another direction, but uphill.
        assert float((ours * exact).sum()) > 0


def test_leave_one_out_with_a_deviation() -> None:
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    batch, _ = RLOO(scale="std").estimate(rollout, STATE)
    scores = rollout.rewards.masked_fill(~rollout.mask, 0.0).sum(1).view(2, 3)
    others = (scores.sum(1, keepdim=True) - scores) / 2
    check(batch.advantages[:, 0], ((scores - others) / (scores.std(1, keepdim=True) + 1e-4)).flatten())


@pytest.mark.parametrize("kind", [GRPO, GSPO, CISPO])
def test_scaling_by_the_batch_divides_by_the_deviation_of_all_scores(kind: Any) -> None:
    """As one step of SGD shows: that of scale none, divided."""
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    scores = rollout.rewards.masked_fill(~rollout.mask, 0.0).sum(1)
    steps = {}
    for scale in ("none", "batch"):
        policy, method = TabularPolicy(4, 3), kind(scale=scale)
        before = policy.logits.detach().clone()
        settings = optimize.Optimize(epochs=1, whiten="none", max_gradient_norm=0.0, learning_rate=1.0)
        learner = learner_of(policy, settings, optimizer=torch.optim.SGD([policy.logits], lr=1.0))
        batch = framed(method, policy, rollout, method.estimate(rollout, STATE)[0])
        method.update(learner, rollout, batch, STATE)
        steps[scale] = policy.logits.detach() - before
    check(steps["batch"], steps["none"] / (scores.std() + 1e-4))


def test_a_row_that_only_pads_has_no_ratio() -> None:
    policy = TabularPolicy(4, 3)
    rollout = groups_of_three(policy)
    method = GSPO()
    batch = framed(method, policy, rollout, method.estimate(rollout, STATE)[0])
    empty = filler_of(batch)._replace(mask=torch.zeros(1, 4, dtype=torch.bool))
    terms, _ = method.loss(policy(empty.inputs), empty, STATE)
    assert bool(torch.isfinite(terms).all())


def test_lambda_that_follows_the_length_and_a_critic_of_its_own() -> None:
    """VAPO: 1 - 1 / (alpha l), at least 0, for the advantages of a row of l actions; lambda 1 for the values."""
    policy = TabularPolicy(4, 3)
    rollout = make_rollout(policy, rows=6, steps=4)
    batch, _ = PPO(length_alpha=0.5, critic_lambda=1.0).estimate(rollout, PPO().initial_state() | STATE)
    for row in range(6):
        length = int(rollout.mask[row].sum())
        lam = max(0.0, 1 - 1 / (0.5 * length))
        values, rewards = rollout.values[row].tolist(), rollout.rewards[row].tolist()
        advantage, to_go = 0.0, 0.0
        for t in reversed(range(length)):
            following = values[t + 1] if t + 1 < length else 0.0
            advantage = rewards[t] + following - values[t] + (lam * advantage if t + 1 < length else 0.0)
            to_go += rewards[t]
            assert float(batch.advantages[row, t]) == pytest.approx(advantage, abs=1e-12)
            assert float(batch.returns[row, t]) == pytest.approx(to_go, abs=1e-12)


def test_lengths_are_those_of_whole_episodes() -> None:
    assert PPO(length_alpha=0.05).needs_episodes
    assert not PPO().needs_episodes
