"""A road with a ditch: the smallest problem on which cloning fails as the horizon squared (Ross and Bagnell, 2010;
https://proceedings.mlr.press/v9/ross10a.html).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from theory.mdp import Mdp

ROAD, DITCH = 0, 1
STRAIGHT, TURN = 0, 1


class Road(gymnasium.Env):
    """Straight keeps to the road, or to the ditch; a turn leads from one to the other. A step to the road pays 1.

    A demonstrator who always gets it right never shows how to leave the ditch. Whoever clones him, errs on the road
    with probability e and does not turn in the ditch loses sum_{t=1}^T 1 - (1 - e)^t <= e T (T + 1) / 2 in T steps; who
    errs with e in both loses e T. Never ends by itself; observes where one is.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own annotation)
    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.state = ROAD

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = ROAD
        return self._get_obs(), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.state = ROAD if (action == STRAIGHT) == (self.state == ROAD) else DITCH
        return self._get_obs(), float(self.state == ROAD), False, False, {}

    @property
    def states(self) -> np.ndarray:
        """Every state in which one can act, in the order of `mdp`."""
        return np.array([ROAD, DITCH])

    @property
    def mdp(self) -> Mdp:
        """Without the time limit: sum over `step_marginals` for a finite horizon."""
        transitions = torch.zeros(2, 2, 2, dtype=torch.float64)
        transitions[:, STRAIGHT] = torch.eye(2, dtype=torch.float64)
        transitions[:, TURN] = torch.eye(2, dtype=torch.float64).flip(0)
        return Mdp(transitions, transitions[:, :, ROAD].clone(), torch.tensor([1.0, 0.0], dtype=torch.float64))

    def _get_obs(self) -> int:
        return int(self.state)
