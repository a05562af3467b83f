"""Learning from replayed transitions: what the methods with a replay buffer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf.deferred import deferred

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.rollout import Batch, Rollout, batch_of


def transitions(rollout: Rollout) -> Batch:
    """A batch whose losses form their own targets: it brings rewards, terminals and, as `next_...`, the next inputs."""
    assert rollout.next_inputs is not None
    units = rollout.mask.to(rollout.rewards)
    unknown = torch.zeros_like(units)
    batch = batch_of(rollout, advantages=unknown, returns=unknown, weights=units, units=units)
    following = {f"next_{name}": tensor for name, tensor in rollout.next_inputs.items()}
    return batch._replace(inputs={**rollout.inputs, **following}, rewards=rollout.rewards, terminals=rollout.terminals)


def one_step_targets(batch: Batch, next_values: Tensor, *, gamma: float) -> Tensor:
    """y = r + gamma * v(s'), v of a terminal state being 0 (Sutton and Barto, 2018, eq. 6.2)."""
    assert batch.rewards is not None
    assert batch.terminals is not None
    return batch.rewards + gamma * next_values.masked_fill(batch.terminals, 0.0)


def values_of(values: Tensor, actions: Tensor) -> Tensor:
    """`(B, T, K)` of the actions `(B, T)`, from critics' values of all of them, `(B, T, K, V)`."""
    index = actions[..., None, None].expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


def critic_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error of every critic's value of the taken action, `(B, T, K)`, summed over the critics."""
    return losses.value_loss(values, targets.unsqueeze(-1).expand_as(values)).sum(-1)


def critic_metrics(values: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What is logged of critics' `(B, T, K)` values of the taken actions."""
    values = values.detach()
    return {
        "td_error": (targets.unsqueeze(-1) - values).abs().mean(-1),
        "value_max": values.amax(-1),
        "value_mean": values.mean(-1),
    }


def follow(policy: Any, *, rate: float) -> Callable[[], None]:
    """Moves the target critics by Polyak averaging: target += rate * (critic - target) (Lillicrap et al., 2016, alg. 1;
    https://arxiv.org/abs/1509.02971).
    """
    sources, targets = (list(module.parameters()) for module in (policy.critic, policy.target_critic))

    def step() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(targets, sources, rate)

    return step
