"""The chain: the smallest problem on which policy gradients cannot explore (Agarwal et al., 2021, section 4;
https://arxiv.org/abs/1908.00261).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from theory.mdp import Mdp

NUM_ACTIONS = 3


class Chain(gymnasium.Env):
    """In each of the states 0, ..., H - 1 one of three actions leads on, and both others end the episode.

    The right action in the last state pays 1, so the uniform policy is paid with probability 3^-H, and a batch of N of
    its episodes has a gradient of exactly zero with probability (1 - 3^-H)^N. Which action is right differs from state
    to state without a pattern, the same for every H. Observes the state; H is the end.

    Args:
        horizon: H, at least 1.
        near_reward: Pay of one wrong action in state 0: where it is not 0, taking it is a local optimum.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own annotation)

    def __init__(self, horizon: int = 10, near_reward: float = 0.0) -> None:
        if horizon < 1:
            raise InputError(f"horizon is {horizon}; a chain has at least 1 state.")
        self.horizon, self.near_reward = horizon, near_reward
        self.right_actions = np.array([derive_seed(0, "right action", h) % NUM_ACTIONS for h in range(horizon)])
        self.near_action = (int(self.right_actions[0]) + 1) % NUM_ACTIONS
        self.observation_space = spaces.Discrete(horizon + 1)
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self._get_obs(), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        right = action == self.right_actions[self.state]
        near = self.state == 0 and action == self.near_action
        self.state = self.state + 1 if right else self.horizon
        done = self.state == self.horizon
        reward = float(right and done) + self.near_reward * float(near)
        return self._get_obs(), reward, bool(done), False, {}

    @property
    def states(self) -> np.ndarray:
        """Every state in which one can act, in the order of `mdp`."""
        return np.arange(self.horizon)

    @property
    def mdp(self) -> Mdp:
        transitions = torch.zeros(self.horizon, NUM_ACTIONS, self.horizon, dtype=torch.float64)
        rewards = torch.zeros(self.horizon, NUM_ACTIONS, dtype=torch.float64)
        start = torch.zeros(self.horizon, dtype=torch.float64)
        before_last = torch.arange(self.horizon - 1)
        transitions[before_last, self.right_actions[:-1], before_last + 1] = 1.0
        rewards[-1, self.right_actions[-1]] = 1.0
        rewards[0, self.near_action] = self.near_reward
        start[0] = 1.0
        return Mdp(transitions, rewards, start)

    def _get_obs(self) -> int:
        return int(self.state)
