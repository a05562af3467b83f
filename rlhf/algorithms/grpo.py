"""Group relative policy optimisation (Shao et al., 2024; https://arxiv.org/abs/2402.03300) and two of its variants.

The defaults are the original. Dr. GRPO (Liu et al., 2025; https://arxiv.org/abs/2503.20783) is scale "none" and average
"constant"; averaging over all actions alike is DAPO's (Yu et al., 2025; https://arxiv.org/abs/2503.14476): "action".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.critic_free import clipped_loss, groups_of, returns_to_go
from rlhf.deferred import deferred
from rlhf.settings import Positive, Share, Size

with deferred():
    from torch import Tensor

    from rlhf.core import groups, kl
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl, require_reference

# Added to a group's standard deviation, so that scores that differ by rounding only stay near 0.
EPSILON = 1e-4

# Nats an action that k3 counts at most in the loss, as in verl and OpenRLHF: one action that the reference finds e^10
# times likelier would outweigh all others, and beyond e^88 be infinite.
MOST_K3 = 10.0


@dataclass(frozen=True, kw_only=True)
class GRPO(Method):
    """GRPO: PPO's clipped surrogate, with a row's score against those of its group for every advantage; no critic."""

    # Groups have put the advantages on their scale; to whiten them again would make equal scores differ from 0.
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    critic_of: ClassVar[str] = "none"

    gamma: Share = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    scale: Literal["std", "none"] = "std"
    """std: a group's advantages are divided by the standard deviation of its scores; none: they are not."""
    average: Literal["row", "action", "constant"] = "row"
    """row: mean over each row's actions, then over rows; action: mean over all actions; constant: sum over each row's
    actions divided by `constant`, then mean over rows."""
    constant: Positive = 1.0
    """What the sum over a row is divided by; Dr. GRPO takes the greatest length."""
    clip: Positive = 0.2
    """The ratio new / old gains nothing beyond 1 +- clip."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Weight in the loss (not in the rewards) of k3 against the reference, at most 10 nats an action; 0 needs no
    reference."""

    @property
    def needs_groups(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """A row's score, its whole return, against its group; every action of the row gets it (section 4.1.2)."""
        require_reference(rollout, self.kl_coef)
        _, metrics = charge_kl(rollout, 0.0)
        scores = returns_to_go(rollout, rollout.rewards, gamma=self.gamma)[:, 0]
        scored = rollout.mask.any(1)
        if self.scale == "std":
            estimates = groups.standardised(scores, groups_of(rollout), scored, epsilon=EPSILON)
        else:
            estimates = groups.centred(scores, groups_of(rollout), scored)
        shares, actions = groups.row_shares(rollout.mask), rollout.mask.double()
        weights, units = {
            "row": (shares, shares),
            "action": (actions, actions),
            "constant": (actions, self.constant * shares),
        }[self.average]
        cells = [x.to(rollout.rewards) for x in (estimates.unsqueeze(1).expand_as(shares), weights, units)]
        return batch_of(rollout, advantages=cells[0], weights=cells[1], units=cells[2]), metrics

    def clip_range(self, state: dict[str, Tensor], like: Tensor) -> float:
        return self.clip

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate and KL to the reference (eq. 3 and 4) less the entropy bonus, per action."""
        terms, metrics = clipped_loss(output, batch, clip=self.clip, entropy_coef=self.entropy_coef)
        if batch.ref_logprobs is not None:
            terms = terms + self.kl_coef * kl.k3(output.logprobs, batch.ref_logprobs).clamp(max=MOST_K3)
        return terms, metrics
