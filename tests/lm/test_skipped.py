"""Updates in which the reward functions failed and were skipped."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import rlhf
from rlhf.lm.settings import Calling
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import ROWS, word_collector, word_policy


def trained(reward: Any, policy: Any, *, updates: int) -> rlhf.Result:
    policy.tokenizer, policy.end_tokens = word_tokenizer(), (EOS, D)
    task = rlhf.Prompts(ROWS, reward, max_new_tokens=6, held_out=ROWS, prompts_per_rollout=4, on_reward_error="skip")
    settings = rlhf.Optimize(learning_rate=1e-2, epochs=1, weight_decay=0.1)
    return rlhf.train(policy, task, rlhf.PPO(), settings, updates=updates, evaluations=0)


def test_update_without_any_score_moves_nothing_and_the_run_goes_on():
    policy, seen = word_policy(), []

    def reward(responses):
        """Called once to be tried, twice to evaluate, then once an update: fails in the third."""
        seen.append([parameter.detach().clone() for parameter in policy.parameters()])
        if len(seen) == 6:
            raise ConnectionError("no answer")
        return [float(len(response)) for response in responses]

    trained(reward, policy, updates=5)
    moved = [
        any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        for before, after in itertools.pairwise(seen)
    ]
    # Before the first update nothing is learned, and nothing from the failure; Adam's momentum waits too.
    assert moved == [False, False, False, True, True, False, True, True, False]


def test_rewards_that_never_answer_again_stop_the_run():
    calls = []

    def reward(responses):
        calls.append(1)
        if len(calls) > 3:
            raise ConnectionError("no answer")
        return [1.0] * len(responses)

    with pytest.raises(RuntimeError, match="failed in 3 updates one after the other"):
        trained(reward, word_policy(), updates=9)
    assert len(calls) == 6


def test_samples_that_a_function_was_skipped_for_are_counted(monkeypatch):
    failing = [True, False]

    def judge(completions):
        if failing.pop(0):
            raise ConnectionError("no answer")
        return [2.0] * len(completions)

    def ones(completions):
        return [1.0] * len(completions)

    collector = word_collector(judge, ones)
    monkeypatch.setattr(collector.rewards, "calling", Calling(on_error="skip"))
    first, second = (collector.collect(word_policy(), update)[1] for update in (0, 1))
    assert (first["reward_skipped/judge"], first["reward_skipped/ones"], first["score_mean"]) == (12.0, 0.0, 1.0)
    assert "reward/judge" not in first
    assert (second["reward_skipped/judge"], second["reward/judge"], second["score_mean"]) == (0.0, 2.0, 3.0)
