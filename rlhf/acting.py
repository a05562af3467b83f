"""What the learner says of what was done: its log-probabilities and values, where somebody else acted or in other
precision, and the weights by which that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.budget import micro_batches, passed_by
from rlhf.core import kl
from rlhf.errors import InputError
from rlhf.reduce import MetricSums, global_sum
from rlhf.rollout import PolicyOutput, Rollout

# Nats an action, in the mean, by which half precision may differ. On SmolLM2-135M bfloat16 makes it .02, and a
# temperature that is a tenth off .2.
HALF_ROUNDING = 0.1
# Parts of a row for which the difference is logged: errors that add up along a response grow from one to the next.
DEPTHS = 4


@torch.no_grad()
def rescored(policy: Any, rollout: Rollout, *, accelerator: Accelerator, micro_batch_cost: int) -> Rollout:
    """The rollout with the policy's `logprobs`, `values` and `next_values`; `behaviour_logprobs` stay."""
    passed = passed_by(policy, rollout.inputs)
    parts = micro_batches(rollout.costs, micro_batch_cost, passed=passed)
    with accelerator.autocast():
        outputs = [policy({name: x[part] for name, x in rollout.inputs.items()}) for part in parts]
        logprobs, values, _ = PolicyOutput(*(torch.cat(tensors) for tensors in zip(*outputs, strict=True)))
        next_values = _next_values(policy, rollout, values.masked_fill(~rollout.mask, 0.0), parts)
    return replace(rollout, logprobs=logprobs, values=values, next_values=next_values)


