"""Acting in environments: fragments of episodes as a Rollout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlhf.control.envs import spaces_of
from rlhf.control.episodes import Episodes
from rlhf.control.normalize import CLIP, Normalizer
from rlhf.control.policy import ControlPolicy
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.reduce import global_sum
from rlhf.rollout import Collected, Rollout


@dataclass(frozen=True, kw_only=True)
class Config:
    """How much experience each update gets."""

    num_envs: int = 8
    """Environments over all processes; a multiple of their number."""
    steps_per_rollout: int = 32
    """Steps in each environment between updates; episodes go on across updates."""
    normalise_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return, and clip them to +-10."""
    lag: int = 0
    """Updates by which the weights that act lag behind those that learn."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "steps_per_rollout"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.lag < 0:
            raise InputError(f"lag is {self.lag}; it must not be negative.")


class _Fragments(NamedTuple):
    """What the environments showed during a rollout: numpy, `(N, T)`, observations `(N, T, O)` and raw."""

    observations: np.ndarray
    next_observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray

    @classmethod
    def empty(cls, observations: np.ndarray, num_steps: int) -> _Fragments:
        num_envs, size = observations.shape
        acted_on, led_to = np.empty((2, num_envs, num_steps, size), observations.dtype)
        terminated, truncated, mask = np.empty((3, num_envs, num_steps), dtype=bool)
        return cls(acted_on, led_to, np.empty((num_envs, num_steps)), terminated, truncated, mask)


class EnvCollector:
    """Steps every environment `steps_per_rollout` times; a row of the rollout is one environment's fragment.

    Args:
        envs: This process's share of the environments, as from `make_envs`.
        gamma: Discount of the returns that `normalise_rewards` scales by.
        reference: A policy to measure the KL to; it normalises observations by its own moments.
    """

    def __init__(
        self,
        envs: VectorEnv,
        *,
        config: Config,
        gamma: float,
        seed: int,
        accelerator: Accelerator,
        reference: ControlPolicy | None = None,
    ) -> None:
        if envs.num_envs * accelerator.num_processes != config.num_envs:
            raise InputError(
                f"num_envs is {config.num_envs}, but {accelerator.num_processes} processes hold {envs.num_envs} "
                "environments each; choose a multiple of the number of processes."
            )
        self.envs, self.config, self.gamma, self.seed = envs, config, gamma, seed
        self.accelerator = accelerator
        self.reference = None if reference is None else reference.to(accelerator.device)
        self.spaces = spaces_of(envs)
        self.episodes = Episodes(envs, seed=seed, first_id=accelerator.process_index * envs.num_envs)
        self.discounted_returns = np.zeros(envs.num_envs)
        self.return_moments = Normalizer(1).to(accelerator.device)
        self.env_steps = 0

    @torch.no_grad()
    def collect(self, policy: ControlPolicy, update: int) -> Collected:
        """One rollout; the moments of observations are those of the start, and move after it."""
        device, ids = policy.weight.device, torch.as_tensor(self.episodes.ids)
        shape = (len(ids), self.config.steps_per_rollout, self.spaces.action_size)
        draws = uniforms(self.seed, "actions", update, ids, shape[1] * shape[2]).view(shape).to(device)
        seen = _Fragments.empty(self.episodes.observations, self.config.steps_per_rollout)
        outputs, actions, samples = [], [], []
        for t in range(self.config.steps_per_rollout):
            seen.observations[:, t] = self.episodes.observations
            outputs.append(policy.actor(policy.normalise(_tensor(seen.observations[:, t], device))))
            actions.append(policy.sample(outputs[-1], draws[:, t]))
            step = self.episodes.step(self.spaces.for_env(actions[-1]))
            for name in ("next_observations", "rewards", "terminated", "truncated", "mask"):
                getattr(seen, name)[:, t] = getattr(step, name)
            samples += step.finished
        rollout = self._rollout(policy, seen, torch.stack(outputs, dim=1), torch.stack(actions, dim=1), ids)
        if policy.config.normalise_observations:
            acted_on = _tensor(seen.observations[seen.mask], device)
            policy.normalizer.update(acted_on, partial(global_sum, self.accelerator))
        return Collected(rollout, self._metrics(seen, samples), samples)

    def state_dict(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes.state_dict(),
            "discounted_returns": torch.tensor(self.discounted_returns),
            "return_moments": dict(self.return_moments.state_dict()),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self.discounted_returns = np.array(state["discounted_returns"])
        self.return_moments.load_state_dict(state["return_moments"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        self.envs.close()

    def _rollout(
        self, policy: ControlPolicy, seen: _Fragments, outputs: Tensor, actions: Tensor, ids: Tensor
    ) -> Rollout:
        device, dtype = outputs.device, outputs.dtype
        raw = _tensor(seen.observations, device)
        inputs = {"observations": policy.normalise(raw), "actions": actions}
        logprobs, _ = policy.score(outputs, actions)
        values = policy.values(inputs["observations"], actions)
        next_inputs = {"observations": policy.normalise(_tensor(seen.next_observations, device))}
        ref_logprobs = None
        if self.reference is not None:
            ref_inputs = {"observations": self.reference.normalise(raw), "actions": actions}
            ref_logprobs = self.reference(ref_inputs).logprobs
        return Rollout(
            inputs=inputs,
            behaviour_logprobs=logprobs,
            logprobs=logprobs,
            values=values,
            next_values=_next_values(policy, seen, values, next_inputs),
            rewards=_tensor(self._scaled_rewards(seen), device).to(dtype),
            dones=_tensor(seen.terminated | seen.truncated, device),
            mask=_tensor(seen.mask, device),
            sample_ids=ids.to(device),
            costs=torch.full_like(ids, self.config.steps_per_rollout, device=device),
            ref_logprobs=ref_logprobs,
            terminals=_tensor(seen.terminated, device),
            next_inputs=next_inputs,
        )

    def _scaled_rewards(self, seen: _Fragments) -> np.ndarray:
        """The whole rollout is divided by one number, which has already seen it: so the first one is scaled too."""
        if not self.config.normalise_rewards:
            return seen.rewards
        dones = seen.terminated | seen.truncated
        returns = np.empty_like(seen.rewards)
        for t in range(returns.shape[1]):
            self.discounted_returns = self.gamma * self.discounted_returns + seen.rewards[:, t]
            returns[:, t] = self.discounted_returns
            self.discounted_returns[dones[:, t]] = 0.0
        moments = self.return_moments
        moments.update(torch.as_tensor(returns[seen.mask]).unsqueeze(1), partial(global_sum, self.accelerator))
        return np.clip(seen.rewards / float(moments.std()), -CLIP, CLIP)

    def _metrics(self, seen: _Fragments, samples: list[dict[str, Any]]) -> dict[str, float]:
        """Over all processes. Returns and lengths are those of episodes that ended, and absent if none did."""
        returns = np.array([sample["return"] for sample in samples])
        sums = [len(samples), returns.sum(), np.square(returns).sum(), sum(sample["length"] for sample in samples)]
        sums += [seen.rewards.sum(), seen.mask.sum()]
        local = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
        episodes, total, squares, length, reward, steps = global_sum(self.accelerator, local).tolist()
        self.env_steps += int(steps)
        metrics = {"episodes": int(episodes), "env_steps": self.env_steps, "reward_per_step": reward / max(steps, 1.0)}
        if episodes:
            mean = total / episodes
            metrics |= {
                "return_mean": mean,
                "return_std": max(squares / episodes - mean * mean, 0.0) ** 0.5,
                "episode_length_mean": length / episodes,
            }
        return metrics


def _next_values(policy: ControlPolicy, seen: _Fragments, values: Tensor, next_inputs: dict[str, Tensor]) -> Tensor:
    """The next column's values; where an episode or the fragment is cut off, that of the observation it led to."""
    terminated = _tensor(seen.terminated, values.device)
    if policy.config.critic == "action":
        return policy.state_values(next_inputs).masked_fill(terminated, 0.0)
    cut = seen.truncated.copy()
    cut[:, -1] = True
    where = _tensor(cut, values.device)
    next_values = torch.cat([values[:, 1:], values[:, -1:]], dim=1)
    next_values[where] = policy.state_values({"observations": next_inputs["observations"][where]})
    return next_values.masked_fill(terminated, 0.0)


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(array).to(device)
