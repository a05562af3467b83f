"""Evaluation on control: whole episodes with fixed seeds, greedy and sampled, kept in a file that can be replayed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.numpy import save

from rlhf.control.cartpole import BatchedCartPole
from rlhf.control.envs import EnvSource, Singles, close, make_env, make_many, name_of
from rlhf.control.policy import ControlPolicy
from rlhf.control.settings import EvaluateEpisodes
from rlhf.control.trial import no_global_draws
from rlhf.core.random import derive_seed, uniforms
from rlhf.errors import InputError
from rlhf.runs.disk import one_line
from rlhf.runs.evaluate import Evaluation

_STEPS_PER_DRAW = 256

Act = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Raw observations `(M, O)`, which of the episodes these are `(M,)`, and the step, to actions for the environment."""


class Episode(NamedTuple):
    """One episode, exactly: a fresh environment, reset with `seed` and given `actions`, pays `rewards`."""

    number: int
    seed: int
    sampled: bool
    actions: np.ndarray
    rewards: np.ndarray

    def total(self) -> float:
        # One by one: a sum must not depend on how a longer array would be paired.
        return float(sum(self.rewards.tolist()))


class Evaluator:
    """Plays the same episodes for every policy it is called with; its environments live until `close`.

    Args:
        cache: File that keeps the episodes of the latest evaluation, for `replay_episodes`.
    """

    def __init__(
        self,
        env_id: EnvSource,
        *,
        config: EvaluateEpisodes,
        seed: int,
        accelerator: Accelerator,
        cache: Path | None = None,
    ) -> None:
        self.env_id, self.config, self.seed = env_id, config, seed
        self.accelerator, self.cache = accelerator, cache
        self.envs = make_many(env_id, len(self._share(max(config.episodes, config.sampled_episodes))))

    def __call__(self, policy: ControlPolicy) -> Evaluation:
        with no_global_draws(name_of(self.env_id)):
            episodes = self._play(policy, self.config.episodes, sampled=False)
            episodes += self._play(policy, self.config.sampled_episodes, sampled=True)
        if self.accelerator.num_processes > 1:
            episodes = sorted(gather_object(episodes), key=lambda episode: (episode.sampled, episode.number))
        if self.cache is not None and self.accelerator.is_main_process:
            with one_line(self.cache.parent):
                save_episodes(self.cache, name_of(self.env_id), episodes)
        metrics = _metrics("eval", [episode for episode in episodes if not episode.sampled])
        if self.config.sampled_episodes:
            metrics |= _metrics("eval_sampled", [episode for episode in episodes if episode.sampled])
        return Evaluation(metrics, [_record(episode) for episode in episodes])

    def close(self) -> None:
        close(self.envs)

    def _share(self, num_episodes: int) -> list[int]:
        """Numbers of this process's episodes."""
        return list(range(self.accelerator.process_index, num_episodes, self.accelerator.num_processes))

    def _play(self, policy: ControlPolicy, num_episodes: int, *, sampled: bool) -> list[Episode]:
        numbers = self._share(num_episodes)
        seeds = [derive_seed(self.seed, "evaluation", number) for number in numbers]
        act = _sampled(policy, self.seed, numbers) if sampled else _greedy(policy)
        played = run_episodes(act, self.envs, seeds)
        return [
            Episode(number, seed, sampled, one.actions, one.rewards)
            for number, seed, one in zip(numbers, seeds, played, strict=True)
        ]


class Played(NamedTuple):
    """One whole episode: T actions and rewards, T + 1 raw observations, and whether its last state is terminal."""

    actions: np.ndarray
    rewards: np.ndarray
    observations: np.ndarray
    terminated: bool


def run_episodes(act: Act, envs: Sequence[gymnasium.Env] | BatchedCartPole, seeds: Sequence[int]) -> list[Played]:
    """One episode for each seed, each in its own environment; environments drop out as their episodes end."""
    if not seeds:
        return []
    group = envs if isinstance(envs, BatchedCartPole) else Singles(envs)
    observations, active = group.start(seeds), np.arange(len(seeds))
    ended_by_itself = np.zeros(len(seeds), dtype=bool)
    rows, seen = [active], [observations]
    taken: list[np.ndarray] = []
    paid: list[np.ndarray] = []
    while len(active):
        taken.append(act(observations, active, len(taken)))
        observations, rewards, terminated, truncated = group.step_some(active, taken[-1])
        rows.append(active)
        seen.append(observations)
        paid.append(rewards)
        ended_by_itself[active] = terminated
        going = ~(terminated | truncated)
        observations, active = observations[going], active[going]
    actions, returns = (_by_episode(rows[1:], part, len(seeds)) for part in (taken, paid))
    observed = _by_episode(rows, seen, len(seeds))
    columns = zip(actions, returns, observed, ended_by_itself.tolist(), strict=True)
    return [Played(a, r, o, end) for a, r, o, end in columns]


