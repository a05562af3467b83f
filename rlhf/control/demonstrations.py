"""Demonstrations on control, for behaviour cloning: what a policy or a hand-written controller does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlhf.control.envs import make_env
from rlhf.control.evaluate import run_episodes
from rlhf.control.policy import ControlPolicy
from rlhf.control.resets import get_state
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.rollout import Rollout

Controller = Callable[[np.ndarray], Any]
"""One raw observation to one action of the environment."""


def demonstrations(
    controller: ControlPolicy | Controller,
    learner: ControlPolicy,
    env_id: str,
    *,
    episodes: int,
    seed: int,
) -> Rollout:
    """The steps of whole episodes, the same on every process; a row is one step. A policy demonstrates greedily.

    Args:
        learner: The policy that will clone them. If it normalises observations, its moments take in all of these
            first, so that what it learns now still holds when it collects experience of its own.
    """
    seen: list[np.ndarray] = []
    done: list[np.ndarray] = []

    def watch(observations: np.ndarray, actions: np.ndarray, envs: list[gymnasium.Env]) -> None:
        seen.append(observations)
        done.append(actions)

    _demonstrate(controller, env_id, watch, episodes=episodes, seed=seed)
    raw = torch.as_tensor(np.concatenate(seen)).to(learner.weight.device)
    if learner.config.normalise_observations:
        # Every process has played all of them: nothing is left to add up.
        learner.normalizer.update(raw, lambda sums: sums)
    actions = learner.from_env(np.concatenate(done)).to(raw.device)
    return step_rows(learner, raw, actions, torch.arange(len(raw), device=raw.device))


def demonstrated_states(controller: ControlPolicy | Controller, env_id: str, *, episodes: int, seed: int) -> np.ndarray:
    """The states that `demonstrations` with the same arguments acts in, for resets to them."""
    states: list[np.ndarray] = []

    def watch(observations: np.ndarray, actions: np.ndarray, envs: list[gymnasium.Env]) -> None:
        states.extend(get_state(env) for env in envs)

    _demonstrate(controller, env_id, watch, episodes=episodes, seed=seed)
    return np.array(states)


def actions_of(controller: ControlPolicy | Controller, observations: np.ndarray) -> np.ndarray:
    """What it does on each raw observation, as the environment takes it; a policy acts greedily."""
    if isinstance(controller, nn.Module):
        policy: Any = controller
        return policy.for_env(policy.act(torch.as_tensor(observations), None)[0])
    return np.array([controller(observation) for observation in observations])


def step_rows(learner: ControlPolicy, raw: Tensor, actions: Tensor, sample_ids: Tensor) -> Rollout:
    """Raw observations and the policy's names of actions as a rollout, one row a step."""
    if not learner.spaces.num_actions:
        actions = actions.to(learner.weight.dtype)
    return Rollout.demonstrations(
        inputs={"observations": learner.normalise(raw).unsqueeze(1), "actions": actions.unsqueeze(1)},
        mask=torch.ones(len(sample_ids), 1, dtype=torch.bool, device=raw.device),
        sample_ids=sample_ids,
        costs=torch.ones_like(sample_ids),
    )


def _demonstrate(
    controller: ControlPolicy | Controller, env_id: str, watch: Callable[..., None], *, episodes: int, seed: int
) -> None:
    """Plays whole episodes side by side; `watch` gets the observations, actions and environments of each step."""
    if episodes < 1:
        raise InputError(f"episodes is {episodes}; it must be at least 1.")
    envs = [make_env(env_id) for _ in range(episodes)]

    def act(observations: np.ndarray, which: np.ndarray, step: int) -> np.ndarray:
        actions = actions_of(controller, observations)
        watch(observations, actions, [envs[i] for i in which])
        return actions

    run_episodes(act, envs, [derive_seed(seed, "demonstration", i) for i in range(episodes)])
    for env in envs:
        env.close()
