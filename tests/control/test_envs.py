from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig, Spaces
from rlhf.errors import InputError
from tests.control.worlds import Walk, collector_of


def test_make_env_suggests_a_name() -> None:
    with pytest.raises(InputError, match=r"no environment CartPol-v1\. Did you mean CartPole-v"):
        make_env("CartPol-v1")


def test_make_env_suggests_a_version() -> None:
    with pytest.raises(InputError, match=r"no environment Pendulum-v9\. Did you mean Pendulum-v1"):
        make_env("Pendulum-v9")


def test_make_env_names_a_missing_module() -> None:
    with pytest.raises(InputError, match="no_such_module"):
        make_env("no_such_module:World-v0")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("ALE/Pong-v5", "Have you installed the proper package for ALE"),
        ("PongNoFrameskip-v4", "Environment `PongNoFrameskip` doesn't exist"),
        ("Qbert-ram-v0", "If a module registers it, write module:Name-v0"),
        ("HalfCheetah-v2", "cannot be made: .*gymnasium-robotics"),
        ("tests.control.worlds:Wander-v0", "no environment tests.control.worlds:Wander-v0"),
        ("a:b:c", "more than one colon"),
        ("", "Malformed"),
        ("corridor.py", r"must be given as path/to/file.py:Class"),
    ],
)
def test_make_env_does_not_suggest_a_stranger(env_id: str, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=message) as refused:
            make_env(env_id)
    assert "Did you mean" not in str(refused.value)


def test_make_env_suggests_a_name_in_other_letters() -> None:
    with pytest.raises(InputError, match=r"no environment cartpole-v1\. Did you mean CartPole-v"):
        make_env("cartpole-v1")


def test_make_env_takes_what_a_module_registers_and_what_a_file_defines(tmp_path: Path) -> None:
    assert make_env("tests.control.worlds:Lottery-v0").observation_space.shape == (1,)
    folder = tmp_path / "my, own"
    folder.mkdir()
    file = folder / "worlds.py"
    file.write_text("from tests.control.worlds import Walk as Corridor\n")
    env = make_env(f"{file}:Corridor,terminal=7,max_episode_steps=3")
    assert (env.unwrapped.terminal, env.get_wrapper_attr("_max_episode_steps")) == (7, 3)


def test_make_env_takes_arguments_after_commas() -> None:
    """JSON where it is that: 7 is a number; the time limit is gymnasium's own argument."""
    env = make_env("Walk-v0,terminal=7,limit=9,max_episode_steps=3")
    assert (env.unwrapped.terminal, env.unwrapped.limit) == (7, 9)
    assert env.get_wrapper_attr("_max_episode_steps") == 3


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Walk-v0,7", "argument '7'; write it as name=value"),
        ("Walk-v0,length=7", "'length'"),
        ("Walk-v0,max_episode_steps=-3", "max_episode_steps"),
        ("Walk-v0,max_episode_steps=soon", "max_episode_steps"),
        ("tests/control/worlds.py:Walk,length=7", "'length'"),
        ("tests/control/worlds.py:Walk,max_episode_steps=-3", "max_episode_steps"),
    ],
)
def test_make_env_refuses_arguments_it_does_not_know(env_id: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_env(env_id)


def test_make_envs_gives_each_process_its_share() -> None:
    assert make_envs("CartPole-v1", 6, num_processes=3).num_envs == 2


@pytest.mark.parametrize(("num_envs", "num_processes"), [(7, 2), (0, 1)])
def test_make_envs_refuses_what_processes_cannot_share(num_envs: int, num_processes: int) -> None:
    with pytest.raises(InputError, match=f"num_envs is {num_envs}"):
        make_envs("CartPole-v1", num_envs, num_processes=num_processes)


def test_spaces_of_reads_both_kinds_of_actions() -> None:
    assert spaces_of(make_env("CartPole-v1")) == Spaces(observation_size=4, num_actions=2)
    assert spaces_of(make_envs("Pendulum-v1", 2)) == Spaces(observation_size=3, action_low=(-2.0,), action_high=(2.0,))


@pytest.mark.parametrize(
    "space",
    [spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3), spaces.Box(0, 1, (2, 2)), spaces.Box(0, 9, (2,), int)],
)
def test_spaces_of_refuses_actions_it_has_no_distribution_for(space: gymnasium.Space) -> None:
    env = Walk()
    env.action_space = space
    with pytest.raises(InputError, match="supported are"):
        spaces_of(env)


def test_make_env_turns_discrete_observations_into_one_hot() -> None:
    env = make_env("Named-v0")
    assert env.reset(seed=0)[0].tolist() == [1, 0, 0]
    assert spaces_of(env) == Spaces(observation_size=3, num_actions=2, first_action=5)


def test_actions_reach_the_environment_under_its_own_names() -> None:
    envs = make_envs("Named-v0", 2)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(), seed=0)
    rollout = collector_of(envs, 20).collect(policy, 0).rollout
    assert torch.equal(rollout.rewards, rollout.inputs["actions"] + 5.0)
    assert np.unique(rollout.rewards).tolist() == [5.0, 6.0]
