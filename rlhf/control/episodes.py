"""Episodes in a vector environment: the three autoreset modes made one, a seed for each episode, exact resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from rlhf.core.random import derive_seed
from rlhf.errors import InputError


class Step(NamedTuple):
    """One step of every environment, numpy, leading axis N; the arrays hold until the next step."""

    next_observations: np.ndarray
    """What the action led to: at an episode's end its final observation, not the next episode's first."""
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    """The episode was cut off; its last state may be terminal all the same."""
    mask: np.ndarray
    """False where autoreset spent the step on a reset: it ignored its action, paid 0 and ended nothing."""
    finished: list[dict[str, Any]]
    """A record of each episode that ended."""


class Episodes:
    """Runs a vector environment so that whoever steps it need not know how it resets.

    With autoreset disabled, which is what `make_envs` gives, episode k of environment i starts from a seed of its
    own, and an environment's state is that seed and the actions since: a resumed run replays them. The two autoreset
    modes cannot be resumed, since the environments then draw their own starts.

    Args:
        seed: Of the run; several are several runs side by side, each with an equal share of the environments.
        first_id: Number of the first of a run's environments here among those of all processes.
    """

    def __init__(self, envs: VectorEnv, *, seed: int | Sequence[int], first_id: int) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise InputError(f"{envs} does not say how it resets; its metadata needs a gymnasium AutoresetMode.")
        self.envs, self.mode = envs, mode
        seeds = [seed] if isinstance(seed, int) else seed
        share = envs.num_envs // len(seeds)
        self.seeds = np.repeat(seeds, share)
        self.ids = np.tile(np.arange(first_id, first_id + share), len(seeds))
        self.numbers = np.zeros(envs.num_envs, dtype=np.int64)
        self.returns = np.zeros(envs.num_envs)
        self.lengths = np.zeros(envs.num_envs, dtype=np.int64)
        # What each environment was given since its episode began.
        self._actions: list[list[np.ndarray]] = [[] for _ in self.ids]
        self._resetting = np.zeros(envs.num_envs, dtype=bool)
        # Vector environments of their own kind take one number, not a list of seeds.
        starts: Any = self._seeds(~self._resetting) if self._seeded else derive_seed(seeds[0], "episodes", first_id)
        self.observations: np.ndarray = envs.reset(seed=starts)[0]

    def step(self, actions: np.ndarray) -> Step:
        """Acts in every environment; `observations` are then what to act on next."""
        observations, rewards, terminated, truncated, info = self.envs.step(actions)
        mask = ~self._resetting
        done = terminated | truncated
        self.returns += rewards
        self.lengths += mask
        if self._seeded:
            for i, given in enumerate(self._actions):
                given.append(actions[i])
        self.observations, finished = observations, []
        if done.any():
            observations = observations.copy()
            if self.mode is AutoresetMode.SAME_STEP:
                observations[done] = np.stack(list(info["final_obs"][done]))
            finished = self._end(done)
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting = done
        return Step(observations, rewards, terminated, truncated, mask, finished)

    def state_dict(self) -> dict[str, Any]:
        if not self._seeded:
            return {}
        given = [action for actions in self._actions for action in actions]
        return {
            "numbers": self.numbers.tolist(),
            "returns": torch.tensor(self.returns),
            "num_actions": [len(actions) for actions in self._actions],
            "actions": torch.tensor(np.array(given)),
            "observations": torch.tensor(self.observations),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replays the open episodes, and checks that they lead where they had led."""
        if not state or not self._seeded:
            raise InputError(f"{self.envs} resets itself, so it cannot be resumed; make it with autoreset disabled.")
        if len(state["numbers"]) != len(self.ids):
            raise InputError(f"the checkpoint has {len(state['numbers'])} environments and this run {len(self.ids)}.")
        self.numbers = np.array(state["numbers"])
        self.returns = state["returns"].numpy().copy()
        self.lengths = np.array(state["num_actions"])
        given = state["actions"].numpy()
        self._actions = [list(part) for part in np.split(given, np.cumsum(self.lengths)[:-1])]
        self._replay()
        if not np.array_equal(self.observations, state["observations"].numpy()):
            raise InputError(f"{self.envs} is not a function of its reset seed and actions, so it cannot be resumed.")

    def _replay(self) -> None:
        """Vector environments step together, so the open episodes are aligned at their ends, not their starts."""
        longest = int(self.lengths.max())
        starts = longest - self.lengths
        filler = next((actions[0] for actions in self._actions if actions), None)
        seeds: Any = self._seeds(starts >= 0)
        self.observations = self.envs.reset(seed=seeds)[0]
        for k in range(longest):
            actions = [
                given[k - start] if k >= start else filler for given, start in zip(self._actions, starts, strict=True)
            ]
            observations, _, terminated, truncated, _ = self.envs.step(np.array(actions))
            self.observations = observations
            # An environment that waits for its start may have ended meanwhile.
            reset = (starts == k + 1) | ((terminated | truncated) & (starts > k + 1))
            if reset.any():
                self._reset(reset)

    @property
    def _seeded(self) -> bool:
        return self.mode is AutoresetMode.DISABLED

    def _end(self, done: np.ndarray) -> list[dict[str, Any]]:
        finished = []
        for i in np.nonzero(done)[0].tolist():
            record: dict[str, Any] = {"return": float(self.returns[i]), "length": int(self.lengths[i])}
            record |= {"env": int(self.ids[i]), "episode": int(self.numbers[i])}
            if self._seeded:
                record["seed"] = self._seed(i)
                self._actions[i] = []
            finished.append(record)
        self.returns[done], self.lengths[done] = 0.0, 0
        self.numbers[done] += 1
        if self._seeded:
            self._reset(done)
        return finished

    def _reset(self, which: np.ndarray) -> None:
        seeds: Any = self._seeds(which)
        self.observations = self.envs.reset(seed=seeds, options={"reset_mask": which.copy()})[0]

    def _seeds(self, which: np.ndarray) -> list[int | None]:
        return [self._seed(i) if reset else None for i, reset in enumerate(which)]

    def _seed(self, i: int) -> int:
        return derive_seed(int(self.seeds[i]), "episode", int(self.ids[i]), int(self.numbers[i]))
