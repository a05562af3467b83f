"""Every group of N episodes of a tiny problem, with its probability, and the gradient that a method makes of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.rollout import Rollout, single_steps
from tests.algorithms.batches_of_episodes import CPU, STATE, batches
from tests.algorithms.test_enumeration import TinyLm, TinyMdp, rollout_of


def one_group(rollout: Rollout) -> Rollout:
    return replace(rollout, groups=torch.zeros(len(rollout.mask), dtype=torch.int64))


def gradient(method: Method, policy: nn.Module, rollout: Rollout, odds: Tensor | None = None) -> dict[str, Tensor]:
    """Uphill, of one batch, as the method's own estimate and loss give it; `odds` multiply the rows' terms."""
    state = method.initial_state() | STATE
    batch, _ = method.estimate(rollout, state)
    if odds is not None:
        batch = batch._replace(weights=batch.weights * odds.unsqueeze(1))
    if policy.memoryless:
        batch = single_steps(batch)
    loss = method.objective(state)
    policy.zero_grad()
    optimize.gradient(policy, batch, batch.rows(torch.tensor([0])), loss, accelerator=CPU, micro_batch_cost=10_000)
    return {name: -parameter.grad for name, parameter in policy.named_parameters()}


def expected_gradient(method: Method, policy: nn.Module, problem: TinyMdp | TinyLm, size: int) -> dict[str, Tensor]:
    """Over all groups of `size` episodes, each a batch of its own."""
    rollout, probabilities = rollout_of(problem, policy, None)
    total = {name: torch.zeros_like(parameter) for name, parameter in policy.named_parameters()}
    for batch, probability in batches(rollout, probabilities, size):
        for name, part in gradient(method, policy, one_group(batch)).items():
            total[name] += probability * part
    return total


def expected_gradient_at_once(
    method: Method,
    policy: nn.Module,
    problem: TinyMdp | TinyLm,
    size: int,
    ref_logprobs: Tensor | None = None,
) -> dict[str, Tensor]:
    """The same with all groups in one batch, weighted by their probability, for a method that averages over rows."""
    rollout, probabilities = rollout_of(problem, policy, ref_logprobs)
    parts, weights = zip(*batches(rollout, probabilities, size), strict=True)
    chosen = torch.tensor(list(itertools.combinations_with_replacement(range(len(probabilities)), size))).flatten()
    groups = torch.arange(len(parts)).repeat_interleave(size)
    odds = len(parts) * torch.tensor(weights, dtype=torch.float64).repeat_interleave(size)
    return gradient(method, policy, replace(rollout.rows(chosen), groups=groups), odds)


def predicted_gradient(
    policy: nn.Module,
    problem: TinyMdp,
    size: int,
    weigh: Callable[[list[float], list[int]], list[float]],
) -> Tensor:
    """Of the logits: sum over ordered groups of P(group) sum_i weight_i grad log p(episode_i), by definition.

    Args:
        weigh: From the scores and lengths of a group, what each episode's log-probability is multiplied by.
    """
    inputs, mask, rewards = problem.trajectories()
    logprobs = problem.trajectory_logprobs(policy, inputs, mask).sum(1)
    probabilities, scores, lengths = logprobs.exp().tolist(), rewards.sum(1).tolist(), mask.sum(1).tolist()
    objective = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(len(scores)), repeat=size):
        probability = 1.0
        for i in group:
            probability *= probabilities[i]
        weights = weigh([scores[i] for i in group], [lengths[i] for i in group])
        objective = objective + sum(probability * w * logprobs[i] for w, i in zip(weights, group, strict=True))
    return torch.autograd.grad(objective, policy.logits)[0]
