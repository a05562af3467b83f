from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.control.envs import make_env, spaces_of
from rlhf.control.evaluate import (
    EvaluateEpisodes,
    Evaluator,
    load_episodes,
    replay_episodes,
    run_episodes,
    save_episodes,
)
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from tests.control.worlds import CPU, Walk


def evaluator_of(env_id: str, episodes: int, sampled: int, **options: Any) -> tuple[Evaluator, ControlPolicy]:
    config = EvaluateEpisodes(episodes=episodes, sampled_episodes=sampled)
    evaluator = Evaluator(env_id, config=config, seed=4, accelerator=CPU, **options)
    policy = ControlPolicy(spaces_of(make_env(env_id)), PolicyConfig(normalise_observations=True), seed=0)
    return evaluator, policy


def test_evaluator_plays_the_episodes_of_its_seed() -> None:
    evaluator, policy = evaluator_of("Lottery-v0", 5, 0)
    with torch.no_grad():
        policy.actor[-1].bias.copy_(torch.tensor([0.0, 9.0]))
    # Three steps, each paying a uniform draw of the reset's seed minus the greedy action, 1.
    returns = [np.random.default_rng(derive_seed(4, "evaluation", i)).random(3).sum() - 3 for i in range(5)]
    evaluation = evaluator(policy)
    assert evaluation.metrics == pytest.approx(
        {
            "eval_return_mean": np.mean(returns),
            "eval_return_std": np.std(returns),
            "eval_return_min": np.min(returns),
            "eval_length_mean": 3.0,
            "eval_reward_per_step": np.mean(returns) / 3,
        },
        abs=1e-12,
    )
    assert [sample["return"] for sample in evaluation.samples] == pytest.approx(returns, abs=1e-12)
    assert evaluation.samples[2]["seed"] == derive_seed(4, "evaluation", 2)


def test_evaluator_says_the_same_each_time_and_moves_no_moments() -> None:
    evaluator, policy = evaluator_of("CartPole-v1", 4, 6)
    policy.normalizer.update(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), lambda sums: sums)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    assert evaluator(policy) == evaluator(policy)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


def test_evaluator_tells_greedy_from_sampled() -> None:
    evaluator, policy = evaluator_of("Lottery-v0", 3, 3)
    with torch.no_grad():
        # Action 1 with probability 3/4: greedily always, sampled not always.
        policy.actor[-1].weight.zero_()
        policy.actor[-1].bias.copy_(torch.tensor([0.0, np.log(3.0)]))
    samples = evaluator(policy).samples
    greedy, sampled = samples[:3], samples[3:]
    assert [s["seed"] for s in greedy] == [s["seed"] for s in sampled]
    gains = [b["return"] - a["return"] for a, b in zip(greedy, sampled, strict=True)]
    assert all(abs(gain - round(gain)) < 1e-12 for gain in gains)
    assert 0 < sum(gains) < 9


def test_evaluator_draws_do_not_depend_on_the_other_episodes() -> None:
    few, policy = evaluator_of("CartPole-v1", 2, 2)
    many, _ = evaluator_of("CartPole-v1", 2, 9)
    policy.double()
    assert few(policy).samples == many(policy).samples[:4]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_evaluator_cache_replays_to_the_same_rewards(env_id: str, tmp_path: Path) -> None:
    evaluator, policy = evaluator_of(env_id, 2, 2, cache=tmp_path / "episodes.safetensors")
    evaluation = evaluator(policy)
    episodes = replay_episodes(tmp_path / "episodes.safetensors")
    assert [episode.total() for episode in episodes] == [sample["return"] for sample in evaluation.samples]
    assert [episode.sampled for episode in episodes] == [False, False, True, True]


def test_replay_refuses_episodes_that_pay_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "episodes.safetensors"
    evaluator, policy = evaluator_of("Lottery-v0", 3, 0, cache=path)
    evaluator(policy)
    env_id, episodes = load_episodes(path)
    episodes[1].actions[0] ^= 1
    save_episodes(path, env_id, episodes)
    with pytest.raises(InputError, match="episode 1 of"):
        replay_episodes(path)


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
def test_kept_episodes_have_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    path = tmp_path / "episodes.safetensors"
    before = os.umask(0o027)
    try:
        evaluator, policy = evaluator_of("Lottery-v0", 3, 0, cache=path)
        evaluator(policy)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_run_episodes_drops_environments_that_are_done() -> None:
    seen = []

    def act(observations: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
        seen.append((observations.flatten().tolist(), episodes.tolist(), step))
        return np.zeros(len(episodes), dtype=np.int64)

    played = run_episodes(act, [Walk(terminal=1), Walk(limit=3), Walk(terminal=2)], [0, 0, 0])
    assert seen == [([0, 0, 0], [0, 1, 2], 0), ([1, 1], [1, 2], 1), ([2], [1], 2)]
    assert [episode.rewards.tolist() for episode in played] == [[1], [1, 2, 3], [1, 2]]
    assert [episode.observations.flatten().tolist() for episode in played] == [[0, 1], [0, 1, 2, 3], [0, 1, 2]]
    assert [episode.terminated for episode in played] == [True, False, True]


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"sampled_episodes": -1}])
def test_evaluation_config_refuses_numbers_of_episodes_below_the_least(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"at least 1|must not be negative"):
        EvaluateEpisodes(**bad)
