"""Where all that was paid is alike, the policy stays as it is to the last bit, by whatever method and reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from accelerate import Accelerator

import rlhf
from rlhf.algorithms import checks
from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.alike import share_of_groups, teaches
from rlhf.algorithms.base import Method
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.impala import Impala
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.ppo_kl import PPOKL
from rlhf.algorithms.reinforce import Reinforce
from rlhf.algorithms.reinforce_pp import ReinforcePP
from rlhf.algorithms.rloo import RLOO
from rlhf.algorithms.td_lambda import TDLambda
from rlhf.algorithms.trpo import TRPO
from rlhf.optimize import Optimize
from rlhf.rollout import Rollout
from tests.batches import make_rollout
from tests.tabular import TabularPolicy
from tests.unmoved import policy_of, train, unmoved, weights_of

HERE = Accelerator(cpu=True)
SEVERAL = Optimize(learning_rate=1e-2, epochs=2, minibatches=2, weight_decay=0.1, micro_batch_cost=40)
ONE = replace(SEVERAL, epochs=1, minibatches=1)


def paid(number: float) -> Any:
    def reward(responses: list[str], **_: Any) -> list[float]:
        return [number] * len(responses)

    return reward


METHODS: dict[str, tuple[Method, Optimize]] = {
    "ppo": (PPO(), SEVERAL),
    "ppo charged": (PPO(kl_coef=0.05), SEVERAL),
    "ppo by minibatch": (PPO(kl_coef=0.05), replace(SEVERAL, whiten="minibatch")),
    "ppo not whitened": (PPO(kl_coef=0.05), replace(SEVERAL, whiten="none")),
    "ppo_kl": (PPOKL(kl_coef=0.05), SEVERAL),
    "a2c": (A2C(kl_coef=0.05), ONE),
    "a2c, critic first": (A2C(kl_coef=0.05, critic=Critic(epochs=2)), ONE),
    "reinforce": (Reinforce(kl_coef=0.05), ONE),
    "reinforce, critic first": (Reinforce(kl_coef=0.05, baseline="value"), ONE),
    "reinforce_pp": (ReinforcePP(kl_coef=0.05), SEVERAL),
    "reinforce_pp, groups": (ReinforcePP(kl_coef=0.05, baseline="group"), SEVERAL),
    "rloo": (RLOO(kl_coef=0.05), ONE),
    "grpo": (GRPO(kl_coef=0.05), SEVERAL),
    "impala": (Impala(kl_coef=0.05), ONE),
    "off_policy": (OffPolicy(kl_coef=0.05), ONE),
    "trpo": (TRPO(kl_coef=0.05, cg_iterations=2), SEVERAL),
}


# 0 is what a critic that starts at 0 already knows; of 0.7 it is off.
@pytest.mark.parametrize(("name", "number"), [*((name, 0.7) for name in METHODS), ("ppo charged", 0.0), ("a2c", 0.0)])
def test_equal_scores_leave_the_policy_as_it_is(name: str, number: float) -> None:
    policy = policy_of()
    before, value = weights_of(policy), policy.value_head.weight.detach().clone()
    rows = train(policy, *METHODS[name], paid(number))
    assert unmoved(policy, before)
    assert [row["scores_alike"] for row in rows] == [1.0] * 3
    assert all(row.get("kl_ref_k1", 0.0) == row.get("kl_ref_k3", 0.0) == 0.0 for row in rows)
    # The critic has a constant to learn.
    learns = METHODS[name][0].critic_of != "none"
    assert torch.equal(policy.value_head.weight, value) is not learns


@pytest.mark.parametrize(
    "kind",
    [
        {"critic": "separate"},
        {"adapter": "fresh"},
        {"adapter": "trained"},
        {"adapter": "whole head"},
        {"lag": 2},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "bf16", "adapter": "fresh"},
        {"reference": torch.bfloat16},
    ],
    ids=lambda kind: " ".join(map(str, kind.values())),
)
def test_at_the_reference_there_is_nothing_to_charge(kind: dict[str, Any]) -> None:
    kind = dict(kind)
    policy = policy_of(critic=kind.pop("critic", "shared"), adapter=kind.pop("adapter", "none"))
    policy.reference_dtype = kind.pop("reference", None)
    before = weights_of(policy)
    rows = train(policy, PPO(kl_coef=0.05), SEVERAL, paid(0.3), **kind)
    assert all(row["kl_ref_k1"] == row["kl_ref_k3"] == 0.0 and row["scores_alike"] == 1.0 for row in rows)
    assert unmoved(policy, before)


def test_momentum_and_weight_decay_do_not_go_on_where_nothing_is_learned() -> None:
    """The first update is paid by length, the others alike."""
    policy, seen = policy_of(), []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        # An update answers 8 prompts, and the reward is tried on fewer.
        if len(completion_ids) == 8:
            seen.append(weights_of(policy))
        return [float(len(ids)) if len(seen) == 1 else 0.0 for ids in completion_ids]

    rows = train(policy, PPO(), SEVERAL, reward, updates=4)
    assert [row["scores_alike"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    assert not unmoved(policy, seen[0])
    assert unmoved(policy, seen[1])


def test_an_entropy_bonus_moves_the_policy_by_itself_alone() -> None:
    """What all are paid plays no part: 0 and 1 end at the same policy. Their critics, of parameters apart, differ."""
    policies = [policy_of(critic="separate") for _ in range(2)]
    before = weights_of(policies[0])
    settings = replace(SEVERAL, max_gradient_norm=0.0)
    for policy, number in zip(policies, (0.0, 1.0), strict=True):
        train(policy, PPO(entropy_coef=0.1), settings, paid(number), updates=2)
    one, other = map(weights_of, policies)
    assert any(not torch.equal(one[name], before[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_user_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    train(policy_of(), PPO(), SEVERAL, paid(1.0))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("update 1: all rows were paid alike, so nothing was learned about the actions") == 1
    assert "paid alike" not in said.partition("paid alike")[2]


def one_episode_a_row(rewards: list[list[float]], lengths: list[int]) -> Rollout:
    """As `lengths` say; values are noise."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=len(lengths), steps=len(rewards[0]))
    ends, steps = torch.tensor(lengths).unsqueeze(1), torch.arange(len(rewards[0]))
    return replace(
        rollout,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        mask=steps < ends,
        dones=steps == ends - 1,
        groups=torch.arange(len(lengths)) // 2,
    )