def scored(
    policy: Any, inputs: dict[str, Tensor], *, accelerator: Accelerator, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """`(B, T)` log-probabilities and values of the actions by the policy's own forward, in its training precision."""
    both = _in_parts(lambda part: torch.stack(policy(part)[:2], dim=1), inputs, accelerator, max_tokens)
    logprobs, values = both.unbind(dim=1)
    return logprobs, values


def critic_values(policy: Any, inputs: dict[str, Tensor], *, accelerator: Accelerator, max_tokens: int) -> Tensor:
    """`(B, T)` values of the states that actions were taken in, by a critic with a trunk of its own."""
    return _in_parts(policy.critic_values, inputs, accelerator, max_tokens)


def reference_logprobs(
    policy: Any, inputs: dict[str, Tensor], own: Tensor | None, *, accelerator: Accelerator, max_tokens: int
) -> Tensor:
    """`(B, T)` log-probabilities of the actions by the policy's reference, in the same precision.

    Args:
        own: Those by the policy. As long as it is its reference they are the reference's too: another pass would round
            differently.
    """
    if own is not None and policy.at_reference():
        return own
    return _in_parts(policy.reference_logprobs, inputs, accelerator, max_tokens)


@torch.no_grad()
def _in_parts(
    score: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor], accelerator: Accelerator, max_tokens: int
) -> Tensor:
    """`score` of all rows, taken a few at a time: as many as stay within `max_tokens`, at least one."""
    rows = max(1, max_tokens // int(inputs["lengths"].max()))
    parts = zip(*(tensor.split(rows) for tensor in inputs.values()), strict=True)
    with accelerator.autocast():
        return torch.cat([score(dict(zip(inputs, part, strict=True))) for part in parts])


def _next_values(policy: Any, rollout: Rollout, values: Tensor, parts: list[Tensor]) -> Tensor:
    """V of the state that each step led to, some rows at a time: 0 if it is terminal.

    Without `next_inputs` no episode is ever cut, so that state is the row's next.
    """
    if rollout.next_inputs is None:
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        return following.masked_fill(rollout.dones, 0.0)
    terminals = rollout.dones if rollout.terminals is None else rollout.terminals
    inputs = rollout.next_inputs
    those = [policy.state_values({name: x[part] for name, x in inputs.items()}) for part in parts]
    return torch.cat(those).masked_fill(terminals, 0.0)


def completed(
    policy: Any,
    rollout: Rollout,
    *,
    accelerator: Accelerator,
    micro_batch_cost: int,
    importance_cap: float,
    importance_floor: float,
    weighs: bool,
    lags: bool,
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with all that the learner says of it, and what to log of that.

    Args:
        weighs: The method does not correct for the actor itself, so its advantages are weighed.
        lags: Other weights than the learner's acted, so what they said of it does not count.
    """
    if lags or rollout.logprobs is None:
        rollout = rescored(policy, rollout, accelerator=accelerator, micro_batch_cost=micro_batch_cost)
    seen, metrics = weighed(rollout, accelerator, cap=importance_cap, floor=importance_floor)
    if weighs:
        return seen, metrics
    return rollout, {name: value for name, value in metrics.items() if name.startswith("mismatch")}


def weighed(
    rollout: Rollout, accelerator: Accelerator, *, cap: float, floor: float = 0.0
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with min(learner / actor, cap) as `importance`, and how far apart the two are, over all ranks.

    Truncated importance sampling (Ionides, 2008; https://doi.org/10.1198/106186008X320456). With a floor above 0 it is
    learner / actor from the floor to the cap and 0 elsewhere (IcePop; Ling Team, 2025,
    https://arxiv.org/abs/2510.18855, the mask M(k) of its objective). Where the learner itself acted, in the precision
    that it learns in, nothing is added or logged.
    """
    log_ratios = rollout.logprobs - rollout.behaviour_logprobs
    if not float(global_sum(accelerator, (log_ratios != 0.0).double().sum())):
        return rollout, {}
    ratios, distances = torch.exp(log_ratios), log_ratios.abs()
    outside = (ratios > cap) | (ratios < floor)
    sums = MetricSums()
    sums.add(
        {
            "mismatch": distances,
            "mismatch_max": distances,
            "mismatch_kl_k3": kl.k3(rollout.behaviour_logprobs, rollout.logprobs),
            "importance_max": ratios,
            "importance_cut_fraction": outside.to(ratios),
        },
        rollout.mask,
    )
    metrics = sums.reduce(accelerator) | _by_depth(distances, rollout.mask, accelerator)
    importance = ratios.masked_fill(outside, 0.0) if floor > 0 else ratios.clamp(max=cap)
    return replace(rollout, importance=importance), metrics


def _by_depth(distances: Tensor, mask: Tensor, accelerator: Accelerator) -> dict[str, float]:
    """Means over the actions of each quarter of their rows."""
    acted = mask.cumsum(dim=1) - 1
    quarters = DEPTHS * acted // mask.sum(dim=1, keepdim=True).clamp(min=1)
    cells = torch.stack([mask & (quarters == quarter) for quarter in range(DEPTHS)]).double()
    sums = global_sum(accelerator, torch.stack([(cells * distances).sum((1, 2)), cells.sum((1, 2))]))
    means = (sums[0] / sums[1].clamp(min=1.0)).tolist()
    return {f"mismatch_quarter_{i}": mean for i, mean in enumerate(means, start=1)}


def require_same_policy(metrics: dict[str, float], *, rounding: float, mixed_precision: str) -> None:
    """Refuses a run's first updates if actor and learner differ by more than rounding explains.

    Args:
        rounding: Nats an action, in the mean, that explains where the learner computes in full precision.

    Raises:
        RuntimeError: With the likely causes.
    """
    most = rounding if mixed_precision == "no" else max(rounding, HALF_ROUNDING)
    if metrics.get("mismatch", 0.0) > most:
        raise RuntimeError(
            f"the actor's log-probabilities differ from the learner's by {metrics['mismatch']:.2g} nats an action in "
            f"the mean, where rounding explains at most {most:g}. Likely causes: an engine that holds other weights, "
            "samples at another temperature or from a truncated distribution, or computes in another precision than "
            "it says (its `rounding`)."
        )


class Lag:
    """The weights of the last updates, with which actors act that lag behind the learner, as in distributed training
    (Espeholt et al., 2018; https://arxiv.org/abs/1802.01561).

    The first updates act with the initial weights. What is not trained (running moments, a reference) does not lag.

    Args:
        updates: At least 0; 0 is no lag.
    """

    def __init__(self, updates: int) -> None:
        if updates < 0:
            raise InputError(f"lag is {updates}; it must not be negative.")
        self.updates = updates
        # Of the last `updates` updates, oldest first.
        self._past: list[dict[str, Tensor]] = []

    @contextmanager
    def acting(self, policy: Any) -> Iterator[None]:
        """Meanwhile the policy has the weights of so many updates ago."""
        if not self.updates:
            yield
            return
        now = {name: tensor.detach().clone() for name, tensor in policy.named_parameters() if tensor.requires_grad}
        past = [*self._past, now]
        with with_weights(policy, past[0]):
            yield
        self._past = past[-self.updates :]

    def state_dict(self) -> dict[str, Any]:
        return {"past": self._past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._past = state["past"]


@contextmanager
def with_weights(policy: Any, weights: dict[str, Tensor]) -> Iterator[None]:
    """The policy, or a part of it, with other weights, in place, so that everything else about it stays as it is."""
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
    # Autocast keeps its casts of weights, which are now others'.
    torch.clear_autocast_cache()
