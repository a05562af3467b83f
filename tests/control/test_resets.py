"""Episodes that begin in given states: each equally likely, chosen by the reset seed, resumable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf.algorithms.ppo import PPO
from rlhf.control.demonstrations import demonstrated_states
from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.control.resets import get_state
from rlhf.control.tasks import Envs
from rlhf.errors import InputError
from rlhf.optimize import Optimize
from rlhf.task import Here
from tests.control.worlds import CPU, bare, collector_of
from theory.worlds.aliased_grid import EAST, END, SOUTH

CARTPOLE_STATES = np.array([[0.0, 0.0, 0.05, 0.0], [1.0, 0.5, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.3]])


def test_starts_are_equally_likely_and_follow_from_the_seed() -> None:
    env = make_env("theory/Chain-v0,horizon=4", starts=np.array([0, 2, 3]))
    first, again = ([int(env.reset(seed=seed)[0].argmax()) for seed in range(300)] for _ in range(2))
    assert first == again
    counts = np.bincount(first, minlength=4)
    assert counts[1] == 0
    # Five standard errors.
    np.testing.assert_allclose(counts[[0, 2, 3]], 100, atol=5 * np.sqrt(300 * 2 / 9))


def test_an_episode_goes_on_from_its_start_as_if_it_had_come_there() -> None:
    env = make_env("theory/Chain-v0,horizon=3", starts=np.array([2]))
    env.reset(seed=0)
    observation, reward, terminated, _, _ = env.step(bare("theory/Chain-v0").right_actions[2])
    assert (observation.tolist(), reward, terminated) == ([0, 0, 0, 1], 1.0, True)


def test_cartpole_starts_from_a_state_and_moves_by_its_own_equations() -> None:
    """Velocities move positions by 0.02 s of themselves (Barto, Sutton and Anderson, 1983, Euler steps)."""
    env = make_env("CartPole-v1", starts=CARTPOLE_STATES[1:2])
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observation, CARTPOLE_STATES[1].astype(np.float32))
    assert observation.dtype == np.float32
    assert env.step(1)[0][0] == pytest.approx(1.0 + 0.02 * 0.5, abs=1e-6)


def test_starts_are_copied() -> None:
    states = np.zeros((1, 4))
    env = make_env("CartPole-v1", starts=states)
    env.reset(seed=0)
    env.unwrapped.state[:] = 5.0
    assert not states.any()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Acrobot-v1", "MountainCar-v0"])
def test_other_classic_problems_observe_their_start(env_id: str) -> None:
    """The observation from the state set is the one that the environment gave in that state."""
    env = make_env(env_id)
    observation, _ = env.reset(seed=7)
    state = get_state(env)
    again, _ = make_env(env_id, starts=state[None]).reset(seed=99)
    np.testing.assert_array_equal(again, observation)


@pytest.mark.parametrize("episodes", [0, 6])
def test_collectors_of_fragments_and_of_whole_episodes_take_starts(episodes: int) -> None:
    task = Envs("theory/Chain-v0,horizon=4", starts=np.array([3]), num_envs=6, steps=1, episodes=episodes)
    policy, here = task.policy(), Here(CPU, 0, PPO(), Optimize(), None)
    task.prepare(policy, here)
    rollout = task.collect(policy, 0, here).rollout
    task.close()
    assert rollout.inputs["observations"][:, 0].argmax(-1).tolist() == [3] * 6


def test_reset_options_name_one_state() -> None:
    env = make_env("theory/Chain-v0,horizon=4", starts=np.arange(4))
    assert {int(env.reset(seed=seed, options={"state": 2})[0].argmax()) for seed in range(20)} == {2}


def test_collected_episodes_start_there_and_resume_exactly() -> None:
    def collector() -> object:
        return collector_of(make_envs("CartPole-v1", 4, starts=CARTPOLE_STATES), 25)

    whole, resumed = collector(), collector()
    policy = ControlPolicy(whole.spaces, PolicyConfig(), seed=0)
    rollout = whole.collect(policy, 0).rollout
    known = {tuple(state) for state in CARTPOLE_STATES.astype(np.float32).tolist()}
    observations, dones = rollout.inputs["observations"], rollout.dones
    assert dones[:, :-1].sum() > 0
    assert {tuple(row) for row in observations[:, 0].tolist()} <= known
    assert {tuple(row) for row in observations[:, 1:][dones[:, :-1]].tolist()} <= known
    resumed.load_state_dict(whole.state_dict())
    a, b = (each.collect(policy, 1).rollout for each in (whole, resumed))
    assert torch.equal(a.inputs["observations"], b.inputs["observations"])


def test_demonstrated_states_are_those_acted_in() -> None:
    right = bare("theory/Chain-v0,horizon=5").right_actions
    states = demonstrated_states(lambda x: right[x.argmax()], "theory/Chain-v0,horizon=5", episodes=2, seed=0)
    assert sorted(states.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_demonstrated_states_are_none_of_episodes_that_are_over() -> None:
    """East from everywhere but the middle: episodes of one to three steps."""
    moves = (EAST, EAST, SOUTH, SOUTH)
    states = demonstrated_states(lambda x: moves[x.argmax()], "theory/AliasedGrid-v0", episodes=20, seed=0)
    assert set(states.tolist()) == set(range(END))


def test_demonstrated_states_of_a_policy_are_what_it_saw() -> None:
    """CartPole observes its state."""
    policy = ControlPolicy(spaces_of(make_env("CartPole-v1")), PolicyConfig(), seed=0)
    states = demonstrated_states(policy, "CartPole-v1", episodes=1, seed=3)
    env = make_env("CartPole-v1", starts=states[:1])
    seen = [env.reset(seed=0)[0]]
    for _ in states[1:]:
        action = policy.act(torch.as_tensor(seen[-1][None]), None)[0]
        seen.append(env.step(int(action))[0])
    np.testing.assert_allclose(seen, states, atol=1e-5)


def test_crossing_from_uniform_starts_is_far_likelier() -> None:
    """Exactly mean_h 3^-(H - h) for the uniform policy: what resets are for."""
    horizon = 6
    env = make_env(f"theory/Chain-v0,horizon={horizon}", starts=np.arange(horizon))
    draws = np.random.default_rng(0)
    total = 0.0
    for seed in range(3000):
        env.reset(seed=seed)
        done = False
        while not done:
            _, reward, done, _, _ = env.step(draws.integers(3))
            total += reward
    expected = np.mean([3.0**-left for left in range(1, horizon + 1)])
    assert total / 3000 == pytest.approx(expected, abs=5 * np.sqrt(expected / 3000))
    assert expected > 50 * 3.0**-horizon


@pytest.mark.parametrize(
    ("env_id", "states", "message"),
    [
        ("CartPole-v1", np.zeros((0, 4)), "no states to start from"),
        ("CartPole-v1", np.zeros((2, 3)), r"has shape \(4,\), but the one given \(3,\)"),
        ("Named-v0", np.zeros(2), "has no `state`"),
    ],
)
def test_starts_that_cannot_be_are_refused(env_id: str, states: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_env(env_id, starts=states).reset(seed=0)


def test_states_in_which_episodes_begin_are_inputs_of_the_run() -> None:
    def inputs(states: list[int] | None) -> dict[str, str]:
        return Envs("theory/Chain-v0,horizon=4", starts=None if states is None else np.array(states)).inputs()

    assert inputs([1, 2]) == inputs([1, 2])
    assert inputs([1, 2]).keys() - inputs(None).keys() == {"starts: states"}
    assert inputs([1, 2])["starts: states"] != inputs([1, 3])["starts: states"]
