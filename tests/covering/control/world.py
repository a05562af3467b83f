"""A tiny environment whose actions, ends and pay are mechanisms."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

# Steps after which episodes are cut, where they are.
LIMIT = 8
ACTIONS: dict[str, spaces.Space] = {
    "choices": spaces.Discrete(3, start=5),
    # The second number is scaled.
    "vectors": spaces.Box(np.array([-1.0, -10.0], np.float32), np.array([1.0, 30.0], np.float32)),
}


class World(gymnasium.Env):
    """A place that actions move, with some noise; being near 0 pays.

    Args:
        ends: terminated: after as many steps as the start says, or far out; cut: by a time limit of LIMIT; both; open:
            by a time limit that no rollout here reaches.
        paid: Or every reward is 0.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,))

    def __init__(self, actions: str, ends: str, *, paid: bool = True) -> None:
        self.action_space, self.kind, self.ends, self.paid = ACTIONS[actions], actions, ends, paid
        self.state = np.zeros(2)
        self.left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.5, 0.5, 2)
        self.taken, self.left = 0, int(self.np_random.integers(3, 7))
        return self._get_obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        move = self._move(action)
        place, speed = self.state
        speed = 0.5 * speed + 0.3 * move + 0.1 * self.np_random.normal()
        self.state = np.array([place + speed, speed])
        over = self.ends in ("terminated", "both") and (self.taken >= self.left or abs(self.state[0]) > 1.5)
        limit = {"cut": LIMIT, "both": 4}.get(self.ends, 100)
        reward = 1.0 - place**2 - 0.1 * move**2 if self.paid else 0.0
        return self._get_obs(), float(reward), bool(over), self.taken >= limit, {}

    def _move(self, action: Any) -> float:
        if self.kind == "choices":
            return float(action) - 6.0
        low, high = self.action_space.low, self.action_space.high
        return float(((action - low) / (high - low) * 2.0 - 1.0).mean())

    def _get_obs(self) -> np.ndarray:
        return self.state.astype(np.float32)
