"""IMPALA: what actors that lag behind teach, by enumeration of all they may do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.impala import Impala
from rlhf.errors import InputError
from tests.batches import make_rollout
from tests.episodes import (
    NUM_ACTIONS,
    NUM_STATES,
    STATE,
    enumerated,
    expected_gradient,
    gradient_by_weights,
    three_steps,
)
from tests.tabular import TabularPolicy
from theory import mdp

GAMMA = 0.8
WORLD = three_steps()


def lagging(policy: TabularPolicy) -> Tensor:
    """Logits of an actor that is another policy altogether."""
    return TabularPolicy(NUM_STATES, NUM_ACTIONS, seed=5).logits.detach() - 0.5 * policy.logits.detach()


def learner(values: Tensor | None = None) -> TabularPolicy:
    """A random softmax, with these values or the exact ones."""
    policy = TabularPolicy(NUM_STATES, NUM_ACTIONS)
    exact = mdp.state_values(WORLD, policy.logits.detach().softmax(-1), gamma=GAMMA)
    with torch.no_grad():
        policy.critic.copy_(exact if values is None else values)
    return policy


def test_without_truncation_actions_are_weighed_by_the_learners_advantage() -> None:
    """sum_s visits(s) sum_a grad pi(a | s) A(s, a): policy, advantage the learner's; only visits stay the actor's."""
    policy = learner()
    actor = lagging(policy)
    method = Impala(gamma=GAMMA, rho_clip=1e9, c_clip=1e9, value_coef=1.0)
    ours = expected_gradient(policy, enumerated(WORLD, policy, actor=actor), method)
    weights = mdp.action_values(WORLD, policy.logits.detach().softmax(-1), gamma=GAMMA)
    expected = gradient_by_weights(WORLD, policy, weights, actor=actor)
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(ours["logits"], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours["critic"], torch.zeros(NUM_STATES).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("rho_clip", "c_clip"), [(1.0, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_the_critic_settles_on_the_values_of_the_truncated_policy(rho_clip: float, c_clip: float) -> None:
    """The fixed point is V of pi_rho proportional to min(rho_clip mu, pi) (Espeholt et al., 2018, eq. 3); c_clip
    does not move it."""
    policy = learner()
    actor = lagging(policy)
    truncated = torch.minimum(rho_clip * actor.softmax(-1), policy.logits.detach().softmax(-1))
    between = truncated / truncated.sum(-1, keepdim=True)
    method = Impala(gamma=GAMMA, rho_clip=rho_clip, c_clip=c_clip, value_coef=1.0)
    zeros = torch.zeros(NUM_STATES, dtype=torch.float64)
    settled = learner(mdp.state_values(WORLD, between, gamma=GAMMA))
    ours = expected_gradient(settled, enumerated(WORLD, settled, actor=actor), method)
    torch.testing.assert_close(ours["critic"], zeros, rtol=0, atol=1e-9)
    own = expected_gradient(policy, enumerated(WORLD, policy, actor=actor), method)
    assert float(own["critic"].abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("rho_clip", "c_clip", "lambda_"), [(1.0, 1.0, 1.0), (1.0, 0.3, 1.0), (0.5, 0.5, 1.0), (1.0, 1.0, 0.6)]
)
def test_with_truncation_actions_are_weighed_by_the_truncated_policys_advantage(
    rho_clip: float, c_clip: float, lambda_: float
) -> None:
    """sum_s d_mu(s) sum_a min(rho_clip mu, pi)(a | s) grad log pi(a | s) (Q(s, a) - V(s)), Q and V those of pi_rho, and
    the critic at V: targets then are V in expectation, whatever the traces. States are the actor's visits."""
    actor = lagging(learner())
    pi = learner().logits.detach().softmax(-1)
    truncated = torch.minimum(rho_clip * actor.softmax(-1), pi)
    between = truncated / truncated.sum(-1, keepdim=True)
    policy = learner(mdp.state_values(WORLD, between, gamma=GAMMA))
    method = Impala(gamma=GAMMA, td_lambda=lambda_, rho_clip=rho_clip, c_clip=c_clip)
    ours = expected_gradient(policy, enumerated(WORLD, policy, actor=actor), method)["logits"]
    advantages = mdp.advantages(WORLD, between, gamma=GAMMA)
    # min(rho_clip mu, pi) grad log pi = grad pi min(rho_clip mu, pi) / pi
    expected = gradient_by_weights(WORLD, policy, truncated / pi * advantages, actor=actor)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
    learners = gradient_by_weights(WORLD, policy, mdp.advantages(WORLD, pi, gamma=GAMMA), actor=actor)
    assert float((expected - learners).abs().max()) > 1e-2


