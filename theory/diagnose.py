"""What the theory says of a step from one policy to another, as far as the data of a run can tell."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.budget import micro_batches
from rlhf.core.advantages import gae
from rlhf.errors import InputError
from rlhf.reduce import MetricSums
from rlhf.rollout import Rollout
from theory.bounds import horizon_weight, surrogate_error


@torch.no_grad()
def diagnose(
    old: Any,
    new: Any,
    rollout: Rollout,
    *,
    gamma: float,
    gae_lambda: float,
    horizon: int | float,
    accelerator: Accelerator,
    micro_batch_cost: int,
) -> dict[str, float]:
    """Surrogate, KL in both directions, and an estimate of the bound on the return, for any two policies of one kind.

    KL is exact in each state that the data show, in nats per action. What is called an estimate is one: the states of
    the data stand for d_old, discounted or not; advantages are GAE by the critic's values; and eps, a maximum over all
    states of a mean over actions, is the largest |(ratio - 1) A| among the actions taken. Too few states make it too
    small, noise in the advantages too large. On tabular MDPs `bounds.kl_bound` is exact.

    Args:
        rollout: What `old` did, with its values; rewards, and so all returns, as the collector scaled them.
        horizon: Most steps of an episode; math.inf, which needs gamma below 1, if there is no such number.

    Returns:
        surrogate: Mean of (ratio - 1) A, the gain per action if states came as under the old policy.
        kl_old_new, kl_new_old: KL(old || new), which TRPO constrains, and KL(new || old), of the bound; means over
            the actions, and maxima (`_max`).
        surrogate_return: The surrogate in the unit of the discounted return.
        eps_estimate, bound_estimate: |J(new) - J(old) - surrogate_return| is at most the latter, if the estimates are
            right (Achiam et al., 2017, corollary 3; https://arxiv.org/abs/1705.10528).
    """
    if gamma == 1.0 and math.isinf(horizon):
        raise InputError("gamma is 1, where the bound needs a horizon; give the most steps that an episode may have.")
    advantages = gae(
        rollout.rewards, rollout.values, rollout.next_values, rollout.dones, gamma=gamma, gae_lambda=gae_lambda
    )
    sums = MetricSums()
    for part in micro_batches(rollout.costs, micro_batch_cost):
        inputs = {name: x[part] for name, x in rollout.inputs.items()}
        sums.add(_per_action(old, new, inputs, advantages[part]), rollout.mask[part])
    metrics = sums.reduce(accelerator)
    steps = 1.0 / (1.0 - gamma) if math.isinf(horizon) else math.fsum(gamma**t for t in range(int(horizon)))
    metrics["eps_estimate"] = metrics.pop("gain_max")
    metrics["surrogate_return"] = steps * metrics["surrogate"]
    eps, divergence = torch.tensor([metrics["eps_estimate"], max(metrics["kl_new_old"], 0.0)], dtype=torch.float64)
    weight = horizon_weight(gamma=gamma, horizon=horizon)
    metrics["bound_estimate"] = float(surrogate_error(eps, divergence, weight=weight))
    return metrics


def _per_action(old: Any, new: Any, inputs: dict[str, Tensor], advantages: Tensor) -> dict[str, Tensor]:
    before, old_distribution = old(inputs, distribution=True)
    after, new_distribution = new(inputs, distribution=True)
    gains = (torch.exp(after.logprobs - before.logprobs) - 1.0) * advantages
    forward, backward = old_distribution.kl(new_distribution), new_distribution.kl(old_distribution)
    return {
        "surrogate": gains,
        "gain_max": gains.abs(),
        "kl_old_new": forward,
        "kl_old_new_max": forward,
        "kl_new_old": backward,
        "kl_new_old_max": backward,
    }
