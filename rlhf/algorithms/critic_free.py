"""What the methods without a critic share: returns, groups of rows that share a start, and losses per action."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.core import kl, losses
from rlhf.core.advantages import monte_carlo_returns
from rlhf.errors import InputError
from rlhf.rollout import Batch, PolicyOutput, Rollout


def returns_to_go(rollout: Rollout, rewards: Tensor, *, gamma: float) -> Tensor:
    """`(B, T)` float64 discounted sums of the rewards to the episode's end; nothing is known of what a cut one lost."""
    rewards = rewards.double()
    return monte_carlo_returns(rewards, torch.zeros_like(rewards), rollout.dones, gamma=gamma)


def groups_of(rollout: Rollout) -> Tensor:
    """The rollout's groups, `(B,)`.

    Raises:
        InputError: A row has no other to be compared with.
    """
    groups = rollout.groups
    if groups is None or bool((torch.unique(groups, return_counts=True)[1] < 2).any()):
        raise InputError(
            "a row of the rollout shares its start with no other, so its score has nothing to be compared with; in "
            "the settings of collect, raise the number of rows that share a start to at least 2."
        )
    return groups


def plain_loss(output: PolicyOutput, batch: Batch, *, entropy_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """-log pi(a_t | s_t) A_t less the entropy bonus, per action, and what to log of it."""
    policy_loss = losses.policy_gradient_loss(output.logprobs, batch.advantages)
    return _with_entropy(policy_loss, output, batch, entropy_coef=entropy_coef)


def clipped_loss(
    output: PolicyOutput, batch: Batch, *, clip: float, entropy_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate less the entropy bonus, per action, and what to log of it."""
    policy_loss = losses.clipped_surrogate_loss(output.logprobs, batch.logprobs, batch.advantages, clip=clip)
    terms, metrics = _with_entropy(policy_loss, output, batch, entropy_coef=entropy_coef)
    metrics["clip_fraction"] = ((metrics["ratio_max"] - 1.0).abs() > clip).to(policy_loss)
    return terms, metrics


def _with_entropy(
    policy_loss: Tensor, output: PolicyOutput, batch: Batch, *, entropy_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    # The values are not trained, but data parallelism needs every parameter in the graph.
    terms = policy_loss - entropy_coef * output.entropy + 0.0 * output.values
    with torch.no_grad():
        metrics = kl.movement(output.logprobs, batch.logprobs)
    return terms, metrics | {"policy_loss": policy_loss.detach(), "entropy": output.entropy.detach()}
