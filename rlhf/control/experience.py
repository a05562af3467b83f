"""What environments showed during a rollout, and what every collector makes of it: Rollout, scaled rewards, metrics."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.control.normalize import CLIP, Normalizer
from rlhf.control.policy import ControlPolicy
from rlhf.control.twin_policy import TwinPolicy
from rlhf.reduce import global_sum
from rlhf.rollout import Rollout


class Experience(NamedTuple):
    """What the environments showed: numpy, `(N, T)`, observations `(N, T, O)` and raw."""

    observations: np.ndarray
    next_observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, int], size: int, dtype: Any) -> Experience:
        """All 0 and False, for observations of `size` numbers."""
        acted_on, led_to = np.zeros((2, *shape, size), dtype)
        terminated, truncated, mask = np.zeros((3, *shape), dtype=bool)
        return cls(acted_on, led_to, np.zeros(shape), terminated, truncated, mask)


def rollout_of(
    policy: ControlPolicy,
    seen: Experience,
    *,
    outputs: Tensor,
    actions: Tensor,
    rewards: np.ndarray,
    sample_ids: Tensor,
    reference: ControlPolicy | None,
    groups: Tensor | None = None,
) -> Rollout:
    """The experience as the learner takes it; critic and reference score only what the policy acted on.

    Args:
        outputs: Of the actor while it acted, `(N, T, K)`.
        actions: As sampled, not clipped.
        rewards: What the learner is paid; the experience's own ones unless they are scaled.
        reference: A policy to measure the KL to; it normalises observations by its own moments.
    """
    device, mask = outputs.device, torch.as_tensor(seen.mask).to(outputs.device)
    raw = torch.as_tensor(seen.observations).to(device)
    inputs = {"observations": policy.normalise(raw), "actions": actions}
    next_inputs = {"observations": policy.normalise(torch.as_tensor(seen.next_observations).to(device))}
    logprobs, _ = policy.score(outputs, actions)
    values, next_values = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    values[mask] = policy.values(inputs["observations"][mask], actions[mask])
    next_values[mask] = policy.state_values({"observations": next_inputs["observations"][mask]})
    terminals = torch.as_tensor(seen.terminated).to(device)
    ref_logprobs = None
    if reference is not None:
        ref_logprobs = torch.zeros_like(logprobs)
        ref_inputs = {"observations": reference.normalise(raw[mask]), "actions": actions[mask]}
        ref_logprobs[mask] = reference(ref_inputs).logprobs
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=logprobs,
        logprobs=logprobs,
        values=values,
        next_values=next_values.masked_fill(terminals, 0.0),
        rewards=torch.as_tensor(rewards).to(logprobs),
        dones=torch.as_tensor(seen.terminated | seen.truncated).to(device),
        mask=mask,
        sample_ids=sample_ids.to(device),
        costs=torch.full_like(sample_ids, mask.shape[1], device=device),
        ref_logprobs=ref_logprobs,
        groups=None if groups is None else groups.to(device),
        terminals=terminals,
        next_inputs=next_inputs,
    )


def scaled_rewards(
    seen: Experience, carried: np.ndarray, moments: Normalizer, *, gamma: float, accelerator: Accelerator
) -> np.ndarray:
    """Rewards over the running deviation of the discounted return R_t = r_t + gamma R_{t-1}, clipped to +-10.

    The whole rollout is divided by one number, which has already seen it: so the first one is scaled too.

    Args:
        carried: `(N,)` R of the step before the first, 0 at an episode's start; left as that after the last.
        moments: Of all R so far; moved.
    """
    dones = seen.terminated | seen.truncated
    returns = np.empty_like(seen.rewards)
    for t in range(returns.shape[1]):
        carried *= gamma
        carried += seen.rewards[:, t]
        returns[:, t] = carried
        carried[dones[:, t]] = 0.0
    moments.update(torch.as_tensor(returns[seen.mask]).unsqueeze(1), partial(global_sum, accelerator))
    return np.clip(seen.rewards / float(moments.std()), -CLIP, CLIP)


def observe(policy: ControlPolicy | TwinPolicy, seen: Experience, accelerator: Accelerator) -> None:
    """Moves the policy's moments of observations, if it has any, by what it acted on."""
    if policy.config.normalise_observations:
        acted_on = torch.as_tensor(seen.observations[seen.mask])
        policy.normalizer.update(acted_on, partial(global_sum, accelerator))


def episode_metrics(
    seen: Experience, samples: list[dict[str, Any]], accelerator: Accelerator, *, steps_before: int
) -> dict[str, float]:
    """Over all processes. Returns and lengths are those of episodes that ended, and absent if none did.

    Args:
        samples: A record of each episode that ended, with `return` and `length`.
        steps_before: Taken in earlier rollouts; `env_steps` counts on.
    """
    returns = np.array([sample["return"] for sample in samples])
    sums = [len(samples), returns.sum(), np.square(returns).sum(), sum(sample["length"] for sample in samples)]
    sums += [seen.rewards.sum(), seen.mask.sum()]
    local = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
    episodes, total, squares, length, reward, steps = global_sum(accelerator, local).tolist()
    metrics = {
        "episodes": int(episodes),
        "env_steps": steps_before + int(steps),
        "reward_per_step": reward / max(steps, 1.0),
    }
    if episodes:
        mean = total / episodes
        metrics |= {
            "return_mean": mean,
            "return_std": max(squares / episodes - mean * mean, 0.0) ** 0.5,
            "episode_length_mean": length / episodes,
        }
    return metrics
