"""A random rollout of the tabular policy, with uneven rows, and PPO's loss bound to its defaults."""

from __future__ import annotations

import torch
from torch import nn

from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.rollout import Batch, Rollout


def make_rollout(policy: nn.Module, *, rows: int, steps: int, seed: int = 0) -> Rollout:
    """Row i has between 1 and `steps` actions; rewards are random, the last step ends the episode."""
    dtype = next(policy.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)
    num_states, num_actions = policy.logits.shape
    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    inputs = {
        "states": torch.randint(0, num_states, (rows, steps), generator=generator),
        "actions": torch.randint(0, num_actions, (rows, steps), generator=generator),
    }
    mask = torch.arange(steps) < lengths.unsqueeze(1)
    with torch.no_grad():
        output = policy(inputs)
    values = output.values.masked_fill(~mask, 0.0)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs,
        logprobs=output.logprobs,
        values=values,
        next_values=torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1),
        rewards=torch.randn(rows, steps, generator=generator, dtype=torch.float64).to(dtype),
        dones=torch.arange(steps) == lengths.unsqueeze(1) - 1,
        mask=mask,
        sample_ids=torch.arange(rows) + 100,
        costs=lengths,
    )


def make_batch(policy: nn.Module, *, rows: int, steps: int, seed: int = 0) -> Batch:
    method = ppo.PPO()
    batch, _ = method.estimate(make_rollout(policy, rows=rows, steps=steps, seed=seed), method.initial_state())
    return batch


def ppo_loss() -> optimize.Loss:
    method = ppo.PPO(entropy_coef=0.01)
    state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    return method.objective(state)
