"""REINFORCE leave-one-out (Kool et al., 2019; Ahmadian et al., 2024; https://arxiv.org/abs/2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.actor_critic import check
from rlhf.algorithms.critic_free import groups_of, plain_loss, returns_to_go
from rlhf.core import groups
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

# Leave-one-out has centred the advantages without bias, which whitening would bring.
WHITEN = "none"
# Rows are compared with those of the same start.
GROUPS = True
SINGLE_STEP = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """RLOO: the plain policy gradient of whole rows, unbiased in one step on each batch (optimize.epochs 1)."""

    gamma: float = 1.0
    """Discount per action of the rewards that add up to a row's score, in [0, 1]."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: float = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    def __post_init__(self) -> None:
        check(self, shares=("gamma",), sizes=("entropy_coef", "kl_coef"))


def initial_state(config: Config) -> dict[str, Tensor]:
    return {}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """A row's score, its whole return less the KL charge, minus the mean score of the others of its group."""
    rewards, metrics = charge_kl(rollout, config.kl_coef)
    scores = returns_to_go(rollout, rewards, gamma=config.gamma)[:, 0]
    estimates = groups.leave_one_out(scores, groups_of(rollout), rollout.mask.any(1)).to(rewards)
    # Summed over a row and averaged over rows, which is the gradient of the expected score.
    weights, units = rollout.mask.to(rewards), groups.row_shares(rollout.mask).to(rewards)
    advantages = estimates.unsqueeze(1).expand_as(rewards)
    none = torch.zeros_like(rewards)
    return batch_of(rollout, advantages=advantages, returns=none, weights=weights, units=units), metrics


def loss(
    output: PolicyOutput, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """-log pi(a_t | s_t) A (section 2.2) less the entropy bonus, per action."""
    return plain_loss(output, batch, entropy_coef=config.entropy_coef)


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    return state
