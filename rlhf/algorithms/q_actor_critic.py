"""Q actor-critic: the policy gradient by the Q of a critic (Sutton et al., 2000, theorem 1; https://papers.nips.cc/paper/1713).

The policy's critic must value actions: `rollout.values` are Q(s, a) of the taken ones, `next_values` sum_a pi Q(s', a).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.optimize import Learner
from rlhf.settings import Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class QActorCritic(Method):
    """Q(s, a) as the weight of an action, with or without what the policy expects of the state taken off."""

    single_step: ClassVar[bool] = True
    actions: ClassVar[Literal["discrete", "vectors", "either"]] = "discrete"
    critic_of: ClassVar[str] = "actions"

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    baseline: Literal["none", "expected"] = "expected"
    """expected: less sum_a pi(a | s) Q(s, a), which changes the variance and not the mean."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""
    critic: actor_critic.Critic = actor_critic.Critic(target="td0")

    @property
    def needs_critic(self) -> bool:
        return self.critic.epochs > 0

    @property
    def needs_memoryless(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Weights Q(s, a), less the baseline only in `update`, and targets that bootstrap from sum_a pi Q(s', a)."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        targets = actor_critic.critic_targets(rewards, rollout, self.critic, gamma=self.gamma)
        metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=self.gamma)
        return batch_of(rollout, advantages=rollout.values, returns=targets), metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient, entropy bonus and, unless the critic was fitted before, value loss per action."""
        return actor_critic.policy_and_value_loss(
            output, batch, entropy_coef=self.entropy_coef, value_coef=self.critic.loss_coef
        )

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Takes the baseline off; then the plain update, or first the critic's fit, as `self.critic` says."""
        model = learner.module
        if not getattr(model, "values_actions", False):
            raise InputError("the critic values states; q_actor_critic needs one of actions: --policy.critic action.")

        def evaluate(scored: Rollout) -> Batch:
            return less_baseline(model, self.estimate(scored, state)[0], self)

        metrics = actor_critic.update(
            learner,
            rollout,
            less_baseline(model, batch, self),
            self.objective(state),
            critic=self.critic,
            evaluate=evaluate,
        )
        return metrics, state


def less_baseline(model: Any, batch: Batch, method: QActorCritic) -> Batch:
    """Takes sum_a pi Q(s, a) off the advantages."""
    if method.baseline == "none":
        return batch
    with torch.no_grad():
        expected = model.state_values(batch.inputs).masked_fill(~batch.mask, 0.0)
    return batch._replace(advantages=batch.advantages - expected)