@pytest.mark.parametrize("lambda_", [0.5, 1.0])
def test_actors_that_do_not_lag_give_lambda_returns(lambda_: float) -> None:
    rollout = make_rollout(TabularPolicy(4, 3), rows=6, steps=5)
    ours, cells = Impala(gamma=GAMMA, td_lambda=lambda_).estimate(rollout, STATE)
    method = A2C(gamma=GAMMA, critic=Critic(td_lambda=lambda_))
    expected, _ = method.estimate(rollout, STATE)
    torch.testing.assert_close(ours.returns, expected.returns, rtol=0, atol=1e-12)
    if lambda_ == 1.0:
        torch.testing.assert_close(ours.advantages, expected.advantages, rtol=0, atol=1e-12)
    assert not cells["lag_kl_k3"].any()
    assert not cells["lag_clip_fraction"].any()


def test_without_traces_targets_look_one_step_ahead() -> None:
    """c_clip 0: v = V + min(1.5, ratio) (r + gamma V' - V); here the actors took every action half as often."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=6, steps=5)
    rollout = replace(rollout, behaviour_logprobs=rollout.logprobs - math.log(2.0))
    ours, _ = Impala(gamma=GAMMA, rho_clip=1.5, c_clip=0.0).estimate(rollout, STATE)
    errors = rollout.rewards + GAMMA * rollout.next_values - rollout.values
    expected = (rollout.values + 1.5 * errors).masked_fill(~rollout.mask, 0.0)
    torch.testing.assert_close(ours.returns, expected, rtol=0, atol=1e-12)


def test_metrics_say_how_far_the_actors_lag() -> None:
    """Ratios 2 and 1/2: one is clipped at 1; k3 of the actor's samples is x - 1 - log x with x the ratio."""
    rollout = make_rollout(TabularPolicy(1, 1), rows=2, steps=1)
    shift = torch.tensor([[math.log(2.0)], [-math.log(2.0)]], dtype=torch.float64)
    rollout = replace(rollout, behaviour_logprobs=rollout.logprobs - shift)
    _, cells = Impala().estimate(rollout, STATE)
    assert cells["lag_ratio_max"].flatten().tolist() == pytest.approx([2.0, 0.5], abs=1e-12)
    assert cells["lag_clip_fraction"].flatten().tolist() == [1.0, 0.0]
    expected = [1.0 - math.log(2.0), -0.5 + math.log(2.0)]
    assert cells["lag_kl_k3"].flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_leaving_the_reference_is_charged_to_the_rewards() -> None:
    rollout = make_rollout(TabularPolicy(4, 3), rows=5, steps=4)
    method = Impala(kl_coef=0.1)
    ours, _ = method.estimate(replace(rollout, ref_logprobs=rollout.logprobs - 0.3), STATE)
    expected, _ = Impala().estimate(replace(rollout, rewards=rollout.rewards - 0.03), STATE)
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.1}, "gamma is 1.1"),
        ({"td_lambda": -0.1}, "td_lambda is -0.1"),
        ({"rho_clip": 0.5}, "rho_clip is 0.5 and c_clip 1.0; the first must be the larger"),
        ({"c_clip": -1.0}, "c_clip is -1.0; it must not be negative"),
        ({"value_coef": math.nan}, "value_coef is nan"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Impala(**changes)