def told(rollout: Rollout, method: Method, *, paid: bool = True) -> bool:
    return teaches(method, rollout, method.estimate(rollout, method.initial_state())[0], HERE, paid=paid)


ALIKE, FIRST_BETTER = [[0.0, 0.3], [0.3, 0.0]], [[0.0, 0.3], [0.2, 0.0]]


@pytest.mark.parametrize(
    ("rewards", "lengths", "gamma", "expected"),
    [
        (ALIKE, [2, 1], 1.0, False),
        (FIRST_BETTER, [2, 1], 1.0, True),
        # Sooner is better.
        (ALIKE, [2, 1], 0.9, True),
        ([[0.0, 0.0], [0.0, 0.0]], [2, 1], 0.9, False),
        # CartPole: every reward is 1, and longer is better.
        ([[1.0, 1.0], [1.0, 0.0]], [2, 1], 0.99, True),
        ([[1.0, 1.0], [1.0, 1.0]], [2, 2], 0.99, True),
        # One step, as in a bandit.
        ([[1.0], [1.0]], [1, 1], 0.99, False),
        # To float32's rounding; the smallest difference that is more.
        ([[0.3], [0.30000002]], [1, 1], 1.0, False),
        ([[1e6], [1e6 + 1]], [1, 1], 1.0, True),
        ([[1e-9], [2e-9]], [1, 1], 1.0, True),
    ],
)
def test_actions_are_told_apart_by_their_returns_to_go(
    rewards: list[list[float]], lengths: list[int], gamma: float, expected: bool
) -> None:
    assert told(one_episode_a_row(rewards, lengths), PPO(gamma=gamma)) is expected


def test_what_a_cut_episode_would_still_have_earned_is_not_known() -> None:
    whole = one_episode_a_row([[0.0, 0.0], [0.0, 0.0]], [2, 2])
    cut = replace(whole, terminals=torch.zeros_like(whole.dones))
    open_ended = replace(whole, dones=torch.tensor([[True, False], [False, True]]))
    assert [told(rollout, PPO()) for rollout in (whole, cut, open_ended)] == [False, True, True]
    # Unless nothing was ever paid: its value is the critic's invention.
    assert [told(rollout, PPO(), paid=False) for rollout in (whole, cut, open_ended)] == [False] * 3


def test_groups_are_told_apart_within_themselves() -> None:
    """Both of the first prompt are paid 1, both of the second 0: nothing is known of what to answer either."""
    rollout = one_episode_a_row([[1.0], [1.0], [0.0], [0.0]], [1, 1, 1, 1])
    assert told(rollout, PPO())
    assert not told(rollout, GRPO())
    assert not told(rollout, RLOO())
    better = replace(rollout, rewards=torch.tensor([[1.0], [1.0], [0.0], [0.5]]).double())
    assert told(better, GRPO())