def _by_episode(rows: list[np.ndarray], steps: list[np.ndarray], num_episodes: int) -> list[np.ndarray]:
    """What was seen step by step, of the episodes `rows`, sorted into one array an episode."""
    owners = np.concatenate(rows)
    ordered = np.concatenate(steps)[np.argsort(owners, kind="stable")]
    return np.split(ordered, np.cumsum(np.bincount(owners, minlength=num_episodes))[:-1])


def save_episodes(path: Path, env_id: str, episodes: Sequence[Episode]) -> None:
    """Seeds, actions and rewards in one safetensors file, which replaces an older one at once or not at all."""
    arrays = {
        "numbers": np.array([episode.number for episode in episodes]),
        "seeds": np.array([episode.seed for episode in episodes]),
        "sampled": np.array([episode.sampled for episode in episodes]),
        "lengths": np.array([len(episode.rewards) for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Not by `save_file`, which makes files that only their owner may read.
    partial.write_bytes(save(arrays, metadata={"env_id": env_id}))
    os.replace(partial, path)


def load_episodes(path: Path) -> tuple[str, list[Episode]]:
    """The environment's name and the episodes that `save_episodes` wrote."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        env_id = file.metadata()["env_id"]
    ends = np.cumsum(arrays["lengths"])[:-1]
    columns = [arrays[name].tolist() for name in ("numbers", "seeds", "sampled")]
    parts = [np.split(arrays[name], ends) for name in ("actions", "rewards")]
    return env_id, [Episode(*fields) for fields in zip(*columns, *parts, strict=True)]


def replay_episodes(path: Path) -> list[Episode]:
    """Plays a file of episodes again in a fresh environment.

    Raises:
        InputError: A reward is not exactly the one recorded, or an episode ends elsewhere.
    """
    env_id, episodes = load_episodes(path)
    for episode in episodes:
        env = make_env(env_id)
        rewards = run_episodes(_recorded(episode.actions), [env], [episode.seed])[0].rewards
        env.close()
        if not np.array_equal(rewards, episode.rewards):
            raise InputError(
                f"episode {episode.number} of {path} returns {float(sum(rewards))} when replayed, not "
                f"{episode.total()}: {env_id} is another version, or not a function of its seed and actions."
            )
    return episodes


def _greedy(policy: ControlPolicy) -> Act:
    def act(observations: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
        return policy.for_env(policy.act(torch.as_tensor(observations), None)[0])

    return act


def _sampled(policy: ControlPolicy, seed: int, numbers: Sequence[int]) -> Act:
    ids, size = torch.tensor(numbers, dtype=torch.int64), policy.spaces.action_size
    draws = torch.empty(0)

    def act(observations: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
        nonlocal draws
        block, offset = divmod(step, _STEPS_PER_DRAW)
        if offset == 0:
            flat = uniforms(seed, "evaluation actions", block, ids, _STEPS_PER_DRAW * size)
            draws = flat.view(len(ids), _STEPS_PER_DRAW, size)
        actions, _, _ = policy.act(torch.as_tensor(observations), draws[torch.as_tensor(episodes), offset])
        return policy.for_env(actions)

    return act


def _recorded(actions: np.ndarray) -> Act:
    def act(observations: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
        # An episode that outlives its record repeats the last action: its length gives it away.
        return actions[[min(step, len(actions) - 1)]]

    return act


def _metrics(prefix: str, episodes: Sequence[Episode]) -> dict[str, float]:
    returns = np.array([episode.total() for episode in episodes])
    lengths = np.array([len(episode.rewards) for episode in episodes])
    return {
        f"{prefix}_return_mean": float(returns.mean()),
        f"{prefix}_return_std": float(returns.std()),
        f"{prefix}_return_min": float(returns.min()),
        f"{prefix}_length_mean": float(lengths.mean()),
        f"{prefix}_reward_per_step": float(returns.sum() / lengths.sum()),
    }


def _record(episode: Episode) -> dict[str, Any]:
    return {
        "return": episode.total(),
        "length": len(episode.rewards),
        "episode": episode.number,
        "seed": episode.seed,
        "sampled": episode.sampled,
    }
