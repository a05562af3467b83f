"""What the methods without a critic share: returns, groups of rows that share a start, and losses per action."""

from __future__ import annotations

from typing import Literal

from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.optimize import Learner

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import groups, kl, losses
    from rlhf.core.advantages import monte_carlo_returns
    from rlhf.reduce import global_moments, global_sum
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

Scale = Literal["std", "batch", "none"]
Average = Literal["row", "action", "constant"]

# Added to a standard deviation, so that scores that differ by rounding only stay near 0.
EPSILON = 1e-4

# Nats an action that k3 counts at most in the loss, as in verl and OpenRLHF: one action that the reference finds e^10
# times likelier would outweigh all others, and beyond e^88 be infinite.
MOST_K3 = 10.0


def returns_to_go(rollout: Rollout, rewards: Tensor, *, gamma: float) -> Tensor:
    """`(B, T)` float64 discounted sums of the rewards to the episode's end; nothing is known of what a cut one lost."""
    rewards = rewards.double()
    return monte_carlo_returns(rewards, torch.zeros_like(rewards), rollout.dones, gamma=gamma)


def groups_of(rollout: Rollout) -> Tensor:
    """The rollout's groups, `(B,)`.

    Raises:
        InputError: A row has no other to be compared with.
    """
    found = rollout.groups
    if found is None or bool((torch.unique(found, return_counts=True)[1] < 2).any()):
        raise InputError(
            "a row of the rollout shares its start with no other, so its score has nothing to be compared with; in "
            "the settings of collect, raise the number of rows that share a start to at least 2."
        )
    return found


def group_batch(
    rollout: Rollout, *, gamma: float, scale: Scale, average: Average, constant: float = 1.0
) -> tuple[Batch, dict[str, Tensor]]:
    """A row's score, its whole return, against those of its group, for every action of the row (Shao et al., 2024,
    section 4.1.2; https://arxiv.org/abs/2402.03300).

    Args:
        scale: See GRPO; batch: as none, until `scaled_by_batch`.
        average: See GRPO.
        constant: What the sum over a row is divided by, of average constant.
    """
    _, metrics = charge_kl(rollout, 0.0)
    scores, scored = row_scores(rollout, gamma=gamma), rollout.mask.any(1)
    if scale == "std":
        estimates = groups.standardised(scores, groups_of(rollout), scored, epsilon=EPSILON)
    else:
        estimates = groups.centred(scores, groups_of(rollout), scored)
    shares, actions = groups.row_shares(rollout.mask), rollout.mask.double()
    weights, units = {
        "row": (shares, shares),
        "action": (actions, actions),
        "constant": (actions, constant * shares),
    }[average]
    cells = [x.to(rollout.rewards) for x in (estimates.unsqueeze(1).expand_as(shares), weights, units)]
    return batch_of(rollout, advantages=cells[0], weights=cells[1], units=cells[2]), metrics


def row_scores(rollout: Rollout, *, gamma: float) -> Tensor:
    """`(B,)` float64, the whole return of each row."""
    return returns_to_go(rollout, rollout.rewards, gamma=gamma)[:, 0]


def scaled_by_batch(learner: Learner, rollout: Rollout, batch: Batch, *, gamma: float) -> Batch:
    """The batch with advantages divided by the standard deviation of the scores of all rows of all ranks, and not of
    each group (Liu et al., 2025, section 4.1; https://arxiv.org/abs/2508.08221)."""
    scores, scored = row_scores(rollout, gamma=gamma), rollout.mask.any(1)
    _, variance = global_moments(learner.accelerator, scores, scored)
    count = global_sum(learner.accelerator, scored.sum())
    deviation = (variance * count / (count - 1).clamp(min=1)).sqrt()
    return batch._replace(advantages=(batch.advantages / (deviation + EPSILON)).to(batch.advantages))


def plain_loss(output: PolicyOutput, batch: Batch, *, entropy_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """-log pi(a_t | s_t) A_t less the entropy bonus, per action, and what to log of it."""
    policy_loss = losses.policy_gradient_loss(output.logprobs, batch.advantages)
    return policy_loss - entropy_coef * output.entropy, {"policy_loss": policy_loss.detach()}


def clipped_loss(
    output: PolicyOutput,
    batch: Batch,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float = 0.0,
    entropy_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate less the entropy bonus, per action, and what to log of it."""
    policy_loss = losses.clipped_surrogate_loss(
        output.logprobs, batch.logprobs, batch.advantages, clip=clip, clip_high=clip_high
    )
    if dual_clip > 0:
        policy_loss = losses.dual_clipped(policy_loss, batch.advantages, most=dual_clip)
    return policy_loss - entropy_coef * output.entropy, {"policy_loss": policy_loss.detach()}


def reference_loss(output: PolicyOutput, batch: Batch, *, kl_coef: float) -> Tensor | float:
    """What is charged in the loss for the KL to the reference: k3, of an action at most MOST_K3; 0 without one."""
    if batch.ref_logprobs is None:
        return 0.0
    return kl_coef * kl.k3(output.logprobs, batch.ref_logprobs).clamp(max=MOST_K3)
