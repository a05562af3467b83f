"""Advantage actor-critic, synchronous (Mnih et al., 2016, algorithm S3; https://arxiv.org/abs/1602.01783)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Count, Share, Size

with deferred():
    from torch import Tensor

    from rlhf.core import advantages
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class A2C(Method):
    """A2C; as in the paper, take one epoch of one minibatch, since nothing corrects for a policy that has moved."""

    single_step: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    advantage: Literal["gae", "n_step"] = "gae"
    """How far rewards are summed before the critic's value takes over; TD actor-critic (Sutton and Barto, 2018, section
    13.5) is n_step with one step, or gae_lambda 0."""
    gae_lambda: Share = 1.0
    """Lambda of gae, in [0, 1]; 1 sums to the end of the fragment, which is what the paper does."""
    num_steps: Count = 5
    """Rewards in an n_step advantage."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action; the paper's is 0.01."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""
    critic: actor_critic.Critic = actor_critic.Critic()

    @property
    def needs_critic(self) -> bool:
        return self.critic.epochs > 0

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Advantages R - V(s), R the n-step or lambda return, and the critic's targets."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        values, next_values, dones = rollout.values, rollout.next_values, rollout.dones
        if self.advantage == "gae":
            estimates = advantages.gae(
                rewards, values, next_values, dones, gamma=self.gamma, gae_lambda=self.gae_lambda
            )
        else:
            returns = advantages.n_step_returns(rewards, next_values, dones, gamma=self.gamma, num_steps=self.num_steps)
            estimates = returns - values
        targets = actor_critic.critic_targets(rewards, rollout, self.critic, gamma=self.gamma)
        metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=self.gamma)
        return batch_of(rollout, advantages=estimates, returns=targets), metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient, entropy bonus and, unless the critic was fitted before, value loss per action."""
        return actor_critic.policy_and_value_loss(
            output, batch, entropy_coef=self.entropy_coef, value_coef=self.critic.loss_coef
        )

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The plain update, or the critic's fit and then the policy's step, as `self.critic` says."""
        metrics = actor_critic.update(
            learner,
            rollout,
            batch,
            self.objective(state),
            critic=self.critic,
            evaluate=lambda scored: self.estimate(scored, state)[0],
        )
        return metrics, state
