"""TD actor-critic (Sutton and Barto, 2018, section 13.5, one-step actor-critic; http://incompleteideas.net/book)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from rlhf.algorithms import actor_critic
from rlhf.core import advantages
from rlhf.optimize import Learner
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

SINGLE_STEP = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """The one-step TD error as advantage; without the factor gamma^t, as everywhere in this package."""

    gamma: float = 1.0
    """Discount per action, in [0, 1]."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: float = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""
    critic: actor_critic.Critic = actor_critic.Critic(target="td0")

    def __post_init__(self) -> None:
        actor_critic.check(self, shares=("gamma",), sizes=("entropy_coef", "kl_coef"))


def initial_state(config: Config) -> dict[str, Tensor]:
    return {}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """Advantages r + gamma V(s') - V(s), and the critic's targets, by the values of the rollout."""
    rewards, metrics = charge_kl(rollout, config.kl_coef)
    td_errors = advantages.td0_returns(rewards, rollout.next_values, gamma=config.gamma) - rollout.values
    targets = actor_critic.critic_targets(rewards, rollout, config.critic, gamma=config.gamma)
    units = rollout.mask.to(rewards)
    metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=config.gamma)
    return batch_of(rollout, advantages=td_errors, returns=targets, weights=units, units=units), metrics


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
