"""Resets to informative states, which show policy gradients rewards that they would not find from the start.

From states of demonstrations: Nair et al., 2018, section IV.D (https://arxiv.org/abs/1709.10089); from a wide
distribution of states: Kakade and Langford, 2002 (https://dl.acm.org/doi/10.5555/645531.656005).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from rlhf.errors import InputError


class StartFrom(gymnasium.Wrapper):
    """Every episode begins in one of `states`, each equally likely; which one follows from the reset seed.

    So an episode is a function of its seed and actions still. `reset(options={"state": x})` begins in x instead.

    Args:
        states: Leading axis: one state after another, as `get_state` gives them.
    """

    def __init__(self, env: gymnasium.Env, states: np.ndarray) -> None:
        super().__init__(env)
        if len(states) == 0:
            raise InputError("there are no states to start from; give at least 1.")
        self.states = states

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        given = (options or {}).get("state")
        state = self.states[self.np_random.integers(len(self.states))] if given is None else given
        return set_state(self.env, state), info


def get_state(env: gymnasium.Env) -> np.ndarray:
    """A copy of the environment's `state`, by which gymnasium's classic control and our own go."""
    state = getattr(env.unwrapped, "state", None)
    if state is None:
        raise InputError(f"{env} has no `state`, so it cannot start from one; give it this attribute.")
    return np.array(state)


def set_state(env: gymnasium.Env, state: np.ndarray) -> Any:
    """Puts an environment that was just reset into `state`; returns what it observes there."""
    inner: Any = env.unwrapped
    if np.shape(state) != get_state(env).shape:
        raise InputError(f"a state of {env} has shape {get_state(env).shape}, but the one given {np.shape(state)}.")
    # A copy, since an environment may change its state in place.
    inner.state = np.array(state)
    for observe in ("_get_obs", "_get_ob"):
        if hasattr(inner, observe):
            return getattr(inner, observe)()
    # CartPole and MountainCar observe their state.
    return inner.state.astype(inner.observation_space.dtype)
