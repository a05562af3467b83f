"""Gymnasium environments by name, in the form the collector and the evaluator take them."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from rlhf.control.cartpole import BatchedCartPole
from rlhf.control.policy import Spaces
from rlhf.control.resets import StartFrom
from rlhf.errors import InputError
from rlhf.files import load_from_file

EnvSource = str | gymnasium.Env | Callable[[], gymnasium.Env]
"""An id, path/to/file.py:Class, an environment of which copies are made, or what makes one."""


def name_of(env: EnvSource) -> str:
    """What messages and records call it."""
    if isinstance(env, str):
        return env
    return type(env.unwrapped).__name__ if isinstance(env, gymnasium.Env) else getattr(env, "__name__", str(env))


def make_env(env_id: EnvSource, *, starts: np.ndarray | None = None) -> gymnasium.Env:
    """One environment; observations that are not a plain vector are flattened (discrete ones to one-hot).

    Args:
        env_id: A registered name, with arguments after commas if there are any: "CartPole-v1,sutton_barto_reward=true";
            or one of your own.
        starts: States in which episodes begin, each equally likely; None: where the environment begins.
    """
    env = _registered(env_id) if isinstance(env_id, str) and ".py:" not in env_id else _own(env_id)
    if starts is not None:
        env = StartFrom(env, starts)
    if not _is_vector(env.observation_space):
        if not env.observation_space.is_np_flattenable:
            raise InputError(
                f"{name_of(env_id)} observes {env.observation_space}, which has no fixed size; wrap it in a Box."
            )
        env = gymnasium.wrappers.FlattenObservation(env)
    spaces_of(env)
    return env


def _registered(env_id: str) -> gymnasium.Env:
    env_id, arguments = _parse(env_id)
    try:
        # The checker warns about what a user cannot mend here, and costs as much as a CartPole step.
        return gymnasium.make(env_id, disable_env_checker=True, **arguments)
    except TypeError as error:
        if not arguments:
            raise
        raise InputError(f"environment {env_id} cannot be made with {arguments}: {error}") from error
    except gymnasium.error.UnregisteredEnv:
        near = difflib.get_close_matches(env_id, list(gymnasium.registry), n=1, cutoff=0.0)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no environment {env_id}.{hint}") from None
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise InputError(f"environment {env_id} cannot be made: {error}") from None


def _own(env: EnvSource) -> gymnasium.Env:
    if isinstance(env, gymnasium.Env):
        return copy.deepcopy(env)
    make = load_from_file(env, what="environment", kind="Class") if isinstance(env, str) else env
    made = make() if callable(make) else make
    if not isinstance(made, gymnasium.Env):
        raise InputError(
            f"environment {name_of(env)} is {type(made).__name__}, not a gymnasium.Env; give an id, path/to/file.py:"
            "Class, a class or function that makes one, or an environment."
        )
    return made


def make_envs(
    env_id: EnvSource, num_envs: int, *, num_processes: int = 1, starts: np.ndarray | None = None
) -> VectorEnv:
    """This process's share of `num_envs` environments. The collector resets them: each episode has its own seed."""
    if num_envs < 1 or num_envs % num_processes:
        raise InputError(f"num_envs is {num_envs}; it must be a positive multiple of the {num_processes} processes.")
    if env_id == "CartPole-v1" and starts is None:
        return BatchedCartPole(num_envs // num_processes)
    makers = [lambda: make_env(env_id, starts=starts)] * (num_envs // num_processes)
    return SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)


class Singles:
    """Environments that are stepped one by one, so that those whose episode is over need not be.

    What a batched environment offers for whole episodes, `start` and `step_some`, for any environment.
    """

    def __init__(self, envs: Sequence[gymnasium.Env]) -> None:
        self.envs = envs

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations of episodes with these seeds, `(N, O)`, in the first so many environments."""
        return np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=False)])

    def step_some(
        self, which: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, terminated and truncated of the environments `which`."""
        steps = [self.envs[i].step(action) for i, action in zip(which, actions, strict=True)]
        observations, rewards, terminated, truncated, _ = zip(*steps, strict=True)
        return np.stack(observations), np.array(rewards, float), np.array(terminated), np.array(truncated)


def make_many(
    env_id: EnvSource, num_envs: int, *, starts: np.ndarray | None = None
) -> list[gymnasium.Env] | BatchedCartPole:
    """Environments for `num_envs` whole episodes at a time."""
    if env_id == "CartPole-v1" and starts is None:
        return BatchedCartPole(num_envs)
    return [make_env(env_id, starts=starts) for _ in range(num_envs)]


def close(envs: Sequence[gymnasium.Env] | BatchedCartPole) -> None:
    for env in [envs] if isinstance(envs, BatchedCartPole) else envs:
        env.close()


def spaces_of(env: gymnasium.Env | VectorEnv) -> Spaces:
    """What a policy for `env` takes and gives."""
    if not isinstance(env, VectorEnv) and not (hasattr(env, "observation_space") and hasattr(env, "action_space")):
        raise InputError(f"{env} has no observation_space or no action_space; set both, as gymnasium asks.")
    observations: Any = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    actions: Any = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    if not _is_vector(observations):
        raise InputError(f"{env} observes {observations}; flatten it to a vector with gymnasium's wrappers.")
    size = observations.shape[0]
    if isinstance(actions, spaces.Discrete):
        return Spaces(observation_size=size, num_actions=int(actions.n), first_action=int(actions.start))
    if _is_vector(actions) and np.issubdtype(actions.dtype, np.floating):
        low, high = _bounds(actions.low), _bounds(actions.high)
        return Spaces(observation_size=size, action_low=low, action_high=high)
    raise InputError(f"{env} takes actions in {actions}; supported are Discrete and float Box of one dimension.")


def _parse(env_id: str) -> tuple[str, dict[str, Any]]:
    """The registered name and the arguments; what is not JSON is taken for a string."""
    name, *given = env_id.split(",")
    arguments = {}
    for argument in given:
        key, separator, value = argument.partition("=")
        if not separator:
            raise InputError(f"{env_id} has the argument {argument!r}; write it as name=value.")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return name, arguments


def _is_vector(space: gymnasium.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _bounds(bounds: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(bound) if np.isfinite(bound) else None for bound in bounds)
