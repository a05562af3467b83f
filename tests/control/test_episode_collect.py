from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rlhf.control import episode_collect
from rlhf.control.collect import CollectSteps
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.episode_collect import EpisodeCollector
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.core.random import derive_seed, uniforms
from rlhf.errors import InputError
from rlhf.runs.state import load_state, save_state
from tests.control.worlds import CPU, Lottery, Walk, hundredfold_policy, vector


class CountedWalk(Walk):
    """Counts the steps that it is asked for."""

    steps = 0

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return super().step(action)


def collector_of(*envs: gymnasium.Env, seed: int = 0, **options: Any) -> EpisodeCollector:
    reference = options.pop("reference", None)
    config = CollectSteps(episodes=len(envs), **options)
    return EpisodeCollector(envs, config=config, gamma=0.5, seed=seed, accelerator=CPU, reference=reference)


def policy_for(env_id: str, **config: Any) -> ControlPolicy:
    return ControlPolicy(spaces_of(make_env(env_id)), PolicyConfig(**config), seed=0)


def cartpoles(number: int) -> list[gymnasium.Env]:
    return [make_env("CartPole-v1") for _ in range(number)]


HUNDREDFOLD = hundredfold_policy(vector(Walk()))


def test_episodes_are_whole_and_masked_after_their_end() -> None:
    rollout = collector_of(Walk(terminal=2), Walk(terminal=3)).collect(HUNDREDFOLD, 0).rollout
    assert rollout.inputs["observations"].squeeze(-1).tolist() == [[0, 1, 0], [0, 1, 2]]
    assert rollout.next_inputs["observations"].squeeze(-1).tolist() == [[1, 2, 0], [1, 2, 3]]
    assert rollout.rewards.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert rollout.mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollout.dones.tolist() == [[False, True, False], [False, False, True]]
    assert rollout.values.tolist() == [[0, 100, 0], [0, 100, 200]]


@pytest.mark.parametrize(
    ("ends", "at_the_end"), [({"terminal": 3}, 0.0), ({"limit": 3}, 300.0), ({"terminal": 3, "limit": 3}, 0.0)]
)
def test_an_episode_that_a_time_limit_cuts_is_not_terminal(ends: dict[str, int], at_the_end: float) -> None:
    rollout = collector_of(Walk(**ends), Walk(terminal=5)).collect(HUNDREDFOLD, 0).rollout
    assert rollout.dones[0].tolist() == [False, False, True, False, False]
    assert rollout.terminals[0].tolist() == [False, False, at_the_end == 0.0, False, False]
    assert rollout.next_values.tolist() == [[100, 200, at_the_end, 0, 0], [100, 200, 300, 400, 0]]


def test_environments_that_ended_are_not_stepped_any_further() -> None:
    envs = [CountedWalk(terminal=2), CountedWalk(limit=7)]
    collector_of(*envs).collect(HUNDREDFOLD, 0)
    assert [env.steps for env in envs] == [2, 7]


def test_rows_that_ended_pass_through_no_network() -> None:
    policy, seen = hundredfold_policy(vector(Walk())), []
    for network in (policy.actor, policy.critic):
        network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    collector_of(Walk(terminal=2), Walk(terminal=5)).collect(policy, 0)
    # Acting in 2, 2, 1, 1, 1 rows; 7 values of what was acted on, and 7 of what it led to.
    assert seen == [2, 2, 1, 1, 1, 7, 7]


def test_a_group_shares_its_start_and_not_its_actions() -> None:
    rollout = collector_of(*cartpoles(8), episodes_per_start=4).collect(policy_for("CartPole-v1"), 3).rollout
    assert rollout.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    starts = rollout.inputs["observations"][:, 0]
    expected = [make_env("CartPole-v1").reset(seed=derive_seed(0, "start", 3, group))[0] for group in (0, 1)]
    assert torch.equal(starts, torch.tensor(np.array(expected)).repeat_interleave(4, dim=0))
    assert len({tuple(row) for row in rollout.inputs["actions"][:4].tolist()}) == 4


def test_starts_differ_between_updates_and_seeds() -> None:
    policy = policy_for("CartPole-v1")
    collectors = [collector_of(*cartpoles(1), seed=seed) for seed in (0, 0, 1)]
    rollouts = [collector.collect(policy, u).rollout for collector, u in zip(collectors, (0, 1, 0), strict=True)]
    assert len({tuple(rollout.inputs["observations"][0, 0].tolist()) for rollout in rollouts}) == 3


