"""Group sequence policy optimisation (Zheng et al., 2025; https://arxiv.org/abs/2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.critic_free import Scale, group_batch, reference_loss, scaled_by_batch
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Positive, Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.rollout import Batch, PolicyOutput, Rollout, require_reference


@dataclass(frozen=True, kw_only=True)
class GSPO(Method):
    """GSPO: GRPO whose ratio is that of whole rows, the geometric mean over their actions, and is clipped as one."""

    rows: ClassVar[Literal["steps", "episodes", "groups"]] = "episodes"
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    critic_of: ClassVar[str] = "none"

    gamma: Share = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    scale: Scale = "std"
    """std: a group's advantages are divided by the standard deviation of its scores; batch: by that of all scores of
    the batch; none: they are not."""
    clip: Positive = 3e-4
    """The ratio of a row gains nothing below 1 - clip; means over many actions move little, so it is small."""
    clip_high: Positive = 4e-4
    """It gains nothing above 1 + clip_high."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Weight in the loss (not in the rewards) of k3 against the reference, at most 10 nats an action; 0 needs no
    reference."""

    @property
    def needs_groups(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """A row's score against its group (eq. 6), for every action of the row; a row counts once."""
        require_reference(rollout, self.kl_coef)
        return group_batch(rollout, gamma=self.gamma, scale=self.scale, average="row")

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        if self.scale == "batch":
            batch = scaled_by_batch(learner, rollout, batch, gamma=self.gamma)
        return super().update(learner, rollout, batch, state)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate of the row's ratio (eq. 5 and 7), at each of its actions, less the entropy bonus."""
        moved = torch.where(batch.mask, output.logprobs - batch.logprobs, 0.0).sum(1, keepdim=True)
        # A row that only pads has no action.
        means = (moved / batch.mask.sum(1, keepdim=True).clamp(min=1)).expand_as(output.logprobs)
        policy_loss = losses.clipped_surrogate_loss(
            means, torch.zeros_like(means), batch.advantages, clip=self.clip, clip_high=self.clip_high
        )
        off = means.detach().expm1()
        shown = {
            "policy_loss": policy_loss.detach(),
            "clip_fraction": ((-off > self.clip) | (off > self.clip_high)).to(off),
        }
        terms = policy_loss - self.entropy_coef * output.entropy
        return terms + reference_loss(output, batch, kl_coef=self.kl_coef), shown
