"""An environment tried before a run is made of it, since what it does wrong shows only when it is played."""

from __future__ import annotations

import copy
import pickle
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import torch

from rlhf.control.envs import EnvSource, make_env, name_of, spaces_of
from rlhf.control.policy import Spaces
from rlhf.errors import InputError
from rlhf.rollout import NonFiniteError

# Of an episode that is played twice.
STEPS = 50


def tried(env: EnvSource) -> Spaces:
    """What a policy for `env` takes and gives, once some steps have shown that it can be played, that its episodes end,
    and that they are a function of seed and actions.

    Raises:
        InputError: With what it did, on one line.
    """
    name = name_of(env)
    try:
        with no_global_draws(name):
            one, other = make_env(env), make_env(env)
            if one.unwrapped is other.unwrapped:
                raise InputError(f"{name} gives one and the same environment each time; make a new one.")
            # Where a time limit is declared, episodes end.
            played = _play(one, seed=0, to_its_end=not one.get_wrapper_attr("limited"))
            # Neither another copy nor an episode that went before may matter.
            _play(other, seed=1)
            again = _play(other, seed=0)
        spaces = spaces_of(one)
        one.close()
        other.close()
    except NonFiniteError as error:
        raise InputError(str(error)) from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be played: {_where(error)}.") from error
    differs = next((t for t, (a, b) in enumerate(zip(played, again, strict=False)) if not np.array_equal(a, b)), None)
    if differs is not None:
        raise InputError(
            f"{name} gives other numbers at step {differs} when an episode is played again with the same seed and "
            "actions, so no run of it could be repeated or resumed; draw from self.np_random, which "
            "super().reset(seed=seed) sets, and let nothing of an earlier episode remain."
        )
    return spaces


@contextmanager
def no_global_draws(name: str) -> Iterator[None]:
    """Refuses an environment that draws from generators of the whole process, which no seed of an episode governs."""
    before = _generators()
    yield
    moved = [generator for generator, state in _generators().items() if state != before[generator]]
    if moved:
        raise InputError(
            f"{name} draws from {' and '.join(moved)}, of the whole process, so its episodes do not follow from their "
            "seeds; draw from self.np_random, which super().reset(seed=seed) sets."
        )


def _generators() -> dict[str, object]:
    return {
        "np.random": pickle.dumps(np.random.get_state()),
        "Python's random": random.getstate(),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
    }


def _play(env: gymnasium.Env, *, seed: int, to_its_end: bool = False) -> list[np.ndarray]:
    """What the first steps of an episode show, with actions that are the same each time."""
    actions = copy.deepcopy(env.action_space)
    actions.seed(0)
    shown = [env.reset(seed=seed)[0].copy()]
    ended = False
    while not ended and (to_its_end or len(shown) <= STEPS):
        observation, reward, terminated, truncated, _ = env.step(actions.sample())
        ended = terminated or truncated
        if len(shown) <= STEPS:
            shown.append(np.append(observation, [reward, terminated, truncated]))
    return shown


def _where(error: Exception) -> str:
    """The error, and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
