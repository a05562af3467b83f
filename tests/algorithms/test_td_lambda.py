"""TD(lambda) with traces: the forward view it equals, what its lambdas reduce to, and traces across updates."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf import optimize
from rlhf.acting import rescored
from rlhf.algorithms.td_lambda import TDLambda
from rlhf.core.advantages import gae
from rlhf.errors import InputError, NonFiniteError
from rlhf.rollout import Rollout, single_steps
from tests.algorithms.batches_of_episodes import CPU
from tests.algorithms.test_enumeration import TinyLm, TinyMdp, rollout_of
from tests.batches import make_rollout
from tests.episodes import STATE
from tests.learners import learner_of
from tests.tabular import TabularPolicy

GAMMA = 0.9
RATE = optimize.Optimize(learning_rate=0.5, max_gradient_norm=0.0)


def updated(
    policy: Any, rollout: Rollout, state: dict[str, Tensor], settings: optimize.Optimize = RATE, **lambdas: Any
):
    """One update in place; its metrics and the next state."""
    method = TDLambda(gamma=GAMMA, **lambdas)
    batch, _ = method.estimate(rollout, state)
    batch = single_steps(batch) if policy.memoryless else batch
    return method.update(learner_of(policy, settings, progress=0.5), rollout, batch, state)


def rollout_and_policy() -> tuple[TabularPolicy, Rollout]:
    policy = TabularPolicy(4, 3)
    return policy, make_rollout(policy, rows=5, steps=6)


def columns(rollout: Rollout) -> list[Rollout]:
    """The same steps as rollouts of one step a row."""
    parts = []
    for t in range(rollout.mask.shape[1]):
        cells = {
            name: value[:, [t]]
            for name, value in vars(rollout).items()
            if isinstance(value, Tensor) and value.shape == rollout.mask.shape
        }
        inputs = {name: x[:, [t]] for name, x in rollout.inputs.items()}
        parts.append(replace(rollout, **cells, inputs=inputs, costs=torch.ones_like(rollout.costs)))
    return parts


@pytest.mark.parametrize(("actor_lambda", "critic_lambda"), [(0.0, 0.0), (0.7, 0.7), (0.9, 0.3), (1.0, 1.0)])
def test_an_update_of_whole_episodes_is_that_of_the_forward_view(actor_lambda: float, critic_lambda: float) -> None:
    """Weights held, it is the gradient of mean log pi A^(lambda) and of -(V - G^lambda)^2 / 2, autograd's; lambda 0 is
    one-step actor-critic, 1 Monte Carlo."""
    policy, rollout = rollout_and_policy()
    tensors = (rollout.rewards, rollout.values, rollout.next_values, rollout.dones)
    forward = [gae(*tensors, gamma=GAMMA, gae_lambda=lambda_) for lambda_ in (actor_lambda, critic_lambda)]
    output = policy(rollout.inputs)
    targets = (rollout.values + forward[1]).detach()
    objective = output.logprobs * forward[0] - 3.0 * 0.5 * (output.values - targets).square()
    gradients = torch.autograd.grad(
        objective.masked_fill(~rollout.mask, 0.0).sum() / rollout.mask.sum(), list(policy.parameters())
    )
    expected = [x.detach() + 0.5 * gradient for x, gradient in zip(policy.parameters(), gradients, strict=True)]
    # Of the critic's 3, a sixth is the method's own and six times that the optimizer's.
    settings = replace(RATE, critic_learning_rate=3.0)
    lambdas = {"actor_lambda": actor_lambda, "critic_lambda": critic_lambda}
    _, state = updated(policy, rollout, STATE, settings, critic_rate=0.5, **lambdas)
    for parameter, right in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), right, rtol=0, atol=1e-9)
    assert not state["traces"].any()


def test_traces_go_on_across_updates() -> None:
    """Online, weights as they are after each step, against the book's own loop over one row at a time."""
    policy, rollout = rollout_and_policy()
    rollout = replace(rollout, next_values=torch.zeros_like(rollout.values))
    by_hand, traces = copy.deepcopy(policy), {}
    state = STATE
    for part in columns(rollout):
        part = rescored(policy, part, accelerator=CPU, micro_batch_cost=100)
        _, state = updated(policy, part, state, actor_lambda=0.8, critic_lambda=0.5)
        steps = []
        for row in torch.nonzero(part.mask[:, 0]).flatten().tolist():
            inputs = {name: x[[row]] for name, x in part.inputs.items()}
            output = by_hand(inputs)
            z_actor, z_critic = traces.get(row, (0.0, 0.0))
            z_actor = GAMMA * 0.8 * z_actor + torch.autograd.grad(output.logprobs.sum(), by_hand.logits)[0]
            z_critic = GAMMA * 0.5 * z_critic + torch.autograd.grad(output.values.sum(), by_hand.critic)[0]
            error = part.rewards[row, 0] - output.values.item()
            steps.append((error * z_actor, error * z_critic))
            traces[row] = (0.0, 0.0) if part.dones[row, 0] else (z_actor, z_critic)
        with torch.no_grad():
            for parameter, parts in zip((by_hand.logits, by_hand.critic), zip(*steps, strict=True), strict=True):
                parameter.add_(sum(parts) / len(steps), alpha=0.5)
    for ours, right in zip(policy.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), right.detach(), rtol=0, atol=1e-9)


