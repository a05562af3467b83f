"""REINFORCE++ (Hu, 2025; https://arxiv.org/abs/2501.03262): PPO's surrogate on returns whitened over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.critic_free import clipped_loss, groups_of, returns_to_go
from rlhf.deferred import deferred
from rlhf.settings import Positive, Share, Size

with deferred():
    from torch import Tensor

    from rlhf.core import groups
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(Method):
    """REINFORCE++: the KL charged action by action, advantages normalised over the batch of all ranks; no critic."""

    # The global normalisation that the method is named for.
    whitens: ClassVar[tuple[Whitening, ...]] = ("batch",)
    critic_of: ClassVar[str] = "none"

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    baseline: Literal["none", "group"] = "none"
    """group: the mean score of the row's group is taken off before normalising (REINFORCE++-baseline)."""
    clip: Positive = 0.2
    """The ratio new / old gains nothing beyond 1 +- clip."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    @property
    def needs_groups(self) -> bool:
        return self.baseline == "group"

    @property
    def needs_episodes(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Returns to go of the charged rewards, less the group's mean score where that is the baseline."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        returns = returns_to_go(rollout, rewards, gamma=self.gamma)
        advantages = returns
        if self.baseline == "group":
            scores = returns[:, 0]
            means = scores - groups.centred(scores, groups_of(rollout), rollout.mask.any(1))
            advantages = returns - means.unsqueeze(1)
        return batch_of(rollout, advantages=advantages.to(rewards)), metrics

    def clip_range(self, state: dict[str, Tensor], like: Tensor) -> float:
        return self.clip

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate less the entropy bonus, per action."""
        return clipped_loss(output, batch, clip=self.clip, entropy_coef=self.entropy_coef)
