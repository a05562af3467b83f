"""Actors that lag: who acted, who is scored, and that a resumed run goes on with the same actors."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator

from rlhf.control.collect import Config, EnvCollector
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.errors import InputError
from rlhf.lag import LaggedCollector
from tests.lm.worlds import word_collector, word_policy

CPU = Accelerator(cpu=True)


def control(*, critic: str = "state", steps: int = 40) -> tuple[ControlPolicy, EnvCollector]:
    envs = make_envs("CartPole-v1", 3)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(critic=critic), seed=0).double()
    config = Config(num_envs=3, steps_per_rollout=steps)
    return policy, EnvCollector(envs, config=config, gamma=0.9, seed=0, accelerator=CPU)


def lagged(collector, lag: int) -> LaggedCollector:
    return LaggedCollector(collector, lag=lag, accelerator=CPU, micro_batch_cost=50)


@torch.no_grad()
def move(policy: torch.nn.Module, seed: int) -> None:
    for i, tensor in enumerate(policy.parameters()):
        generator = torch.Generator().manual_seed(100 * seed + i)
        tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))


@pytest.mark.parametrize("critic", ["state", "action"])
def test_without_lag_nothing_changes(critic: str) -> None:
    """Rescoring is what acting had found: values of final observations of cut episodes and fragments too."""
    plain = control(critic=critic)
    policy, collector = control(critic=critic)
    for update in range(2):
        a = plain[1].collect(plain[0], update).rollout
        b = lagged(collector, 0).collect(policy, update).rollout
        for name in ("behaviour_logprobs", "logprobs", "values", "next_values", "rewards"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)


def test_without_lag_nothing_changes_on_language() -> None:
    policy = word_policy(temperature=0.8)
    a = word_collector().collect(policy, 0).rollout
    b = lagged(word_collector(), 0).collect(policy, 0).rollout
    for name in ("behaviour_logprobs", "logprobs", "values", "next_values"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-5)


def test_actors_lag_and_the_learner_is_scored() -> None:
    policy, collector = control()
    actor, own = lagged(collector, 2), []
    for update in range(4):
        own.append(copy.deepcopy(policy))
        rollout = actor.collect(policy, update).rollout
        acted = own[max(update - 2, 0)](rollout.inputs).logprobs
        torch.testing.assert_close(rollout.behaviour_logprobs, acted.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.logprobs, policy(rollout.inputs).logprobs.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.values, policy(rollout.inputs).values.detach(), rtol=0, atol=1e-12)
        for now, then in zip(policy.parameters(), own[-1].parameters(), strict=True):
            assert torch.equal(now, then)
        move(policy, update)


def test_lagging_actors_are_part_of_the_checkpoint() -> None:
    policy, collector = control()
    actor = lagged(collector, 2)
    for update in range(3):
        actor.collect(policy, update)
        move(policy, update)
    state = copy.deepcopy(actor.state_dict())
    expected = actor.collect(policy, 3).rollout
    resumed = lagged(control()[1], 2)
    resumed.load_state_dict(state)
    rollout = resumed.collect(policy, 3).rollout
    assert torch.equal(rollout.behaviour_logprobs, expected.behaviour_logprobs)
    assert torch.equal(rollout.rewards, expected.rewards)


def test_a_negative_lag_is_refused() -> None:
    with pytest.raises(InputError, match="lag is -1"):
        lagged(control()[1], -1)