def test_a_policy_away_from_its_reference_has_something_to_learn() -> None:
    rollout = one_episode_a_row(ALIKE, [2, 1])
    same = replace(rollout, ref_logprobs=rollout.logprobs)
    away = replace(rollout, ref_logprobs=rollout.logprobs - 0.1)
    for method in (GRPO(kl_coef=0.1), Reinforce(kl_coef=0.1)):
        assert not told(same, method)
        assert told(away, method)
    assert not told(away, Reinforce())


def test_the_share_of_groups_that_scored_alike() -> None:
    """Of two rows each: paid 1 and 1; 0 and 1; and one whose second row has no score, which is no group of several."""
    rollout = one_episode_a_row([[1.0], [1.0], [0.0], [1.0], [0.0], [0.0]], [1, 1, 1, 1, 1, 1])
    mask = rollout.mask.clone()
    mask[5] = False
    assert share_of_groups(replace(rollout, mask=mask), HERE) == {"groups_alike": pytest.approx(0.5)}
    assert share_of_groups(replace(rollout, groups=torch.arange(6)), HERE) == {}
    assert share_of_groups(replace(rollout, groups=None), HERE) == {}


class Late(gymnasium.Env):
    """Pays nothing for the first 16 of the 40 steps of an episode, then the action."""

    observation_space, action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return self._seen(), float(action) * (self.taken > 16), self.taken == 40, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.taken / 40, 1.0], np.float32)


@pytest.mark.parametrize(
    "method", [PPO(gamma=0.9), PPOKL(gamma=0.9), A2C(gamma=0.9), TRPO(gamma=0.9), TDLambda(gamma=0.9)]
)
def test_control_stays_as_it_is_until_something_is_paid(method: Method) -> None:
    """Fragments of episodes, whose values at the cut are noise of a critic that has seen no reward."""
    task = rlhf.Envs(Late, num_envs=4, steps=8)
    policy = task.policy()
    settings = checks.fitting(method, Optimize(learning_rate=1e-2, epochs=2, minibatches=2))
    actor = [x.detach().clone() for x in policy.actor.parameters()]
    critic = [x.detach().clone() for x in policy.critic.parameters()]
    rlhf.train(policy, task, method, settings, updates=2)
    assert all(map(torch.equal, actor, policy.actor.parameters()))
    assert not all(map(torch.equal, critic, policy.critic.parameters()))
    rlhf.train(policy, rlhf.Envs(Late, num_envs=4, steps=8), method, settings, updates=4)
    assert not all(map(torch.equal, actor, policy.actor.parameters()))


def test_cartpole_always_teaches() -> None:
    task = rlhf.Envs("CartPole-v1", num_envs=4, steps=8)
    policy = task.policy()
    before = {name: x.detach().clone() for name, x in policy.named_parameters()}
    rlhf.train(policy, task, PPO(gamma=0.99), Optimize(epochs=1), updates=2)
    assert any(not torch.equal(x, before[name]) for name, x in policy.named_parameters() if "actor" in name)


def test_a_policy_without_a_critic_need_not_name_the_parameters_of_one() -> None:
    class Bandit(torch.nn.Module):
        memoryless, has_critic = True, False

        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(2))

        def forward(self, inputs: dict[str, torch.Tensor]) -> rlhf.PolicyOutput:
            logprobs = self.logits.log_softmax(0)[inputs["arms"]]
            return rlhf.PolicyOutput(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs))

        def save(self, folder: Path) -> None:
            raise AssertionError("nothing is kept")

        load = save

    class Arms(rlhf.Task):
        def collect(self, policy: Any, update: int, here: rlhf.Here) -> rlhf.Collected:
            arms = torch.tensor([[0], [1]])
            rollout = rlhf.Rollout(
                inputs={"arms": arms},
                behaviour_logprobs=policy({"arms": arms}).logprobs.detach(),
                rewards=torch.ones(2, 1),
                dones=torch.ones(2, 1, dtype=torch.bool),
                mask=torch.ones(2, 1, dtype=torch.bool),
                sample_ids=torch.arange(2),
                costs=torch.ones(2, dtype=torch.int64),
            )
            return rlhf.Collected(rollout, {}, [])

    policy = Bandit()
    rlhf.train(policy, Arms(), rlhf.PPO(), updates=2)
    assert policy.logits.tolist() == [0.0, 0.0]