@pytest.mark.parametrize("drawn", [1, 4, 256])
def test_actions_follow_from_seed_update_and_row_alone(drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fair coins: the action is whether the uniform is at least one half, however many are drawn at a time."""
    monkeypatch.setattr(episode_collect, "STEPS_DRAWN", drawn)
    rollout = collector_of(Walk(terminal=9), Walk(limit=6), seed=5).collect(HUNDREDFOLD, 2).rollout
    expected = uniforms(5, "actions", 2, torch.arange(2), 9) >= 0.5
    assert torch.equal(rollout.inputs["actions"].bool() & rollout.mask, expected & rollout.mask)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_rollout_says_what_the_training_forward_says(env_id: str) -> None:
    policy = policy_for(env_id, normalise_observations=True).double()
    collector = collector_of(*(make_env(env_id) for _ in range(3)))
    for update in range(2):
        rollout = collector.collect(policy, update).rollout
        with torch.no_grad():
            output = policy(rollout.inputs)
        assert float((output.logprobs - rollout.logprobs)[rollout.mask].abs().max()) <= 1e-9
        assert float((output.values - rollout.values)[rollout.mask].abs().max()) <= 1e-9


def test_the_reference_scores_the_same_actions() -> None:
    policy, reference = policy_for("CartPole-v1"), ControlPolicy(HUNDREDFOLD.spaces, PolicyConfig(), seed=0)
    reference = ControlPolicy(policy.spaces, policy.config, seed=9)
    rollout = collector_of(*cartpoles(3), reference=reference).collect(policy, 0).rollout
    with torch.no_grad():
        expected = reference(rollout.inputs).logprobs
    assert float((expected - rollout.ref_logprobs)[rollout.mask].abs().max()) <= 1e-5
    assert float((rollout.logprobs - rollout.ref_logprobs)[rollout.mask].abs().max()) > 1e-4


def test_a_critic_of_actions_values_the_state_that_each_step_led_to() -> None:
    policy = policy_for("CartPole-v1", critic="action").double()
    rollout = collector_of(*cartpoles(3)).collect(policy, 0).rollout
    with torch.no_grad():
        expected = policy.state_values(rollout.next_inputs)
    going_on = rollout.mask & ~rollout.terminals
    assert torch.allclose(rollout.next_values[going_on], expected[going_on], rtol=0, atol=1e-9)
    assert not rollout.next_values[~going_on].any()


def test_episodes_that_ended_are_reported() -> None:
    collector = collector_of(Walk(terminal=3), Walk(limit=2), Walk(limit=2), Walk(limit=2), episodes_per_start=2)
    _, metrics, samples = collector.collect(HUNDREDFOLD, 0)
    # Returns 6, 3, 3, 3 of 3, 2, 2, 2 steps.
    assert metrics == {
        "episodes": 4,
        "return_mean": 3.75,
        "return_std": pytest.approx(1.5 * 0.75**0.5, rel=1e-12),
        "episode_length_mean": 2.25,
        "reward_per_step": pytest.approx(15 / 9, rel=1e-12),
        "env_steps": 9,
    }
    seed = derive_seed(0, "start", 0, 1)
    assert samples[2] == {"return": 3.0, "length": 2, "episode": 2, "group": 1, "seed": seed}
    assert collector.collect(HUNDREDFOLD, 1).metrics["env_steps"] == 18


def test_observations_are_normalised_by_moments_of_what_was_acted_on() -> None:
    policy = hundredfold_policy(vector(Walk()), normalise_observations=True)
    collector_of(Walk(terminal=2), Walk(terminal=4)).collect(policy, 0)
    # 0, 1 and 0, 1, 2, 3; neither final observations nor padding.
    assert int(policy.normalizer.count) == 6
    assert float(policy.normalizer.mean) == pytest.approx(7 / 6, abs=1e-12)


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return() -> None:
    collector = collector_of(Walk(terminal=3), Walk(limit=2), normalise_rewards=True)
    first, second = (collector.collect(HUNDREDFOLD, update).rollout.rewards for update in range(2))
    # R_t = r_t + R_{t-1} / 2 from 0 in each episode: 1, 2.5, 4.25 and 1, 2.5; twice the same has the same deviation.
    expected = np.array([[1, 2, 3], [1, 2, 0]]) / np.std([1, 2.5, 4.25, 1, 2.5])
    np.testing.assert_allclose(first, expected, rtol=1e-7)
    np.testing.assert_allclose(second, expected, rtol=1e-7)


def test_a_resumed_collector_goes_on_bitwise(tmp_path: Path) -> None:
    policy = policy_for("CartPole-v1")
    collector, resumed = (collector_of(*cartpoles(3), normalise_rewards=True) for _ in range(2))
    collector.collect(policy, 0)
    save_state(tmp_path, collector.state_dict())
    resumed.collect(policy, 7)
    resumed.load_state_dict(load_state(tmp_path))
    a, b = collector.collect(policy, 1), resumed.collect(policy, 1)
    assert torch.equal(a.rollout.rewards, b.rollout.rewards)
    assert torch.equal(a.rollout.logprobs, b.rollout.logprobs)
    assert (a.metrics, a.samples) == (b.metrics, b.samples)


def test_rewards_follow_from_the_start() -> None:
    collector = collector_of(Lottery(), Lottery(), episodes_per_start=2)
    rollout = collector.collect(HUNDREDFOLD, 4).rollout
    paid = np.random.default_rng(derive_seed(0, "start", 4, 0)).random(3)
    np.testing.assert_allclose(rollout.rewards + rollout.inputs["actions"], [paid, paid], rtol=1e-12)


def test_another_number_of_environments_than_episodes_is_refused() -> None:
    with pytest.raises(InputError, match="episodes is 3"):
        EpisodeCollector([Walk()], config=CollectSteps(episodes=3), gamma=1.0, seed=0, accelerator=CPU)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"episodes_per_start": 0}, "episodes_per_start is 0; it must be at least 1"),
        ({"episodes": -1}, "episodes is -1; it must not be negative"),
        ({"episodes_per_start": 2}, "episodes is 0, in which starts with episodes_per_start = 2 episodes each do not"),
        ({"episodes": 9, "episodes_per_start": 2}, "episodes is 9, .* make it a positive multiple"),
    ],
)
def test_sizes_that_make_no_groups_are_refused(bad: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CollectSteps(**bad)
