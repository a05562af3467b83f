"""Clipped importance-sampling weights (CISPO; MiniMax, 2025; https://arxiv.org/abs/2506.13585)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.critic_free import Average, Scale, group_batch, reference_loss, scaled_by_batch
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Positive, Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.rollout import Batch, PolicyOutput, Rollout, require_reference


@dataclass(frozen=True, kw_only=True)
class CISPO(Method):
    """CISPO: the policy gradient weighed by the ratio new / old, which is clipped, so that every action is learned
    from, also one that has moved far."""

    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    critic_of: ClassVar[str] = "none"

    gamma: Share = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    scale: Scale = "std"
    """std: a group's advantages are divided by the standard deviation of its scores; batch: by that of all scores of
    the batch; none: they are not."""
    average: Average = "action"
    """As of GRPO; the paper takes the mean over all actions."""
    constant: Positive = 1.0
    """What the sum over a row is divided by, where average is constant."""
    clip: Share = 1.0
    """The weight is at least 1 - clip; 1, as in the paper, does not bound it."""
    clip_high: Positive = 0.28
    """The weight is at most 1 + clip_high."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Weight in the loss (not in the rewards) of k3 against the reference, at most 10 nats an action; 0 needs no
    reference."""

    @property
    def needs_groups(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """A row's score against its group, for every action of the row, as in GRPO."""
        require_reference(rollout, self.kl_coef)
        return group_batch(rollout, gamma=self.gamma, scale=self.scale, average=self.average, constant=self.constant)

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        if self.scale == "batch":
            batch = scaled_by_batch(learner, rollout, batch, gamma=self.gamma)
        return super().update(learner, rollout, batch, state)

    def clip_range(self, state: dict[str, Tensor], like: Tensor) -> tuple[float, float]:
        return self.clip, self.clip_high

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-sg(clip(ratio)) A log pi (eq. 4 and 5) less the entropy bonus, per action."""
        ratios = torch.exp(output.logprobs - batch.logprobs).detach()
        weights = ratios.clamp(1.0 - self.clip, 1.0 + self.clip_high)
        policy_loss = losses.policy_gradient_loss(output.logprobs, weights * batch.advantages)
        terms = policy_loss - self.entropy_coef * output.entropy
        return terms + reference_loss(output, batch, kl_coef=self.kl_coef), {"policy_loss": policy_loss.detach()}
