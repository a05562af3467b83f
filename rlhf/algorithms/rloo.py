"""REINFORCE leave-one-out (Kool et al., 2019; Ahmadian et al., 2024; https://arxiv.org/abs/2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.critic_free import EPSILON, groups_of, plain_loss, returns_to_go
from rlhf.deferred import deferred
from rlhf.settings import Share, Size

with deferred():
    from torch import Tensor

    from rlhf.core import groups
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class RLOO(Method):
    """RLOO: the plain policy gradient of whole rows, unbiased in one step on each batch (optimize.epochs 1)."""

    # Leave-one-out has centred the advantages without bias, which whitening would bring.
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    critic_of: ClassVar[str] = "none"
    single_step: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    scale: Literal["none", "std"] = "none"
    """std: a group's advantages are divided by the standard deviation of its scores, as in GRPO, which is biased; none:
    they are not."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    @property
    def needs_groups(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """A row's score, its whole return less the KL charge, minus the mean score of the others of its group."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        scores = returns_to_go(rollout, rewards, gamma=self.gamma)[:, 0]
        scored = rollout.mask.any(1)
        if self.scale == "std":
            scores = groups.standardised(scores, groups_of(rollout), scored, epsilon=EPSILON)
        estimates = groups.leave_one_out(scores, groups_of(rollout), scored).to(rewards)
        # Summed over a row and averaged over rows, which is the gradient of the expected score.
        weights, units = rollout.mask.to(rewards), groups.row_shares(rollout.mask).to(rewards)
        advantages = estimates.unsqueeze(1).expand_as(rewards)
        return batch_of(rollout, advantages=advantages, weights=weights, units=units), metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log pi(a_t | s_t) A (section 2.2) less the entropy bonus, per action."""
        return plain_loss(output, batch, entropy_coef=self.entropy_coef)
