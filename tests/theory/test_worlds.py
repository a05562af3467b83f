"""What all environments of our own keep: gymnasium's checks, the tables that they claim to be, exact resume."""

from __future__ import annotations

import itertools
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlhf.control.envs import make_env, make_envs
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.control.resets import set_state
from rlhf.errors import InputError
from tests.control.worlds import bare, collector_of

IDS = (
    "theory/Chain-v0",
    "theory/Chain-v0,horizon=3,near_reward=0.1",
    "theory/AliasedGrid-v0",
    "theory/RockPaperScissors-v0,rounds=4",
    "theory/RockPaperScissors-v0,rounds=4,adapts=false",
    "theory/Road-v0",
)


@pytest.mark.parametrize("env_id", IDS)
def test_environments_pass_gymnasium_s_checks(env_id: str) -> None:
    check_env(bare(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_tables_say_what_steps_do(env_id: str) -> None:
    """Deterministic moves exactly; the mean reward of 400 steps within five standard errors."""
    env = bare(env_id)
    mdp, states = env.mdp, env.states
    assert mdp.transitions.shape == (len(states), env.action_space.n, len(states))
    for s, a in itertools.product(range(len(states)), range(env.action_space.n)):
        rewards = []
        for seed in range(400 if "Rock" in env_id and s < 3 else 1):
            env.reset(seed=seed)
            set_state(env, states[s])
            _, reward, terminated, truncated, _ = env.step(a)
            rewards.append(reward)
            assert not truncated
            after = [i for i, state in enumerate(states) if np.array_equal(state, env.state) and not terminated]
            expected = torch.zeros(len(states), dtype=torch.float64)
            expected[after] = 1.0
            assert torch.equal(mdp.transitions[s, a], expected)
        if "Rock" not in env_id:
            assert rewards == [mdp.rewards[s, a]]
        elif s < 3:
            assert np.mean(rewards) == pytest.approx(float(mdp.rewards[s, a]), abs=5 / math.sqrt(len(rewards)))


@pytest.mark.parametrize("env_id", IDS)
def test_tables_say_where_episodes_start(env_id: str) -> None:
    env = bare(env_id)
    counts = np.zeros(len(env.states))
    for seed in range(300):
        env.reset(seed=seed)
        counts[[np.array_equal(state, env.state) for state in env.states]] += 1
    assert counts.sum() == 300
    start = env.mdp.start.numpy()
    np.testing.assert_allclose(counts / 300, start, atol=5 * 0.5 / math.sqrt(300))
    assert (counts[start == 0] == 0).all()


@pytest.mark.parametrize("env_id", IDS)
def test_environments_resume_within_an_episode(env_id: str) -> None:
    """The collector replays the open episodes from seeds and actions, and checks where they lead."""
    policy = ControlPolicy(make_spaces(env_id), PolicyConfig(), seed=0)
    whole, resumed = (collector_of(make_envs(env_id, 3), 7) for _ in range(2))
    whole.collect(policy, 0)
    resumed.load_state_dict(whole.state_dict())
    a, b = (collector.collect(policy, 1).rollout for collector in (whole, resumed))
    assert torch.equal(a.rewards, b.rewards)
    assert torch.equal(a.inputs["observations"], b.inputs["observations"])


def make_spaces(env_id: str) -> Any:
    return collector_of(make_envs(env_id, 1), 1).spaces


@pytest.mark.parametrize("env_id", ["theory/Chain-v0,horizon=0", "theory/RockPaperScissors-v0,rounds=0"])
def test_nothing_to_do_is_refused(env_id: str) -> None:
    with pytest.raises(InputError, match="at least 1"):
        make_env(env_id)


def test_environments_are_made_by_gymnasium_too() -> None:
    assert gymnasium.make("theory/Chain-v0", horizon=4).observation_space.n == 5
