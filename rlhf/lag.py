"""Actors that lag behind the learner, as in distributed training (Espeholt et al., 2018; https://arxiv.org/abs/1802.01561)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.errors import InputError
from rlhf.rescore import rescored
from rlhf.rollout import Collected


class LaggedCollector:
    """Acts with the weights of `lag` updates ago, then has the learner score what was done.

    `behaviour_logprobs` are the actor's; `logprobs`, `values` and `next_values` the learner's. The first `lag` updates
    act with the initial weights. What is not trained (running moments, a reference) does not lag.

    Args:
        collector: What acts; its rollouts are rescored.
        lag: Updates, at least 0.
        micro_batch_cost: Most row costs scored at once.
    """

    def __init__(self, collector: Any, *, lag: int, accelerator: Accelerator, micro_batch_cost: int) -> None:
        if lag < 0:
            raise InputError(f"lag is {lag}; it must not be negative.")
        self.collector, self.lag = collector, lag
        self.accelerator, self.micro_batch_cost = accelerator, micro_batch_cost
        # Weights of the last `lag` updates, oldest first.
        self._past: list[dict[str, Tensor]] = []

    def collect(self, policy: Any, update: int) -> Collected:
        now = {name: tensor.detach().clone() for name, tensor in policy.named_parameters() if tensor.requires_grad}
        past = [*self._past, now]
        with _weights(policy, past[0]):
            collected: Collected = self.collector.collect(policy, update)
        self._past = past[-self.lag :] if self.lag else []
        rollout = rescored(
            policy, collected.rollout, accelerator=self.accelerator, micro_batch_cost=self.micro_batch_cost
        )
        return collected._replace(rollout=rollout)

    def state_dict(self) -> dict[str, Any]:
        return {"collector": self.collector.state_dict(), "past": self._past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.collector.load_state_dict(state["collector"])
        self._past = state["past"]

    def close(self) -> None:
        self.collector.close()


@contextmanager
def _weights(policy: Any, weights: dict[str, Tensor]) -> Iterator[None]:
    """The policy with other weights, in place, so that everything else about it stays as it is."""
    parameters = {name: tensor for name, tensor in policy.named_parameters() if name in weights}
    own = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    try:
        _fill(parameters, weights)
        yield
    finally:
        _fill(parameters, own)


@torch.no_grad()
def _fill(parameters: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, tensor in parameters.items():
        tensor.copy_(weights[name])
