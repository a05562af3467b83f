"""Acting in environments: fragments of episodes as a Rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium.vector import VectorEnv

from rlhf.control.envs import spaces_of
from rlhf.control.episodes import Episodes
from rlhf.control.experience import Experience, episode_metrics, observe, rollout_of, scaled_rewards
from rlhf.control.normalize import Normalizer
from rlhf.control.policy import ControlPolicy
from rlhf.control.settings import CollectSteps
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.rollout import Collected


class EnvCollector:
    """Steps every environment `steps` times; a row of the rollout is one environment's fragment.

    Args:
        envs: This process's share of the environments, as from `make_envs`.
        seed: Several are several runs side by side: each has `num_envs` of the environments, in the order of the seeds.
        gamma: Discount of the returns that `normalise_rewards` scales by.
        reference: A policy to measure the KL to; it normalises observations by its own moments.
    """

    def __init__(
        self,
        envs: VectorEnv,
        *,
        config: CollectSteps,
        gamma: float,
        seed: int | Sequence[int],
        accelerator: Accelerator,
        reference: ControlPolicy | None = None,
    ) -> None:
        self.seeds = [seed] if isinstance(seed, int) else list(seed)
        if envs.num_envs * accelerator.num_processes != config.num_envs * len(self.seeds):
            raise InputError(
                f"num_envs is {config.num_envs}, but {accelerator.num_processes} processes hold {envs.num_envs} "
                "environments each; choose a multiple of the number of processes."
            )
        self.envs, self.config, self.gamma = envs, config, gamma
        self.accelerator = accelerator
        self.reference = None if reference is None else reference.to(accelerator.device)
        self.spaces = spaces_of(envs)
        first_id = accelerator.process_index * envs.num_envs // len(self.seeds)
        self.episodes = Episodes(envs, seed=self.seeds, first_id=first_id)
        self.discounted_returns = np.zeros(envs.num_envs)
        self.return_moments = Normalizer(1).to(accelerator.device)
        self.env_steps = 0

    @torch.no_grad()
    def collect(self, policy: ControlPolicy, update: int) -> Collected:
        """One rollout; the moments of observations are those of the start, and move after it."""
        device, ids = policy.weight.device, torch.as_tensor(self.episodes.ids)
        shape = (len(ids), self.config.steps, self.spaces.action_size)
        shares = zip(self.seeds, ids.chunk(len(self.seeds)), strict=True)
        drawn = [uniforms(seed, "actions", update, share, shape[1] * shape[2]) for seed, share in shares]
        draws = torch.cat(drawn).view(shape).to(device)
        observed = self.episodes.observations
        seen = Experience.empty(shape[:2], observed.shape[1], observed.dtype)
        outputs, actions, samples = [], [], []
        for t in range(self.config.steps):
            seen.observations[:, t] = self.episodes.observations
            outputs.append(policy.actor(policy.normalise(torch.as_tensor(seen.observations[:, t]).to(device))))
            actions.append(policy.sample(outputs[-1], draws[:, t]))
            step = self.episodes.step(policy.for_env(actions[-1]))
            for name in ("next_observations", "rewards", "terminated", "truncated", "mask"):
                getattr(seen, name)[:, t] = getattr(step, name)
            samples += step.finished
        rewards = seen.rewards
        if self.config.normalise_rewards:
            rewards = scaled_rewards(
                seen, self.discounted_returns, self.return_moments, gamma=self.gamma, accelerator=self.accelerator
            )
        rollout = rollout_of(
            policy,
            seen,
            outputs=torch.stack(outputs, dim=1),
            actions=torch.stack(actions, dim=1),
            rewards=rewards,
            sample_ids=ids,
            reference=self.reference,
        )
        observe(policy, seen, self.accelerator)
        metrics = episode_metrics(seen, samples, self.accelerator, steps_before=self.env_steps)
        self.env_steps = int(metrics["env_steps"])
        return Collected(rollout, metrics, samples)

    def state_dict(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes.state_dict(),
            "discounted_returns": torch.tensor(self.discounted_returns),
            "return_moments": dict(self.return_moments.state_dict()),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self.discounted_returns = state["discounted_returns"].numpy().copy()
        self.return_moments.load_state_dict(state["return_moments"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        self.envs.close()
