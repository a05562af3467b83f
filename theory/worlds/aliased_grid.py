"""The aliased grid world: two cells look alike, so the best policy is a stochastic one (Silver, 2015, lecture 7)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from theory.mdp import Mdp

NORTH, EAST, SOUTH, WEST = range(4)
# The row of cells in which one walks, west to east, and what one finds south of each: 0 is a wall.
BELOW = (-1.0, 0.0, 1.0, 0.0, -1.0)
END = len(BELOW)
# Cells are known by their walls alone: 1 and 3 have the same.
OBSERVED = (0, 1, 2, 1, 3, 4)


class AliasedGrid(gymnasium.Env):
    """Five cells in a row; south of the middle one lies a treasure (+1), south of both ends a pit (-1).

    Episodes start in any of the five, and end below. One sees only the walls around: the cells beside the middle look
    alike, so a deterministic policy that enters from one side walks away from the treasure on the other, for ever. Who
    tosses a coin there finds it from everywhere. Observes the west end, beside the middle, the middle, the east end,
    and the end of the episode as 0 to 4.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own annotation)
    observation_space = spaces.Discrete(len(set(OBSERVED)))
    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(END))
        return self._get_obs(), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = BELOW[self.state] if action == SOUTH else 0.0
        if reward:
            self.state = END
        elif action in (EAST, WEST):
            self.state = min(max(self.state + (1 if action == EAST else -1), 0), END - 1)
        return self._get_obs(), reward, self.state == END, False, {}

    @property
    def states(self) -> np.ndarray:
        """Every state in which one can act, in the order of `mdp`."""
        return np.arange(END)

    @property
    def mdp(self) -> Mdp:
        """Of the cells, which one does not see: a policy of this environment is `table[OBSERVED[:-1]]`."""
        cells = torch.arange(END)
        transitions = torch.zeros(END, 4, END, dtype=torch.float64)
        rewards = torch.zeros(END, 4, dtype=torch.float64)
        rewards[:, SOUTH] = torch.tensor(BELOW, dtype=torch.float64)
        transitions[cells, NORTH, cells] = 1.0
        transitions[cells, EAST, (cells + 1).clamp(max=END - 1)] = 1.0
        transitions[cells, WEST, (cells - 1).clamp(min=0)] = 1.0
        transitions[cells, SOUTH, cells] = (rewards[:, SOUTH] == 0).double()
        return Mdp(transitions, rewards, torch.full((END,), 1.0 / END, dtype=torch.float64))

    def _get_obs(self) -> int:
        return OBSERVED[self.state]
