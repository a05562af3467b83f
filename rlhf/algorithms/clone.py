"""Behaviour cloning: maximum likelihood on demonstrations. On a language model this is supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf.algorithms.base import LearnsFrom, Method, Whitening
from rlhf.deferred import deferred

with deferred():
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning(Method):
    """Behaviour cloning has no knobs of its own; what it learns from is the data, how is the optimizer's."""

    name: ClassVar[str] = "clone"
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    learns_from: ClassVar[LearnsFrom] = "demonstrations"
    stops_early: ClassVar[bool] = False
    critic_of: ClassVar[str] = "none"
    compares: ClassVar[bool] = False

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Every demonstrated action counts the same: advantages of 1 make the policy gradient the cloning gradient."""
        return batch_of(rollout, advantages=rollout.mask.to(rollout.rewards)), {}

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood per action, nats."""
        terms = losses.negative_log_likelihood(output.logprobs)
        return terms, {"negative_log_likelihood": terms.detach()}
