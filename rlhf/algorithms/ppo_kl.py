"""Proximal policy optimisation with a penalty on the KL to the old policy (Schulman et al., 2017, section 4;
https://arxiv.org/abs/1707.06347).

The penalty does not bound a step: at the old policy its gradient is 0, so the first one is that of the plain policy
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.settings import Positive, Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import importance, kl, losses
    from rlhf.rollout import Batch, PolicyOutput, Rollout

# Where the KL stays below its target for long, as that of a policy that has nothing more to learn, the coefficient must
# not get so far away that it is not back in time: six halvings or doublings from where it started.
_REACH = 64.0


@dataclass(frozen=True, kw_only=True)
class PPOKL(Method):
    """PPO with an adaptive KL penalty; take several steps an update, since before the first the KL is 0."""

    name: ClassVar[str] = "ppo_kl"

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    gae_lambda: Share = 0.95
    """Bias-variance trade-off of the advantages, in [0, 1]; 1 is Monte Carlo minus the value."""
    penalty: Positive = 1.0
    """Coefficient beta of KL(old || new) at the start, per nat and action; it stays within a factor of 64 of it."""
    penalty_target: Size = 0.01
    """Nats per action, KL(old || new) of the last epoch, that the coefficient is steered to; 0 keeps it fixed."""
    penalty_target_schedule: actor_critic.Schedule = "constant"
    """linear: the target shrinks to 0 over the run."""
    value_coef: Size = 0.5
    """Weight of the value loss, which is half a squared error."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    def initial_state(self) -> dict[str, Tensor]:
        return {"penalty": torch.tensor(self.penalty, dtype=torch.float64)}

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """GAE, less the KL to a reference, if there is one."""
        return actor_critic.gae_batch(rollout, kl_coef=self.kl_coef, gamma=self.gamma, gae_lambda=self.gae_lambda)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-ratio A + beta KL(old || new) (eq. 8, negated), value loss and entropy bonus per action.

        The KL is k3 of the taken action, whose gradient is in expectation exactly that of KL(old || new).
        """
        policy_loss = importance.surrogate_loss(output.logprobs, batch.logprobs, batch.advantages)
        value_loss = losses.value_loss(output.values, batch.returns)
        divergence = kl.k3(batch.logprobs, output.logprobs)
        terms = policy_loss + state["penalty"].to(divergence) * divergence
        terms = terms - self.entropy_coef * output.entropy + self.value_coef * value_loss
        return terms, {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}

    def adapt(self, state: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
        """Halves beta below target / 1.5 and doubles it above 1.5 target, by the KL logged for the last epoch."""
        if self.penalty_target == 0:
            return state
        reached = metrics["approx_kl_k3_last"]
        target = float(actor_critic.scheduled(self.penalty_target, self.penalty_target_schedule, state))
        factor = 0.5 if reached < target / 1.5 else 2.0 if reached > 1.5 * target else 1.0
        return {**state, "penalty": (factor * state["penalty"]).clamp(self.penalty / _REACH, self.penalty * _REACH)}
