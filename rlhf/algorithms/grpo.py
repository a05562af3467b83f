"""Group relative policy optimisation (Shao et al., 2024; https://arxiv.org/abs/2402.03300) and two of its variants.

The defaults are the original. Dr. GRPO (Liu et al., 2025; https://arxiv.org/abs/2503.20783) is scale "none" and average
"constant"; averaging over all actions alike is DAPO's (Yu et al., 2025; https://arxiv.org/abs/2503.14476): "action".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.actor_critic import check
from rlhf.algorithms.critic_free import clipped_loss, groups_of, returns_to_go
from rlhf.core import groups, kl
from rlhf.errors import InputError
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

# Groups have put the advantages on their scale; to whiten them again would make equal scores differ from 0.
WHITEN = "none"
# Rows are compared with those of the same start.
GROUPS = True
# Added to a group's standard deviation, so that scores that differ by rounding only stay near 0.
EPSILON = 1e-4


@dataclass(frozen=True, kw_only=True)
class Config:
    """GRPO: PPO's clipped surrogate, with a row's score against those of its group for every advantage; no critic."""

    gamma: float = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    scale: Literal["std", "none"] = "std"
    """std: a group's advantages are divided by the standard deviation of its scores; none: they are not."""
    average: Literal["row", "action", "constant"] = "row"
    """row: mean over each row's actions, then over rows; action: mean over all actions; constant: sum over each row's
    actions divided by `constant`, then mean over rows."""
    constant: float = 1.0
    """What the sum over a row is divided by; Dr. GRPO takes the greatest length."""
    clip: float = 0.2
    """The ratio new / old gains nothing beyond 1 +- clip."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: float = 0.0
    """Weight in the loss (not in the rewards) of k3 against the reference, nats per action; 0 needs no reference."""

    def __post_init__(self) -> None:
        check(self, shares=("gamma",), sizes=("entropy_coef", "kl_coef"))
        for name in ("constant", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive.")


def initial_state(config: Config) -> dict[str, Tensor]:
    return {}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """A row's score, its whole return, against its group; every action of the row gets it (section 4.1.2)."""
    _, metrics = charge_kl(rollout, 0.0)
    scores = returns_to_go(rollout, rollout.rewards, gamma=config.gamma)[:, 0]
    scored = rollout.mask.any(1)
    if config.scale == "std":
        estimates = groups.standardised(scores, groups_of(rollout), scored, epsilon=EPSILON)
    else:
        estimates = groups.centred(scores, groups_of(rollout), scored)
    shares, actions = groups.row_shares(rollout.mask), rollout.mask.double()
    weights, units = {
        "row": (shares, shares),
        "action": (actions, actions),
        "constant": (actions, config.constant * shares),
    }[config.average]
    cells = [x.to(rollout.rewards) for x in (estimates.unsqueeze(1).expand_as(shares), weights, units)]
    none = torch.zeros_like(rollout.rewards)
    return batch_of(rollout, advantages=cells[0], returns=none, weights=cells[1], units=cells[2]), metrics


def loss(
    output: PolicyOutput, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate and KL to the reference (eq. 3 and 4) less the entropy bonus, per action."""
    terms, metrics = clipped_loss(output, batch, clip=config.clip, entropy_coef=config.entropy_coef)
    if batch.ref_logprobs is not None:
        terms = terms + config.kl_coef * kl.k3(output.logprobs, batch.ref_logprobs)
    return terms, metrics


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    return state
