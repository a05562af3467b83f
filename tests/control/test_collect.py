from __future__ import annotations

import copy
import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from rlhf.control.collect import CollectSteps, EnvCollector
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.rollout import Rollout
from rlhf.runs.state import load_state, save_state
from tests.control.worlds import CPU, Forgetful, Lottery, Walk, collector_of, hundredfold_policy, vector

MODES = list(AutoresetMode)
FIELDS = ("behaviour_logprobs", "logprobs", "values", "next_values", "rewards", "dones", "mask", "sample_ids", "costs")


def collect_walk(mode: AutoresetMode, steps: int, **ends: int) -> tuple[Rollout, dict, list]:
    envs = vector(Walk(**ends), mode=mode)
    return collector_of(envs, steps).collect(hundredfold_policy(envs), 0)


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    ("ends", "at_the_end"), [({"terminal": 3}, 0.0), ({"limit": 3}, 300.0), ({"terminal": 3, "limit": 3}, 0.0)]
)
def test_collect_knows_a_terminal_state_from_a_time_limit(mode: AutoresetMode, ends: dict, at_the_end: float) -> None:
    rollout = collect_walk(mode, 5, **ends)[0]
    assert rollout.inputs["observations"].flatten().tolist() == [0, 1, 2, 0, 1]
    assert rollout.rewards.tolist() == [[1, 2, 3, 1, 2]]
    assert rollout.dones.tolist() == [[False, False, True, False, False]]
    assert rollout.mask.all()
    assert rollout.values.tolist() == [[0, 100, 200, 0, 100]]
    # The fragment is cut after x = 1, which led to x = 2.
    assert rollout.next_values.tolist() == [[100, 200, at_the_end, 100, 200]]


@pytest.mark.parametrize(
    ("ends", "at_the_end"), [({"terminal": 3}, 0.0), ({"limit": 3}, 300.0), ({"terminal": 3, "limit": 3}, 0.0)]
)
def test_collect_masks_the_step_that_next_step_autoreset_spends(ends: dict, at_the_end: float) -> None:
    rollout = collect_walk(AutoresetMode.NEXT_STEP, 6, **ends)[0]
    assert rollout.inputs["observations"].flatten().tolist() == [0, 1, 2, 3, 0, 1]
    assert rollout.mask.tolist() == [[True, True, True, False, True, True]]
    assert rollout.rewards.tolist() == [[1, 2, 3, 0, 1, 2]]
    assert rollout.dones.tolist() == [[False, False, True, False, False, False]]
    assert rollout.next_values.tolist() == [[100, 200, at_the_end, 0, 100, 200]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("ends", "at_the_end"), [({"terminal": 3}, 0.0), ({"limit": 3}, 300.0)])
def test_collect_ends_an_episode_in_the_last_column(mode: AutoresetMode, ends: dict, at_the_end: float) -> None:
    envs = vector(Walk(**ends), mode=mode)
    collector, policy = collector_of(envs, 3), hundredfold_policy(envs)
    first, second = collector.collect(policy, 0).rollout, collector.collect(policy, 1).rollout
    assert first.next_values.tolist() == [[100, 200, at_the_end]]
    assert first.dones.tolist() == [[False, False, True]]
    masked = mode is AutoresetMode.NEXT_STEP
    assert second.mask.tolist() == [[not masked, True, True]]
    assert second.rewards.tolist() == [[0, 1, 2] if masked else [1, 2, 3]]


def test_collect_is_the_same_in_every_autoreset_mode() -> None:
    cells = []
    for mode in MODES:
        envs = vector(Walk(terminal=3), Walk(limit=4), Walk(terminal=7, limit=5), mode=mode)
        collector, policy = collector_of(envs, 5), hundredfold_policy(envs)
        rollouts = [collector.collect(policy, update).rollout for update in range(4)]
        per_env = []
        for env in range(3):
            columns = [
                torch.cat([getattr(rollout, name)[env][rollout.mask[env]] for rollout in rollouts]).double()
                for name in ("values", "rewards", "dones", "logprobs")
            ]
            # At the cut of a fragment next_values are the same too: V of where the step led.
            columns.append(torch.cat([rollout.next_values[env][rollout.mask[env]] for rollout in rollouts]))
            per_env.append(torch.stack(columns)[:, :15])
        cells.append(torch.stack(per_env))
    assert torch.equal(cells[0], cells[1])
    assert torch.equal(cells[0], cells[2])


