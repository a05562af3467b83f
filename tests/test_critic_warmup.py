"""While the critic warms up, the policy stays as it is to the last bit, whatever parameters the two share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import rlhf
from rlhf.algorithms.ppo import PPO
from rlhf.lm.policy import CausalLM
from rlhf.optimize import Optimize
from tests.unmoved import policy_of, train, unmoved, weights_of

SETTINGS = Optimize(learning_rate=1e-2, epochs=2, minibatches=2, micro_batch_cost=40)


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


@torch.no_grad()
def logprobs_of(policy: CausalLM) -> torch.Tensor:
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    actions = torch.arange(1, 6).repeat(2, 1)
    return policy({"tokens": tokens, "lengths": torch.tensor([6, 6]), "actions": actions}).logprobs


@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ({}, PPO(), {}),
        ({}, PPO(entropy_coef=0.1, value_clip=0.2, kl_coef=0.1), {"weight_decay": 0.1}),
        ({"critic": "separate"}, PPO(), {"weight_decay": 0.1}),
        ({"adapter": "fresh"}, PPO(), {"weight_decay": 0.1}),
        ({"adapter": "whole head"}, PPO(), {"whiten": "minibatch"}),
        ({"mixed_precision": "bf16"}, PPO(), {}),
        ({"lag": 1}, PPO(), {}),
    ],
)
def test_only_the_critic_learns_while_it_warms_up(kind: dict[str, Any], method: PPO, settings: dict[str, Any]) -> None:
    kind = dict(kind)
    policy = policy_of(**{name: kind.pop(name) for name in ("critic", "adapter") if name in kind})
    before, said, head = weights_of(policy), logprobs_of(policy), policy.value_head.weight.detach().clone()
    train(policy, replace(method, critic_warmup=3), replace(SETTINGS, **settings), length, **kind)
    assert unmoved(policy, before)
    assert torch.equal(logprobs_of(policy), said)
    assert not torch.equal(policy.value_head.weight, head)


def test_the_policy_learns_after_the_warm_up() -> None:
    policy = policy_of()
    before = weights_of(policy)
    train(policy, PPO(critic_warmup=2), SETTINGS, length, updates=3)
    assert not unmoved(policy, before)


def test_adam_knows_nothing_of_the_policy_before_its_first_step() -> None:
    """That step is then of the learning rate in every weight: m / sqrt(v) = g / |g|, both corrected for one step."""
    task = rlhf.Envs("CartPole-v1", num_envs=4, steps=8)
    policy = task.policy()
    before = {name: x.detach().clone() for name, x in policy.actor.named_parameters()}
    settings = Optimize(learning_rate=1e-3, epochs=1, adam_eps=1e-12, max_gradient_norm=0.0)
    rlhf.train(policy, task, PPO(gamma=0.99, critic_warmup=3), settings, updates=4)
    steps = torch.cat([(x.detach() - before[name]).flatten().abs() for name, x in policy.actor.named_parameters()])
    torch.testing.assert_close(steps, torch.full_like(steps, 1e-3), rtol=1e-2, atol=0.0)
