"""Group relative policy optimisation (Shao et al., 2024; https://arxiv.org/abs/2402.03300) and two of its variants.

The defaults are the original. Dr. GRPO (Liu et al., 2025; https://arxiv.org/abs/2503.20783) is scale "none" and average
"constant"; averaging over all actions alike is DAPO's (Yu et al., 2025; https://arxiv.org/abs/2503.14476): "action".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.checks import require_dual_clip
from rlhf.algorithms.critic_free import (
    Average,
    Scale,
    clipped_loss,
    group_batch,
    reference_loss,
    scaled_by_batch,
)
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Positive, Share, Size

with deferred():
    from torch import Tensor

    from rlhf.rollout import Batch, PolicyOutput, Rollout, require_reference


@dataclass(frozen=True, kw_only=True)
class GRPO(Method):
    """GRPO: PPO's clipped surrogate, with a row's score against those of its group for every advantage; no critic."""

    # Groups have put the advantages on their scale; to whiten them again would make equal scores differ from 0.
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    critic_of: ClassVar[str] = "none"

    gamma: Share = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    scale: Scale = "std"
    """std: a group's advantages are divided by the standard deviation of its scores; batch: by that of all scores of
    the batch (Liu et al., 2025, https://arxiv.org/abs/2508.08221); none: they are not."""
    average: Average = "row"
    """row: mean over each row's actions, then over rows; action: mean over all actions; constant: sum over each row's
    actions divided by `constant`, then mean over rows."""
    constant: Positive = 1.0
    """What the sum over a row is divided by; Dr. GRPO takes the greatest length."""
    clip: Positive = 0.2
    """The ratio new / old gains nothing beyond 1 +- clip."""
    clip_high: Size = 0.0
    """Upwards it gains nothing beyond 1 + this: more room than clip lets what is unlikely become likely (DAPO, eq. 10,
    where it is 0.28); 0: the same as clip."""
    dual_clip: Size = 0.0
    """Where the advantage is negative, the loss is at most this times its size (Ye et al., 2020, eq. 5, where it is 3;
    https://arxiv.org/abs/1912.09729), above 1; 0 is off."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Weight in the loss (not in the rewards) of k3 against the reference, at most 10 nats an action; 0 needs no
    reference."""

    def __post_init__(self) -> None:
        require_dual_clip(self.dual_clip)

    @property
    def needs_groups(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """A row's score, its whole return, against its group; every action of the row gets it (section 4.1.2)."""
        require_reference(rollout, self.kl_coef)
        return group_batch(rollout, gamma=self.gamma, scale=self.scale, average=self.average, constant=self.constant)

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        if self.scale == "batch":
            batch = scaled_by_batch(learner, rollout, batch, gamma=self.gamma)
        return super().update(learner, rollout, batch, state)

    def clip_range(self, state: dict[str, Tensor], like: Tensor) -> tuple[float, float]:
        return self.clip, self.clip_high or self.clip

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate and KL to the reference (eq. 3 and 4) less the entropy bonus, per action."""
        terms, metrics = clipped_loss(
            output,
            batch,
            clip=self.clip,
            clip_high=self.clip_high or self.clip,
            dual_clip=self.dual_clip,
            entropy_coef=self.entropy_coef,
        )
        return terms + reference_loss(output, batch, kl_coef=self.kl_coef), metrics