def test_collect_takes_the_vector_environment_that_cartpole_brings_along() -> None:
    envs = gymnasium.make_vec("CartPole-v1", num_envs=16, vectorization_mode="vector_entry_point")
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(), seed=0)
    rollout, metrics, samples = collector_of(envs, 64).collect(policy, 0)
    assert metrics["episodes"] == len(samples) > 16
    assert torch.equal(rollout.rewards, rollout.mask.float())
    assert torch.equal(rollout.mask[:, 1:], ~rollout.dones[:, :-1])
    assert metrics["env_steps"] == int(rollout.mask.sum()) < 16 * 64


def test_collect_reports_the_episodes_that_ended() -> None:
    envs = vector(Walk(terminal=3), Walk(limit=2))
    collector, policy = collector_of(envs, 5), hundredfold_policy(envs)
    _, metrics, samples = collector.collect(policy, 0)
    # Returns 1 + 2 + 3 = 6 and 1 + 2 = 3, twice; paid in all (6 + 3) + (3 + 3 + 1).
    assert metrics == {
        "episodes": 3,
        "return_mean": 4.0,
        "return_std": pytest.approx(math.sqrt(2.0), rel=1e-12),
        "episode_length_mean": pytest.approx(7 / 3, rel=1e-12),
        "reward_per_step": 1.6,
        "env_steps": 10,
    }
    assert {"env": 1, "episode": 1, "return": 3.0, "length": 2, "seed": derive_seed(0, "episode", 1, 1)} in samples
    assert collector.collect(policy, 1).metrics["env_steps"] == 20


def test_collect_reports_no_return_where_no_episode_ended() -> None:
    _, metrics, samples = collect_walk(AutoresetMode.DISABLED, 5)
    assert metrics == {"episodes": 0, "reward_per_step": 3.0, "env_steps": 5}
    assert samples == []


def test_collect_seeds_each_episode_by_environment_and_number() -> None:
    envs = vector(Lottery(), Lottery())
    rollout = collector_of(envs, 6, seed=3).collect(hundredfold_policy(envs), 0).rollout
    for env in range(2):
        for episode in range(2):
            expected = np.random.default_rng(derive_seed(3, "episode", env, episode)).random(3)
            cells = slice(3 * episode, 3 * episode + 3)
            paid = rollout.rewards[env, cells] + rollout.inputs["actions"][env, cells]
            assert paid.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_collect_draws_do_not_depend_on_the_number_of_environments(env_id: str) -> None:
    rollouts = []
    for num_envs in (2, 5):
        envs = make_envs(env_id, num_envs)
        policy = ControlPolicy(spaces_of(envs), PolicyConfig(), seed=0).double()
        rollouts.append(collector_of(envs, 40).collect(policy, 7).rollout.rows(torch.arange(2)))
    assert torch.equal(rollouts[0].inputs["observations"], rollouts[1].inputs["observations"])
    assert torch.allclose(rollouts[0].inputs["actions"], rollouts[1].inputs["actions"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_collect_captures_what_the_training_forward_says(env_id: str, dtype: torch.dtype, tolerance: float) -> None:
    envs = make_envs(env_id, 3)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(normalise_observations=True), seed=0)
    policy = policy.double() if dtype == torch.float64 else policy
    collector = collector_of(envs, 50)
    for update in range(2):
        rollout = collector.collect(policy, update).rollout
        with torch.no_grad():
            output = policy(rollout.inputs)
        assert float((output.logprobs - rollout.logprobs).abs().max()) <= tolerance
        assert float((output.values - rollout.values).abs().max()) <= tolerance
        assert rollout.values.dtype == rollout.rewards.dtype == dtype
        assert torch.equal(rollout.logprobs, rollout.behaviour_logprobs)


def test_collect_clips_vector_actions_only_for_the_environment() -> None:
    envs = make_envs("Pendulum-v1", 2)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(initial_log_std=2.0), seed=0)
    collector = collector_of(envs, 30)
    rollout = collector.collect(policy, 0).rollout
    given = collector.state_dict()["episodes"]["actions"].view(2, 30, 1)
    assert float(rollout.inputs["actions"].abs().max()) > 2.0
    assert torch.equal(given, rollout.inputs["actions"].clamp(-2.0, 2.0))


