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
from gymnasium.wrappers import TimeLimit

from rlhf.control.cartpole import BatchedCartPole
from rlhf.control.checked import Checked, is_vector
from rlhf.control.policy import Spaces
from rlhf.control.resets import StartFrom
from rlhf.errors import InputError
from rlhf.files import load_from_file, users_code

EnvSource = str | gymnasium.Env | Callable[[], gymnasium.Env]
"""An id, module:Name-v0, path/to/file.py:Class, an environment of which copies are made, or what makes one."""


def name_of(env: EnvSource) -> str:
    """What messages and records call it."""
    if isinstance(env, str):
        return env
    return type(env.unwrapped).__name__ if isinstance(env, gymnasium.Env) else getattr(env, "__name__", str(env))


def make_env(env_id: EnvSource, *, starts: np.ndarray | None = None) -> gymnasium.Env:
    """One environment, held to gymnasium's contract; see Checked.

    Args:
        env_id: A registered name, that of one that a module registers ("module:Name-v0"), or path/to/file.py:Class,
            with arguments after commas if there are any: "CartPole-v1,sutton_barto_reward=true"; or one of your own.
        starts: States in which episodes begin, each equally likely; None: where the environment begins.
    """
    env = _from_id(env_id) if isinstance(env_id, str) else _own(env_id, env_id)
    limit = None
    if isinstance(env, TimeLimit):
        # It takes steps apart itself, so what it gets is checked, not what it gives.
        limit, env = env._max_episode_steps, env.env
    limited = limit is not None or _is_limited(env)
    if starts is not None:
        env = StartFrom(env, starts)
    env = Checked(env, name=name_of(env_id), limited=limited)
    spaces_of(env)
    return env if limit is None else TimeLimit(env, limit)


def _from_id(env_id: str) -> gymnasium.Env:
    name, arguments = _parse(env_id)
    try:
        return _from_file(name, arguments) if ".py" in name else _registered(name, arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError) or not arguments:
            raise
        raise InputError(f"environment {name} cannot be made with {arguments}: {error}") from error


def _from_file(location: str, arguments: dict[str, Any]) -> gymnasium.Env:
    make = load_from_file(location, what="environment", kind="Class")
    limit = arguments.get("max_episode_steps")
    env = _own(lambda: make(**{name: x for name, x in arguments.items() if name != "max_episode_steps"}), location)
    return env if limit is None else TimeLimit(env, limit)


def _registered(name: str, arguments: dict[str, Any]) -> gymnasium.Env:
    if name.count(":") > 1:
        raise InputError(f"environment {name} has more than one colon; write module:Name-v0.")
    try:
        # The checker warns about what a user cannot mend here, and costs as much as a CartPole step.
        return gymnasium.make(name, disable_env_checker=True, **arguments)
    except gymnasium.error.UnregisteredEnv as error:
        raise InputError(f"there is no environment {name}.{_hint(name)} gymnasium says: {error}") from None
    except (gymnasium.error.Error, ImportError) as error:
        raise InputError(f"environment {name} cannot be made: {error}") from None


def _hint(name: str) -> str:
    """Something registered whose name is nearly the same; or where names come from that are not known yet."""
    known = {each.lower(): each for each in gymnasium.registry}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    if near:
        return f" Did you mean {known[near[0]]}?"
    return " If a module registers it, write module:Name-v0; a class of yours is path/to/file.py:Class."


def _own(env: Any, source: EnvSource) -> gymnasium.Env:
    with users_code():
        made = copy.deepcopy(env) if isinstance(env, gymnasium.Env) else env() if callable(env) else env
    if not isinstance(made, gymnasium.Env):
        raise InputError(
            f"environment {name_of(source)} is {type(made).__name__}, not a gymnasium.Env; give an id, path/to/file.py:"
            "Class, a class or function that makes one, or an environment."
        )
    return made


def _is_limited(env: gymnasium.Env) -> bool:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return True
        env = env.env
    return False


def make_envs(
    env_id: EnvSource, num_envs: int, *, num_processes: int = 1, starts: np.ndarray | None = None
) -> VectorEnv:
    """This process's share of `num_envs` environments. The collector resets them: each episode has its own seed."""
    if num_envs < 1 or num_envs % num_processes:
        raise InputError(f"num_envs is {num_envs}; it must be a positive multiple of the {num_processes} processes.")
    if env_id == "CartPole-v1" and starts is None:
        return BatchedCartPole(num_envs // num_processes)
    makers = [lambda: make_env(env_id, starts=starts)] * (num_envs // num_processes)
    return SideBySide(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)


class SideBySide(SyncVectorEnv):
    """Steps as its parent does without autoreset, but for the infos, whose gathering costs as much as a small step."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        for i, env in enumerate(self.envs):
            result = env.step(actions[i])
            # Where the parent's reset looks for what the others observed.
            self._env_obs[i], self._rewards[i], self._terminations[i], self._truncations[i], _ = result
            self._observations[i] = self._env_obs[i]
        return self._observations, self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), {}


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
    observations: Any = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    actions: Any = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    if not is_vector(observations):
        raise InputError(f"{env} observes {observations}; flatten it to a vector with gymnasium's wrappers.")
    size = observations.shape[0]
    if isinstance(actions, spaces.Discrete):
        return Spaces(observation_size=size, num_actions=int(actions.n), first_action=int(actions.start))
    if is_vector(actions) and np.issubdtype(actions.dtype, np.floating):
        low, high = _bounds(actions.low), _bounds(actions.high)
        return Spaces(observation_size=size, action_low=low, action_high=high)
    raise InputError(f"{env} takes actions in {actions}; supported are Discrete and float Box of one dimension.")


def _parse(env_id: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments; what is not JSON is taken for a string."""
    # Folders may have commas in their names.
    folder, separator, rest = env_id.rpartition("/") if ".py" in env_id else ("", "", env_id)
    name, *given = rest.split(",")
    name = folder + separator + name
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


def _bounds(bounds: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(bound) if np.isfinite(bound) else None for bound in bounds)
