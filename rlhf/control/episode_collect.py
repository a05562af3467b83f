"""Acting in environments: whole episodes as a Rollout, several from one start state where groups are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.control.cartpole import BatchedCartPole
from rlhf.control.collect import CollectSteps
from rlhf.control.envs import close
from rlhf.control.evaluate import Played, run_episodes
from rlhf.control.experience import Experience, episode_metrics, observe, rollout_of, scaled_rewards
from rlhf.control.normalize import Normalizer
from rlhf.control.policy import ControlPolicy
from rlhf.core.random import derive_seed, uniforms
from rlhf.errors import InputError
from rlhf.reduce import global_max
from rlhf.rollout import Collected

# Drawn at first for each episode, and twice as many whenever they do not suffice.
STEPS_DRAWN = 256


class EpisodeCollector:
    """Plays `episodes` whole episodes; a row of the rollout is one of them, masked after its end.

    Consecutive rows of `episodes_per_start` form a group: they begin in one start state and act by draws of their
    own. The start of group g at update u follows from (seed, u, g), the actions of row i from (seed, u, i), so that
    nothing need be remembered of an environment. T is that of the longest episode of all ranks.

    Args:
        envs: Plain environments, one for each of this process's episodes; ended ones are not stepped any further.
        gamma: Discount of the returns that `normalise_rewards` scales by.
        reference: A policy to measure the KL to; it normalises observations by its own moments.
    """

    def __init__(
        self,
        envs: Sequence[gymnasium.Env] | BatchedCartPole,
        *,
        config: CollectSteps,
        gamma: float,
        seed: int,
        accelerator: Accelerator,
        reference: ControlPolicy | None = None,
    ) -> None:
        num_ranks = accelerator.num_processes
        if config.episodes == 0 or len(envs) * num_ranks != config.episodes:
            raise InputError(
                f"episodes is {config.episodes}, but {num_ranks} processes hold {len(envs)} "
                "environments each; give one environment an episode, and a number of episodes that divides evenly."
            )
        if len(envs) % config.episodes_per_start:
            raise InputError(
                f"a process has {len(envs)} of the {config.episodes} episodes, which splits a group of "
                f"{config.episodes_per_start} from one start; make episodes a multiple of "
                f"{config.episodes_per_start * num_ranks}."
            )
        self.envs, self.config, self.gamma, self.seed = envs, config, gamma, seed
        self.accelerator = accelerator
        self.reference = None if reference is None else reference.to(accelerator.device)
        self.sample_ids = torch.arange(len(envs)) + accelerator.process_index * len(envs)
        self.groups = self.sample_ids // config.episodes_per_start
        self.return_moments = Normalizer(1).to(accelerator.device)
        self.env_steps = 0

    @torch.no_grad()
    def collect(self, policy: ControlPolicy, update: int) -> Collected:
        """One rollout; the moments of observations are those of the start, and move after it."""
        seeds = [derive_seed(self.seed, "start", update, group) for group in self.groups.tolist()]
        actor = _Actor(policy, seed=self.seed, update=update, sample_ids=self.sample_ids)
        played = run_episodes(actor.act, self.envs, seeds)
        longest = max(len(episode.rewards) for episode in played)
        num_steps = int(global_max(self.accelerator, torch.tensor(longest, device=self.accelerator.device)))
        seen = _experience(played, num_steps)
        rewards = seen.rewards
        if self.config.normalise_rewards:
            rewards = scaled_rewards(
                seen, np.zeros(len(played)), self.return_moments, gamma=self.gamma, accelerator=self.accelerator
            )
        outputs, actions = actor.taken(num_steps)
        rollout = rollout_of(
            policy,
            seen,
            outputs=outputs,
            actions=actions,
            rewards=rewards,
            sample_ids=self.sample_ids,
            reference=self.reference,
            groups=self.groups,
        )
        observe(policy, seen, self.accelerator)
        samples = [
            {"return": float(sum(episode.rewards)), "length": len(episode.rewards), "episode": number}
            | {"group": group, "seed": seed}
            for episode, number, group, seed in zip(
                played, self.sample_ids.tolist(), self.groups.tolist(), seeds, strict=True
            )
        ]
        metrics = episode_metrics(seen, samples, self.accelerator, steps_before=self.env_steps)
        self.env_steps = int(metrics["env_steps"])
        return Collected(rollout, metrics, samples)

    def state_dict(self) -> dict[str, Any]:
        return {"return_moments": dict(self.return_moments.state_dict()), "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.return_moments.load_state_dict(state["return_moments"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        close(self.envs)


class _Actor:
    """Acts in the episodes that go on, and remembers what it did in which row and column."""

    def __init__(self, policy: ControlPolicy, *, seed: int, update: int, sample_ids: Tensor) -> None:
        self.policy, self.seed, self.update, self.sample_ids = policy, seed, update, sample_ids
        self._draws = self._drawn(STEPS_DRAWN)
        self._outputs: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._rows: list[Tensor] = []

    def act(self, observations: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
        if step == self._draws.shape[1]:
            self._draws = self._drawn(2 * step)
        policy, rows = self.policy, torch.as_tensor(episodes).to(self.policy.weight.device)
        self._rows.append(rows)
        self._outputs.append(policy.actor(policy.normalise(torch.as_tensor(observations).to(rows.device))))
        self._actions.append(policy.sample(self._outputs[-1], self._draws[rows, step]))
        return policy.for_env(self._actions[-1])

    def taken(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Outputs of the actor and actions, `(N, T, ...)`, 0 after an episode's end."""
        rows = torch.cat(self._rows)
        columns = torch.cat([torch.full_like(rows, t) for t, rows in enumerate(self._rows)])
        padded = []
        for cells in (torch.cat(self._outputs), torch.cat(self._actions)):
            padded.append(cells.new_zeros(len(self.sample_ids), num_steps, *cells.shape[1:]))
            padded[-1][rows, columns] = cells
        return padded[0], padded[1]

    def _drawn(self, num_steps: int) -> Tensor:
        """A longer draw begins like a shorter one: column t depends on t alone."""
        size = self.policy.spaces.action_size
        flat = uniforms(self.seed, "actions", self.update, self.sample_ids, num_steps * size)
        return flat.view(len(flat), num_steps, size).to(self.policy.weight.device)


def _experience(played: Sequence[Played], num_steps: int) -> Experience:
    first = played[0].observations
    seen = Experience.empty((len(played), num_steps), first.shape[1], first.dtype)
    for i, episode in enumerate(played):
        length = len(episode.rewards)
        seen.observations[i, :length] = episode.observations[:-1]
        seen.next_observations[i, :length] = episode.observations[1:]
        seen.rewards[i, :length] = episode.rewards
        seen.mask[i, :length] = True
        seen.terminated[i, length - 1] = episode.terminated
        seen.truncated[i, length - 1] = not episode.terminated
    return seen