def test_collect_normalises_by_moments_of_everything_seen_before() -> None:
    envs = [vector(Walk(terminal=30), Walk(terminal=4)) for _ in range(2)]
    raw_collector, collector = (collector_of(e, 10) for e in envs)
    plain, policy = hundredfold_policy(envs[0]), hundredfold_policy(envs[1], normalise_observations=True)
    seen = np.zeros((0, 1))
    for update in range(3):
        raw = raw_collector.collect(plain, update).rollout.inputs["observations"].numpy()
        normalised = collector.collect(policy, update).rollout.inputs["observations"].numpy()
        expected = (raw - seen.mean()) / np.sqrt(seen.var() + 1e-8) if update else raw
        np.testing.assert_allclose(normalised, expected, rtol=1e-12)
        seen = np.concatenate([seen, raw.reshape(-1, 1)])
        np.testing.assert_allclose(policy.normalizer.mean.numpy(), seen.mean(0), rtol=1e-12)
        np.testing.assert_allclose(policy.normalizer.var.numpy(), seen.var(0), rtol=1e-12)
        assert int(policy.normalizer.count) == len(seen)


def test_collect_leaves_masked_steps_out_of_the_moments() -> None:
    envs = vector(Walk(terminal=3), mode=AutoresetMode.NEXT_STEP)
    policy = hundredfold_policy(envs, normalise_observations=True)
    collector_of(envs, 8).collect(policy, 0)
    # 0, 1, 2, (3), 0, 1, 2, (3)
    assert int(policy.normalizer.count) == 6
    assert float(policy.normalizer.mean) == pytest.approx(1.0, abs=1e-12)


def test_collect_scales_rewards_by_the_deviation_of_the_discounted_return() -> None:
    envs = vector(Walk(terminal=3))
    collector, policy = collector_of(envs, 4, gamma=0.5, normalise_rewards=True), hundredfold_policy(envs)
    # R_t = r_t + R_{t-1} / 2, from 0 in each episode: 1, 2.5, 4.25, 1 | 2.5, 4.25, 1, 2.5
    returns = [1, 2.5, 4.25, 1, 2.5, 4.25, 1, 2.5]
    first, second = collector.collect(policy, 0), collector.collect(policy, 1)
    np.testing.assert_allclose(first.rollout.rewards[0], np.array([1, 2, 3, 1]) / np.std(returns[:4]), rtol=1e-7)
    np.testing.assert_allclose(second.rollout.rewards[0], np.array([2, 3, 1, 2]) / np.std(returns), rtol=1e-7)
    assert second.samples[0]["return"] == 6.0
    assert second.metrics["reward_per_step"] == 2.0


def test_collect_leaves_masked_steps_out_of_the_deviation() -> None:
    envs = vector(Walk(terminal=3), mode=AutoresetMode.NEXT_STEP)
    collector = collector_of(envs, 4, gamma=0.5, normalise_rewards=True)
    rewards = collector.collect(hundredfold_policy(envs), 0).rollout.rewards
    np.testing.assert_allclose(rewards[0], np.array([1, 2, 3, 0]) / np.std([1, 2.5, 4.25]), rtol=1e-7)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_collector_resumes_bitwise_in_the_middle_of_episodes(env_id: str, tmp_path: Path) -> None:
    def make() -> tuple[EnvCollector, ControlPolicy]:
        envs = make_envs(env_id, 3)
        policy = ControlPolicy(spaces_of(envs), PolicyConfig(normalise_observations=True), seed=1)
        return collector_of(envs, 70, normalise_rewards=True), policy

    collector, policy = make()
    for update in range(3):
        collector.collect(policy, update)
    save_state(tmp_path, collector.state_dict())
    weights = copy.deepcopy(policy.state_dict())
    resumed, other = make()
    other.load_state_dict(weights)
    # Whatever the new collector did before does not matter.
    resumed.collect(other, 11)
    other.load_state_dict(weights)
    resumed.load_state_dict(load_state(tmp_path))
    for update in range(3, 6):
        a, b = collector.collect(policy, update), resumed.collect(other, update)
        assert all(torch.equal(getattr(a.rollout, name), getattr(b.rollout, name)) for name in FIELDS)
        assert all(torch.equal(a.rollout.inputs[name], b.rollout.inputs[name]) for name in a.rollout.inputs)
        assert (a.metrics, a.samples) == (b.metrics, b.samples)


