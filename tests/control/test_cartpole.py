"""The batched CartPole is bit for bit what as many single ones are."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlhf.control.cartpole import BatchedCartPole
from rlhf.control.envs import make_env
from rlhf.control.episodes import Episodes
from rlhf.control.evaluate import run_episodes


def pair(num_envs: int) -> tuple[SyncVectorEnv, BatchedCartPole]:
    makers = [lambda: make_env("CartPole-v1")] * num_envs
    return SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED), BatchedCartPole(num_envs)


def test_steps_rewards_and_ends_are_those_of_single_ones() -> None:
    """Several hundred episodes with random actions, each with a seed of its own."""
    both = [Episodes(envs, seed=3, first_id=0) for envs in pair(20)]
    actions = np.random.default_rng(0).integers(0, 2, (600, 20))
    ended = 0
    for step in actions:
        single, batched = (episodes.step(step) for episodes in both)
        for name in ("next_observations", "rewards", "terminated", "truncated", "mask"):
            assert np.array_equal(getattr(single, name), getattr(batched, name)), name
        assert single.finished == batched.finished
        assert np.array_equal(both[0].observations, both[1].observations)
        ended += len(single.finished)
    assert ended > 200


def balance(observations: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
    """Pushes to where the pole falls, which half of the episodes survive: they heed its speed as well."""
    return (observations[:, 2] + (episodes % 2) * observations[:, 3] > 0).astype(np.int64)


def test_whole_episodes_and_the_time_limit_are_those_of_single_ones() -> None:
    seeds = list(range(30))
    singles = run_episodes(balance, [make_env("CartPole-v1") for _ in seeds], seeds)
    batched = run_episodes(balance, BatchedCartPole(40), seeds)
    for a, b in zip(singles, batched, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.rewards, b.rewards)
        assert np.array_equal(a.observations, b.observations)
        assert a.terminated == b.terminated
    lengths = {len(episode.rewards) for episode in singles}
    assert 500 in lengths
    assert len(lengths) > 1


def test_a_resumed_batch_goes_on_where_it_was() -> None:
    actions = np.random.default_rng(1).integers(0, 2, (50, 4))
    whole = Episodes(BatchedCartPole(4), seed=0, first_id=0)
    for step in actions[:25]:
        whole.step(step)
    resumed = Episodes(BatchedCartPole(4), seed=0, first_id=0)
    resumed.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in whole.state_dict().items()})
    for step in actions[25:]:
        a, b = whole.step(step), resumed.step(step)
        assert np.array_equal(a.next_observations, b.next_observations)
        assert a.finished == b.finished
