"""A rollout as the learner sees it now: its own log-probabilities and values of actions that another policy took."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.optimize import micro_batches
from rlhf.rollout import PolicyOutput, Rollout


@torch.no_grad()
def rescored(policy: Any, rollout: Rollout, *, accelerator: Accelerator, micro_batch_cost: int) -> Rollout:
    """The rollout with the policy's `logprobs`, `values` and `next_values`; `behaviour_logprobs` stay."""
    with accelerator.autocast():
        parts = micro_batches(rollout.costs, micro_batch_cost)
        outputs = [policy({name: x[part] for name, x in rollout.inputs.items()}) for part in parts]
        logprobs, values, _ = PolicyOutput(*(torch.cat(tensors) for tensors in zip(*outputs, strict=True)))
        next_values = _next_values(policy, rollout, values.masked_fill(~rollout.mask, 0.0))
    return replace(rollout, logprobs=logprobs, values=values, next_values=next_values)


def _next_values(policy: Any, rollout: Rollout, values: Tensor) -> Tensor:
    """V of the state that each step led to: 0 if it is terminal.

    Without `next_inputs` no episode is ever cut, so that state is the row's next.
    """
    if rollout.next_inputs is None:
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        return following.masked_fill(rollout.dones, 0.0)
    terminals = rollout.dones if rollout.terminals is None else rollout.terminals
    return policy.state_values(rollout.next_inputs).masked_fill(terminals, 0.0)
