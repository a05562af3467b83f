"""Behaviour cloning: maximum likelihood on demonstrations. On a language model this is supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core import losses
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of


@dataclass(frozen=True, kw_only=True)
class Config:
    """Behaviour cloning has no knobs of its own; what it learns from is the data, how is the optimizer's."""


def initial_state(config: Config) -> dict[str, Tensor]:
    return {}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """Every demonstrated action counts the same: advantages of 1 make the policy gradient the cloning gradient."""
    units = rollout.mask.to(rollout.rewards)
    return batch_of(rollout, advantages=units, returns=torch.zeros_like(units), weights=units, units=units), {}


def loss(
    output: PolicyOutput, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood per action, nats."""
    terms = losses.negative_log_likelihood(output.logprobs)
    # The critic is not trained, but data parallelism needs every parameter in the graph.
    return terms + 0.0 * output.values, {"negative_log_likelihood": terms.detach(), "entropy": output.entropy.detach()}


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    return state