def one_step(policy: TabularPolicy, problem: TinyMdp, state: int, action: int) -> Rollout:
    """What the policy and its critic, as they are, make of one step of the problem."""
    done = torch.tensor([[(state, action) == problem.terminal]])
    inputs = {"states": torch.tensor([[state]]), "actions": torch.tensor([[action]])}
    with torch.no_grad():
        output = policy(inputs)
        following = policy.state_values({"states": torch.tensor([[problem.transition[state][action]]])})
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs,
        logprobs=output.logprobs,
        values=output.values,
        next_values=following.masked_fill(done, 0.0),
        rewards=torch.tensor([[problem.reward[state][action]]], dtype=torch.float64),
        dones=done,
        mask=torch.ones_like(done),
        sample_ids=torch.tensor([0]),
        costs=torch.tensor([1]),
    )


def test_step_by_step_it_is_the_books_online_algorithm() -> None:
    """At each step, by the weights as the last one left them (section 13.6, without I):
    delta = r + gamma V(s') - V(s);  z = gamma lambda z + grad V(s), V += rate delta z;  so the policy by grad log pi.
    Three episodes that come back to their states; grad log pi is 1 - pi of the action and -pi of the others."""
    problem = TinyMdp()
    policy, state = problem.policy(), STATE
    logits, values = policy.logits.detach().clone(), policy.critic.detach().clone()
    for actions in ((0, 1), (1, 0, 0, 0, 1, 1), (0, 0, 1, 1)):
        z_actor, z_critic, place = torch.zeros_like(logits), torch.zeros_like(values), 0
        for action in actions:
            rollout = one_step(policy, problem, place, action)
            _, state = updated(policy, rollout, state, actor_lambda=0.8, critic_lambda=0.5, critic_rate=0.6)
            ends, following = (place, action) == problem.terminal, problem.transition[place][action]
            ahead = 0.0 if ends else float(values[following])
            error = problem.reward[place][action] + GAMMA * ahead - float(values[place])
            z_actor, z_critic = GAMMA * 0.8 * z_actor, GAMMA * 0.5 * z_critic
            z_actor[place] -= logits[place].softmax(0)
            z_actor[place, action] += 1.0
            z_critic[place] += 1.0
            logits, values = logits + 0.5 * error * z_actor, values + 0.5 * 0.6 * error * z_critic
            torch.testing.assert_close(policy.logits.detach(), logits, rtol=0, atol=1e-12)
            torch.testing.assert_close(policy.critic.detach(), values, rtol=0, atol=1e-12)
            place = following
        assert ends


def test_a_step_is_scaled_down_to_the_norm_and_follows_the_schedule() -> None:
    """Half of the run is done, so the linear rate is a quarter."""
    policy, rollout = rollout_and_policy()
    before = torch.cat([x.detach().flatten().clone() for x in policy.parameters()])
    settings = replace(RATE, max_gradient_norm=0.01, schedule="linear")
    metrics, _ = updated(policy, rollout, STATE, settings)
    moved = torch.cat([x.detach().flatten() for x in policy.parameters()]) - before
    assert metrics["learning_rate"] == 0.25
    assert metrics["gradient_norm"] > 0.01
    assert float(moved.norm()) == pytest.approx(0.25 * 0.01, abs=1e-12)


def test_a_step_that_is_not_finite_moves_nothing() -> None:
    policy, rollout = rollout_and_policy()
    before = [x.detach().clone() for x in policy.parameters()]
    batch = single_steps(TDLambda().estimate(rollout, STATE)[0])
    batch = batch._replace(advantages=batch.advantages * torch.inf)
    with pytest.raises(NonFiniteError, match="eligibility traces is not finite"):
        TDLambda().update(learner_of(policy, RATE), rollout, batch, STATE)
    assert all(torch.equal(x, y) for x, y in zip(policy.parameters(), before, strict=True))


def test_leaving_the_reference_is_charged_to_the_rewards() -> None:
    _, rollout = rollout_and_policy()
    method = TDLambda(kl_coef=0.1)
    ours, _ = method.estimate(replace(rollout, ref_logprobs=rollout.logprobs - 0.3), STATE)
    expected, _ = TDLambda().estimate(replace(rollout, rewards=rollout.rewards - 0.03), STATE)
    torch.testing.assert_close(ours.advantages, expected.advantages, rtol=0, atol=1e-12)


def test_a_policy_with_memory_is_refused() -> None:
    problem = TinyLm()
    policy = problem.policy()
    with pytest.raises(InputError, match="a policy without memory"):
        updated(policy, rollout_of(problem, policy, None)[0], STATE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"actor_lambda": 1.1}, "actor_lambda is 1.1"),
        ({"critic_lambda": 2.0}, "critic_lambda is 2.0"),
        ({"critic_rate": -1.0}, "critic_rate is -1.0; it must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TDLambda(**changes)
