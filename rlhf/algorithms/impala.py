"""Importance-weighted actor-learner: an actor-critic whose actors may lag behind (Espeholt et al., 2018;
https://arxiv.org/abs/1802.01561).

`rollout.behaviour_logprobs` are the actors'; `logprobs`, `values` and `next_values` the learner's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method, Whitening
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.settings import Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import kl
    from rlhf.core.vtrace import vtrace
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class Impala(Method):
    """V-trace actor-critic; one epoch of one minibatch, since the ratios are those at the start of the update."""

    # The ratio is in the advantage: with the mean taken off, an action that the learner has left (ratio near 0) would
    # get a negative advantage at full weight, and be left further and further.
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    single_step: ClassVar[bool] = True
    corrects_lag: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    td_lambda: Share = 1.0
    """Shortens the traces by this factor per action, in [0, 1]; 1 is the paper's."""
    rho_clip: Size = 1.0
    """Ratios learner / actor above this count as this in the TD errors and the policy gradient."""
    c_clip: Size = 1.0
    """Ratios learner / actor above this count as this in the traces, which sets how far later errors reach back;
    at most rho_clip."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    value_coef: Size = 0.5
    """Weight of the value loss, which is half a squared error."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    def __post_init__(self) -> None:
        if not self.rho_clip >= self.c_clip:
            raise InputError(f"rho_clip is {self.rho_clip} and c_clip {self.c_clip}; the first must be the larger.")

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """V-trace targets (eq. 1) and policy-gradient advantages (section 4.2)."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        ratios = torch.exp(rollout.logprobs - rollout.behaviour_logprobs)
        targets, advantages = vtrace(
            rewards,
            rollout.values,
            rollout.next_values,
            rollout.dones,
            ratios,
            gamma=self.gamma,
            lambda_=self.td_lambda,
            rho_clip=self.rho_clip,
            c_clip=self.c_clip,
        )
        metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=self.gamma)
        metrics |= {
            "lag_ratio_max": ratios,
            "lag_kl_k3": kl.k3(rollout.behaviour_logprobs, rollout.logprobs),
            "lag_clip_fraction": (ratios > self.rho_clip).to(rewards),
        }
        return batch_of(rollout, advantages=advantages, returns=targets), metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient, value loss and entropy bonus per action (section 4.2)."""
        return actor_critic.policy_and_value_loss(
            output, batch, entropy_coef=self.entropy_coef, value_coef=self.value_coef
        )
