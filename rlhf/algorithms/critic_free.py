"""What the methods without a critic share: returns, groups of rows that share a start, and losses per action."""

from __future__ import annotations

from rlhf.deferred import deferred
from rlhf.errors import InputError

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.core.advantages import monte_carlo_returns
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
    return policy_loss - entropy_coef * output.entropy, {"policy_loss": policy_loss.detach()}


def clipped_loss(
    output: PolicyOutput, batch: Batch, *, clip: float, entropy_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate less the entropy bonus, per action, and what to log of it."""
    policy_loss = losses.clipped_surrogate_loss(output.logprobs, batch.logprobs, batch.advantages, clip=clip)
    return policy_loss - entropy_coef * output.entropy, {"policy_loss": policy_loss.detach()}
