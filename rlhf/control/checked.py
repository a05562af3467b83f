"""Environments held to gymnasium's contract, so that whoever steps one may rely on what it gives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlhf.errors import InputError
from rlhf.rollout import NonFiniteError

# Of an episode where no time limit is declared: evaluations play whole ones, some hundred of them.
MAX_STEPS = 10_000


class Checked(gymnasium.Wrapper):
    """Vectors of the declared size and type, rewards as floats and ends as bools, or an error that says what came.

    What can be read in one way only is taken so: flags of 0 and 1, one number in an array, floats of another width.
    Observations that are no plain vector are flattened (discrete ones to one-hot).

    Args:
        name: What messages call the environment.
        limited: A time limit cuts its episodes, so that they need no bound.
    """

    def __init__(self, env: gymnasium.Env, *, name: str, limited: bool) -> None:
        super().__init__(env)
        self.name, self.limited = name, limited
        for kind in ("observation_space", "action_space"):
            if not isinstance(getattr(env, kind, None), gymnasium.Space):
                raise InputError(f"{name} has no {kind}; set it to a gymnasium space.")
        try:
            inspect.signature(env.unwrapped.reset).bind(seed=0, options=None)
        except TypeError:
            raise InputError(
                f"{name} has a reset that does not take seed and options, as gymnasium's does (gym's old one did not); "
                "an episode must follow from its seed: def reset(self, *, seed=None, options=None)."
            ) from None
        self._given = env.observation_space
        self._plain = is_vector(self._given)
        if not self._plain and not self._given.is_np_flattenable:
            raise InputError(f"{name} observes {self._given}, which has no fixed size; wrap it in a Box.")
        vector = self._given if self._plain else spaces.flatten_space(self._given)
        self.observation_space = vector
        self._shape, self._dtype = vector.shape, vector.dtype
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        result: Any = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise InputError(
                f"{self.name} has a reset that gives {_described(result)}; gymnasium's gives an observation and a dict "
                "(gym's old one gave the observation alone)."
            )
        return self._vector(result[0]), result[1]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps > MAX_STEPS and not self.limited:
            raise InputError(
                f"{self.name} has not ended an episode after {MAX_STEPS} steps and declares no time limit, so an "
                "evaluation might never end; give it one: max_episode_steps where it is registered or after its name "
                "(NAME,max_episode_steps=1000), or gymnasium.wrappers.TimeLimit."
            )
        result: Any = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            raise InputError(
                f"{self.name} has a step that gives {_described(result)}; gymnasium's gives observation, reward, "
                "terminated, truncated and a dict (gym's old one gave 4 values)."
            )
        observation, reward, terminated, truncated, info = result
        if type(reward) is not float:
            reward = self._number(reward)
        if not math.isfinite(reward):
            raise NonFiniteError(f"{self.name} paid {reward} at step {self._steps} of an episode.")
        if type(terminated) is not bool:
            terminated = self._flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._flag("truncated", truncated)
        return self._vector(observation), reward, terminated, truncated, info

    def _vector(self, observation: Any) -> np.ndarray:
        if (
            not self._plain
            or type(observation) is not np.ndarray
            or observation.dtype is not self._dtype
            or observation.shape != self._shape
        ):
            observation = self._converted(observation)
        if not _is_finite(observation):
            raise NonFiniteError(
                f"{self.name} observed {_short(observation)} at step {self._steps} of an episode, which is not finite."
            )
        return observation

    def _converted(self, observation: Any) -> np.ndarray:
        if isinstance(observation, list):
            observation = np.array(observation)
        if not _fits(self._given, observation):
            raise InputError(
                f"{self.name} observed {_described(observation)} at step {self._steps} of an episode, which does not "
                f"fit its observation_space {self._given}; mend the one or the other."
            )
        flat = observation if self._plain else spaces.flatten(self._given, observation)
        return np.asarray(flat, self._dtype)

    def _number(self, reward: Any) -> float:
        if isinstance(reward, int | float | np.ndarray | np.generic) and np.size(reward) == 1:
            number = np.asarray(reward)
            if np.can_cast(number.dtype, np.float64, "same_kind"):
                return float(number.reshape(()))
        raise InputError(f"{self.name} paid {_described(reward)} at step {self._steps}; a reward is one number.")

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, int | float | np.ndarray | np.generic) and np.size(value) == 1 and value in (0, 1):
            return bool(value)
        raise InputError(
            f"{self.name} gave {_described(value)} as {name} at step {self._steps} of an episode; it is True or False."
        )


def is_vector(space: gymnasium.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _is_finite(vector: np.ndarray) -> bool:
    # numpy's way takes five times as long where there are few numbers.
    return all(map(math.isfinite, vector.tolist())) if vector.size <= 64 else bool(np.isfinite(vector).all())


def _fits(space: gymnasium.Space, value: Any) -> bool:
    """As `space.contains`, but for bounds of numbers, and floats of another width, which do no harm."""
    if isinstance(space, spaces.Dict):
        same = isinstance(value, Mapping) and value.keys() == space.spaces.keys()
        return same and all(_fits(part, value[name]) for name, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        same = isinstance(value, tuple) and len(value) == len(space.spaces)
        return same and all(map(_fits, space.spaces, value))
    if isinstance(space, spaces.Box):
        number = isinstance(value, np.ndarray | np.generic)
        return number and value.shape == space.shape and np.can_cast(value.dtype, space.dtype, "same_kind")
    return space.contains(value)


def _described(value: Any) -> str:
    """What it is, in few words, whatever its size."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in value[:6])
        return f"a {type(value).__name__} of {len(value)} values ({kinds})"
    return f"{type(value).__name__} {_short(value)}"


def _short(value: Any) -> str:
    return f"{' '.join(repr(value).split()):.80}"
