"""Every batch of N episodes of a tiny problem, with its probability, and what a method's update makes of each."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.rollout import Rollout, single_steps
from tests.algorithms.test_enumeration import TinyMdp, rollout_of
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)
STATE = {"progress": torch.tensor(0.0), "update": torch.tensor(0)}


class Layers(TinyMdp):
    """Two steps, the first of which leads to another state for each action: no state is visited twice."""

    num_steps = 2
    transition = ((1, 2), (0, 0), (0, 0))
    reward = ((0.3, -1.0), (2.0, 0.1), (-0.7, 1.1))
    terminal = (-1, -1)


class Bandit(TinyMdp):
    """One step, two actions, taken with p = (.9, .1) by `skewed`, paid (1, 0)."""

    num_steps = 1
    transition = ((0, 0),)
    reward = ((1.0, 0.0),)
    terminal = (-1, -1)

    def policy(self, seed: int = 0) -> nn.Module:
        policy = TabularPolicy(1, 2, seed=seed)
        with torch.no_grad():
            policy.logits.copy_(torch.tensor([[0.9, 0.1]]).log())
        return policy


def batches(rollout: Rollout, probabilities: Tensor, size: int) -> Iterator[tuple[Rollout, float]]:
    """Every multiset of `size` rows, with its probability."""
    for chosen in itertools.combinations_with_replacement(range(len(probabilities)), size):
        rows = replace(rollout.rows(torch.tensor(chosen)), sample_ids=torch.arange(size))
        orders = math.factorial(size) // math.prod(math.factorial(count) for count in Counter(chosen).values())
        yield rows, orders * float(probabilities[list(chosen)].prod())


def updated(
    method: Method, policy: nn.Module, rollout: Rollout, *, rate: float = 1.0, whiten: Any = "none"
) -> tuple[nn.Module, dict[str, float]]:
    """A copy of the policy after the method's update by plain gradient descent, and what is logged."""
    moving = copy.deepcopy(policy)
    state = method.initial_state() | STATE
    batch, _ = method.estimate(rollout, state)
    plain = optimize.Optimize(learning_rate=rate, epochs=1, whiten=whiten, max_gradient_norm=0.0)
    optimizer = torch.optim.SGD(moving.parameters(), lr=rate)
    batch = single_steps(batch) if policy.memoryless else batch
    learner = learner_of(moving, plain, optimizer=optimizer)
    return moving, method.update(learner, rollout, batch, state)[0]


def expected_gradient(method: Method, policy: nn.Module, problem: Any, size: int, **options: Any) -> Tensor:
    """Of the logits, over all batches of `size` episodes; uphill."""
    rollout, probabilities = rollout_of(problem, policy, None)
    rate = options.get("rate", 1.0)
    total = torch.zeros_like(policy.logits)
    for batch, probability in batches(rollout, probabilities, size):
        learner, _ = updated(method, policy, batch, **options)
        total += probability * (learner.logits.detach() - policy.logits.detach()) / rate
    return total


def exact_gradient(policy: nn.Module, problem: Any, credit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """sum over trajectories of P(tau) sum_t credit_t grad log pi_t, uphill.

    Args:
        credit: `(N, T)` from the rewards and the mask.
    """
    inputs, mask, rewards = problem.trajectories()
    table = torch.log_softmax(policy.logits, dim=-1)
    logprobs = torch.where(mask, table[inputs["states"], inputs["actions"]], 0.0)
    probabilities = logprobs.sum(1).exp().detach()
    objective = (probabilities.unsqueeze(1) * logprobs * credit(rewards, mask)).sum()
    return torch.autograd.grad(objective, policy.logits)[0]


def gradient_of_return(policy: nn.Module, problem: Any, gamma: float) -> Tensor:
    """Of J_gamma = sum over trajectories of P(tau) sum_t gamma^t r_t, by autograd through P."""
    inputs, mask, rewards = problem.trajectories()
    discounts = gamma ** torch.arange(mask.shape[1], dtype=torch.float64)
    expected = (problem.trajectory_logprobs(policy, inputs, mask).sum(1).exp() * (discounts * rewards).sum(1)).sum()
    return torch.autograd.grad(expected, policy.logits)[0]


def returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """sum_k gamma^k r_{t+k}, by its definition."""
    num_steps = rewards.shape[1]
    columns = [
        sum((gamma ** (k - t) * rewards[:, k] for k in range(t, num_steps)), torch.zeros_like(rewards[:, 0]))
        for t in range(num_steps)
    ]
    return torch.stack(columns, dim=1)