@pytest.mark.parametrize("steps", [3, 8])
def test_collector_resumes_episodes_of_any_age(steps: int) -> None:
    """After 3 steps Lottery has just begun anew; after 8 it is at its second step, and Walk at its eighth."""
    envs = vector(Lottery(), Walk(), Lottery())
    collector, policy = collector_of(envs, steps), hundredfold_policy(envs)
    collector.collect(policy, 0)
    resumed = collector_of(vector(Lottery(), Walk(), Lottery()), steps)
    resumed.load_state_dict(collector.state_dict())
    a, b = collector.collect(policy, 1), resumed.collect(policy, 1)
    assert torch.equal(a.rollout.rewards, b.rollout.rewards)
    assert torch.equal(a.rollout.inputs["observations"], b.rollout.inputs["observations"])
    assert a.samples == b.samples


def test_collector_resumes_before_its_first_step() -> None:
    collector = collector_of(vector(Lottery(), Lottery()), 3)
    resumed = collector_of(vector(Lottery(), Lottery()), 3)
    policy = hundredfold_policy(resumed.envs)
    resumed.collect(policy, 4)
    resumed.load_state_dict(collector.state_dict())
    assert torch.equal(collector.collect(policy, 0).rollout.rewards, resumed.collect(policy, 0).rollout.rewards)


def test_collector_refuses_to_resume_an_environment_that_does_not_repeat_itself() -> None:
    envs = vector(Forgetful(terminal=3))
    collector = collector_of(envs, 6)
    collector.collect(hundredfold_policy(envs), 0)
    with pytest.raises(InputError, match="not a function of its reset seed"):
        collector_of(vector(Forgetful(terminal=3)), 6).load_state_dict(collector.state_dict())


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_collector_refuses_to_resume_environments_that_reset_themselves(mode: AutoresetMode) -> None:
    collector = collector_of(vector(Walk(terminal=3), mode=mode), 6)
    with pytest.raises(InputError, match="cannot be resumed"):
        collector.load_state_dict(collector.state_dict())


def test_collect_measures_the_reference_by_its_own_moments() -> None:
    envs = make_envs("Pendulum-v1", 2)
    reference = ControlPolicy(spaces_of(envs), PolicyConfig(normalise_observations=True), seed=5)
    reference.normalizer.update(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1, lambda sums: sums
    )
    policy = copy.deepcopy(reference)
    collector = collector_of(envs, 20, reference=reference)
    first, second = (collector.collect(policy, update).rollout for update in range(2))
    # A clone is at distance 0 until its own moments move.
    assert torch.allclose(first.ref_logprobs, first.logprobs, rtol=0, atol=1e-5)
    assert not torch.allclose(second.ref_logprobs, second.logprobs, rtol=0, atol=1e-3)


def test_collector_refuses_another_number_of_environments_than_configured() -> None:
    envs = vector(Walk())
    with pytest.raises(InputError, match="num_envs is 3"):
        EnvCollector(envs, config=CollectSteps(num_envs=3), gamma=0.9, seed=0, accelerator=CPU)


@pytest.mark.parametrize("bad", [{"num_envs": 0}, {"steps": 0}])
def test_collect_config_refuses_sizes_below_one(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        CollectSteps(**bad)
