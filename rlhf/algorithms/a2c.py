"""Advantage actor-critic, synchronous (Mnih et al., 2016, algorithm S3; https://arxiv.org/abs/1602.01783)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from rlhf.algorithms import actor_critic
from rlhf.core import advantages
from rlhf.errors import InputError
from rlhf.optimize import Learner
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

SINGLE_STEP = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """A2C; as in the paper, take one epoch of one minibatch, since nothing corrects for a policy that has moved."""

    gamma: float = 1.0
    """Discount per action, in [0, 1]."""
    advantage: Literal["gae", "n_step"] = "gae"
    """How far rewards are summed before the critic's value takes over."""
    gae_lambda: float = 1.0
    """Of gae, in [0, 1]; 1 sums to the end of the fragment, which is what the paper does."""
    num_steps: int = 5
    """Rewards in an n_step advantage."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, nats per action; the paper's is 0.01."""
    kl_coef: float = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""
    critic: actor_critic.Critic = actor_critic.Critic()

    def __post_init__(self) -> None:
        actor_critic.check(self, shares=("gamma", "gae_lambda"), sizes=("entropy_coef", "kl_coef"))
        if self.num_steps < 1:
            raise InputError(f"num_steps is {self.num_steps}; it must be at least 1, which is the TD error.")


def initial_state(config: Config) -> dict[str, Tensor]:
    return {}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """Advantages R - V(s), R the n-step or lambda return, and the critic's targets, by the values of the rollout."""
    rewards, metrics = charge_kl(rollout, config.kl_coef)
    values, next_values, dones = rollout.values, rollout.next_values, rollout.dones
    if config.advantage == "gae":
        estimates = advantages.gae(
            rewards, values, next_values, dones, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
    else:
        returns = advantages.n_step_returns(rewards, next_values, dones, gamma=config.gamma, num_steps=config.num_steps)
        estimates = returns - values
    targets = actor_critic.critic_targets(rewards, rollout, config.critic, gamma=config.gamma)
    units = rollout.mask.to(rewards)
    metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=config.gamma)
    return batch_of(rollout, advantages=estimates, returns=targets, weights=units, units=units), metrics


def loss(
    output: PolicyOutput, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient, entropy bonus and, unless the critic was fitted before, value loss per action."""
    return actor_critic.policy_and_value_loss(
        output, batch, entropy_coef=config.entropy_coef, value_coef=config.critic.loss_coef
    )


def update(
    learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The plain update, or the critic's fit and then the policy's step, as `config.critic` says."""
    metrics = actor_critic.update(
        learner,
        rollout,
        batch,
        partial(loss, state=state, config=config),
        critic=config.critic,
        evaluate=lambda scored: estimate(scored, state, config)[0],
    )
    return metrics, state


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    return state
