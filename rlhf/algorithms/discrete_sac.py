"""Soft actor-critic for discrete actions (Christodoulou, 2019; https://arxiv.org/abs/1910.07207): where `sac` draws
an action, the expectation over all of them is taken exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from rlhf import optimize
from rlhf.algorithms import replayed
from rlhf.algorithms.base import Method, Whitening
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Count, Share, ShareAboveZero

with deferred():
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.rollout import Batch, Rollout


@dataclass(frozen=True, kw_only=True)
class DiscreteSAC(Method):
    """Discrete SAC; `optimize.epochs` x `optimize.minibatches` steps an update, each on `batch_size` transitions."""

    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    stops_early: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    replays: ClassVar[bool] = True
    actions: ClassVar[Literal["discrete", "vectors", "either"]] = "discrete"
    critic_of: ClassVar[str] = "actions"

    gamma: Share = 0.99
    """Discount per action, in [0, 1]."""
    batch_size: Count = 256
    """Replayed transitions in each gradient step, over all processes."""
    target_rate: ShareAboveZero = 0.005
    """Share of the way that the target critics go to the critics after each gradient step."""
    target_entropy: Share = 0.3
    """Share of the entropy of even odds, log |A|, that the temperature steers the entropy to. The paper's 0.98 keeps
    the policy next to even odds, so that the critics never see what a decided policy is worth."""

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Nothing yet: the targets are renewed at every gradient step."""
        return replayed.transitions(rollout), {}

    def loss(self, output: Output, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """J_Q with the soft value of eq. 10, J_pi (eq. 12) and J_alpha (eq. 11, in log alpha)."""
        temperature = output.log_temperature.detach().exp()
        next_values = soft_values(output.next_logits, output.next_values.amin(-2), temperature)
        targets = replayed.one_step_targets(batch, next_values, gamma=self.gamma)
        taken = replayed.values_of(output.values, batch.inputs["actions"])
        value_loss = replayed.critic_loss(taken, targets)
        policy_loss = -soft_values(output.logits, output.values.detach().amin(-2), temperature)
        entropy = losses.categorical_entropy(output.logits).detach()
        target_entropy = self.target_entropy * math.log(output.logits.shape[-1])
        temperature_loss = output.log_temperature * (entropy - target_entropy)
        metrics = replayed.critic_metrics(taken, targets) | {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy,
            "temperature": temperature,
        }
        return value_loss + policy_loss + temperature_loss, metrics

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Gradient steps on all parts at once, each followed by the target critics."""
        bound = self.objective(state)
        after = replayed.follow(learner.module, rate=self.target_rate)
        return optimize.update(learner, batch, bound, after_step=after), state


class Output(NamedTuple):
    """What methods with replayed transitions and V discrete actions ask of a policy."""

    logits: Tensor
    """`(B, T, V)`."""
    values: Tensor
    """`(B, T, K, V)`, by each of K critics."""
    next_logits: Tensor
    """Where the replayed actions led; no gradient."""
    next_values: Tensor
    """There, by the target critics; no gradient."""
    log_temperature: Tensor
    """`(B, T)`."""


def soft_values(logits: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
    """V(s) = sum_a pi(a | s) (Q(s, a) - temperature log pi(a | s)) (eq. 10), `(B, T)` from `(B, T, V)`."""
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * (values - temperature.unsqueeze(-1) * logprobs)).sum(-1)
