"""Q actor-critic: the policy gradient by the Q of a critic (Sutton et al., 2000, theorem 1; https://papers.nips.cc/paper/1713).

The policy's critic must value actions: `rollout.values` are Q(s, a) of the taken ones, `next_values` sum_a pi Q(s', a).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf.algorithms import actor_critic
from rlhf.errors import InputError
from rlhf.optimize import Learner
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

SINGLE_STEP = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Q(s, a) as the weight of an action, with or without what the policy expects of the state taken off."""

    gamma: float = 1.0
    """Discount per action, in [0, 1]."""
    baseline: Literal["none", "expected"] = "expected"
    """expected: less sum_a pi(a | s) Q(s, a), which changes the variance and not the mean."""
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
    """Weights Q(s, a), from which `update` takes the baseline, and targets that bootstrap from sum_a pi Q(s', a)."""
    rewards, metrics = charge_kl(rollout, config.kl_coef)
    targets = actor_critic.critic_targets(rewards, rollout, config.critic, gamma=config.gamma)
    units = rollout.mask.to(rewards)
    metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=config.gamma)
    return batch_of(rollout, advantages=rollout.values, returns=targets, weights=units, units=units), metrics


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
    """Takes the baseline off; then the plain update, or first the critic's fit, as `config.critic` says."""
    model = learner.module
    if not getattr(model, "values_actions", False):
        raise InputError("the critic values states; q_actor_critic needs one of actions: --policy.critic action.")

    def evaluate(scored: Rollout) -> Batch:
        return less_baseline(model, estimate(scored, state, config)[0], config)

    metrics = actor_critic.update(
        learner,
        rollout,
        less_baseline(model, batch, config),
        partial(loss, state=state, config=config),
        critic=config.critic,
        evaluate=evaluate,
    )
    return metrics, state


@torch.no_grad()
def less_baseline(model: Any, batch: Batch, config: Config) -> Batch:
    """Takes sum_a pi Q(s, a) off the advantages."""
    if config.baseline == "none":
        return batch
    expected = model.state_values(batch.inputs).masked_fill(~batch.mask, 0.0)
    return batch._replace(advantages=batch.advantages - expected)


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    return state
