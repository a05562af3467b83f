"""Tiny environments whose every number is known, and policies with a known critic."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from accelerate import Accelerator
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from rlhf.control.collect import CollectSteps, EnvCollector
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig

CPU = Accelerator(cpu=True)


class Walk(gymnasium.Env):
    """Observes x = 0, 1, 2, ... whatever one does; the step from x pays x + 1; x = terminal or limit ends it."""

    observation_space = spaces.Box(0.0, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, terminal: int = 10**6, limit: int = 10**6) -> None:
        self.terminal, self.limit, self.x = terminal, limit, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x = 0
        return np.array([0.0]), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x += 1
        return np.array([float(self.x)]), float(self.x), self.x == self.terminal, self.x == self.limit, {}


class Lottery(Walk):
    """Three steps; each pays a number drawn from the reset's seed, minus the action."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x += 1
        reward = float(self.np_random.random()) - float(action)
        return np.array([float(self.x)]), reward, self.x == 3, False, {}


class Forgetful(Walk):
    """Not a function of its reset seed: it counts its episodes."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episodes += 1
        return np.array([float(self.episodes)]), {}


class Named(Walk):
    """Discrete actions that start at 5, observations that are discrete; pays the action."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2, start=5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert action in (5, 6)
        self.x += 1
        return self.x, float(action), self.x == 2, False, {}


for name, world in {"Lottery": Lottery, "Named": Named}.items():
    gymnasium.register(f"{name}-v0", entry_point=world)
gymnasium.register("Endless-v0", entry_point=Walk)
gymnasium.register("Walk-v0", entry_point=Walk, kwargs={"terminal": 4})


def vector(*envs: gymnasium.Env, mode: AutoresetMode = AutoresetMode.DISABLED) -> SyncVectorEnv:
    return SyncVectorEnv([lambda env=env: env for env in envs], copy=False, autoreset_mode=mode)


def hundredfold_policy(envs: SyncVectorEnv, **config: Any) -> ControlPolicy:
    """V(x) = 100 x, and fair coins for actions."""
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(**config), seed=0).double()
    policy.critic = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        policy.critic.weight.fill_(100.0)
        policy.critic.bias.zero_()
        for parameter in policy.actor.parameters():
            parameter.zero_()
    return policy


def collector_of(envs: SyncVectorEnv, steps: int, *, seed: int = 0, gamma: float = 0.9, **options: Any) -> EnvCollector:
    reference = options.pop("reference", None)
    config = CollectSteps(num_envs=envs.num_envs, steps=steps, **options)
    return EnvCollector(envs, config=config, gamma=gamma, seed=seed, accelerator=CPU, reference=reference)


def bare(env_id: str) -> Any:
    """An environment by name, without wrappers."""
    return make_env(env_id).unwrapped
