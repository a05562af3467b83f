"""Replay actor-critic by enumeration on a tiny MDP: which resampling removes which bias (lecture 004)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.replay_actor_critic import ReplayActorCritic
from rlhf.errors import InputError
from tests.twins import TabularTwins, replayed

GAMMA = 0.8
GENERATOR = torch.Generator().manual_seed(0)
REWARDS = torch.randn(3, 2, generator=GENERATOR, dtype=torch.float64)
NEXT = torch.tensor([[1, 2], [0, 2], [2, 0]])
LOGITS = 3.0 * torch.randn(3, 2, generator=GENERATOR, dtype=torch.float64)
POLICY = LOGITS.softmax(-1)
# What filled the buffer: how often each state was visited, and what another policy did there.
VISITS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
BUFFER = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)


def state_values(actor: Tensor) -> Tensor:
    """V of the policy `actor`, by solving V = sum_a actor (r + gamma V')."""
    step = torch.zeros(3, 3, dtype=torch.float64)
    for state, action in itertools.product(range(3), range(2)):
        step[state, NEXT[state, action]] += actor[state, action]
    return torch.linalg.solve(torch.eye(3, dtype=torch.float64) - GAMMA * step, (actor * REWARDS).sum(-1))


def action_values() -> Tensor:
    """Q of the policy."""
    return REWARDS + GAMMA * state_values(POLICY)[NEXT]


def middle(probabilities: Tensor, action: int) -> float:
    """A uniform that the inverse CDF turns into `action`."""
    return float(probabilities[:action].sum() + 0.5 * probabilities[action])


def expected_gradient(policy: TabularTwins, *, sampled_actions: int, baseline: bool = True) -> dict[str, Tensor]:
    """Over every transition of the buffer and every action that the method may draw, each by its probability."""
    rows, weights, draws = [], [], []
    for state, action, next_action in itertools.product(range(3), range(2), range(2)):
        for chosen in itertools.product(range(2), repeat=sampled_actions):
            after = int(NEXT[state, action])
            probability = VISITS[state] * BUFFER[state, action] * POLICY[after, next_action]
            for one in chosen:
                probability = probability * POLICY[state, one]
            rows.append((state, action, after))
            weights.append(probability)
            draws.append([middle(POLICY[after], next_action), *(middle(POLICY[state], one) for one in chosen)])
    states, actions, following = torch.tensor(rows).unbind(1)
    method = ReplayActorCritic(gamma=GAMMA, sampled_actions=sampled_actions, baseline=baseline, entropy_coef=0.0)
    batch, _ = method.estimate(replayed(states, actions, REWARDS[states, actions], following), {})
    uniforms = torch.tensor(draws, dtype=torch.float64).unsqueeze(1)
    batch = batch._replace(inputs={**batch.inputs, "uniforms": uniforms})
    terms, _ = method.loss(policy(batch.inputs), batch, {})
    policy.zero_grad()
    (torch.stack(weights) * terms.squeeze(1)).sum().backward()
    assert float(torch.stack(weights).sum()) == pytest.approx(1.0, abs=1e-12)
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.requires_grad}


def exact(weights_of_actions: Tensor, gains: Tensor) -> Tensor:
    """-sum_s d(s) sum_a w(a | s) grad log pi(a | s) gain(s, a), by autograd on the definition."""
    logits = LOGITS.clone().requires_grad_()
    objective = -(VISITS.unsqueeze(1) * weights_of_actions * logits.log_softmax(-1) * gains).sum()
    return torch.autograd.grad(objective, logits)[0]


def critic_of_actions() -> TabularTwins:
    return TabularTwins(LOGITS, action_values().unsqueeze(1))


def critic_of_states(values: Tensor) -> TabularTwins:
    """One number a state, seen as the value of each of its actions."""
    policy = TabularTwins(LOGITS, values.view(3, 1, 1))
    for table in (policy.critic, policy.target_critic):
        table.forward = lambda states, table=table: table.values[states].expand(*states.shape, 1, 2)
    return policy


@pytest.mark.parametrize(("sampled_actions", "baseline"), [(1, True), (1, False), (3, True), (3, False)])
def test_resampled_actions_give_the_policy_gradient_over_the_buffers_states(
    sampled_actions: int, baseline: bool
) -> None:
    """sum_s d(s) sum_a grad pi(a | s) Q(s, a), whatever the buffer's actions, K, and with or without a baseline."""
    found = expected_gradient(critic_of_actions(), sampled_actions=sampled_actions, baseline=baseline)["actor"]
    torch.testing.assert_close(found, exact(POLICY, action_values()), rtol=0, atol=1e-9)


def test_the_buffers_actions_bias_the_policy_gradient_by_what_they_differ_in() -> None:
    """With them the bias is sum_s d(s) sum_a (buffer - pi)(a | s) grad log pi(a | s) A(s, a)."""
    advantages = action_values() - state_values(POLICY).unsqueeze(1)
    found = expected_gradient(critic_of_actions(), sampled_actions=0)["actor"]
    bias = found - exact(POLICY, action_values())
    assert float(bias.abs().max()) > 1e-2
    torch.testing.assert_close(bias, exact(BUFFER - POLICY, advantages), rtol=0, atol=1e-9)


def test_a_resampled_next_action_keeps_the_critic_of_actions_at_its_policy() -> None:
    """At Q of the policy the expected step of the critic is 0, though another policy filled the buffer."""
    found = expected_gradient(critic_of_actions(), sampled_actions=1)["critic.values"]
    assert float(found.abs().max()) < 1e-9


def test_a_critic_of_states_leaves_its_policy_for_the_one_that_filled_the_buffer() -> None:
    """At V of the policy its step is -sum_s d(s) sum_a buffer(a | s) A(s, a); it rests at V of the buffer's policy."""
    values = state_values(POLICY)
    advantages = action_values() - values.unsqueeze(1)
    found = expected_gradient(critic_of_states(values), sampled_actions=0)["critic.values"].flatten()
    predicted = -VISITS * (BUFFER * advantages).sum(-1)
    assert float(predicted.abs().max()) > 1e-2
    torch.testing.assert_close(found, predicted, rtol=0, atol=1e-9)
    at_rest = expected_gradient(critic_of_states(state_values(BUFFER)), sampled_actions=0)["critic.values"]
    assert float(at_rest.abs().max()) < 1e-9


def test_the_first_rung_weighs_the_buffers_actions_by_the_td_error() -> None:
    """V with the buffer's actions: sum_s d(s) sum_a buffer(a | s) grad log pi(a | s) (r + gamma V(s') - V(s))."""
    values = state_values(BUFFER)
    gains = REWARDS + GAMMA * values[NEXT] - values.unsqueeze(1)
    found = expected_gradient(critic_of_states(values), sampled_actions=0)["actor"]
    torch.testing.assert_close(found, exact(BUFFER, gains), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampled_actions", [0, 2])
@pytest.mark.parametrize("baseline", [True, False])
def test_the_gradient_with_twins_an_end_and_an_entropy_bonus_is_that_of_the_definition(
    sampled_actions: int, baseline: bool
) -> None:
    """The lower of two critics that disagree, for targets and for the actor; nothing comes after a terminal."""
    generator = torch.Generator().manual_seed(1)
    critics, targets = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    policy = TabularTwins(LOGITS, critics)
    policy.target_critic.values.data = targets
    states, actions = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    terminals = torch.tensor([False, True, False, False, True, False])
    nexts, drawn = torch.tensor([1, 0, 0, 1, 1, 0]), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]])
    method = ReplayActorCritic(gamma=GAMMA, sampled_actions=sampled_actions, baseline=baseline, entropy_coef=0.3)
    rollout = replayed(states, actions, REWARDS[states, actions], NEXT[states, actions], terminals)
    batch, _ = method.estimate(rollout, {})
    uniforms = [
        [
            middle(POLICY[NEXT[s, a]], int(nexts[i])),
            *(middle(POLICY[s], int(one)) for one in drawn[i, :sampled_actions]),
        ]
        for i, (s, a) in enumerate(zip(states, actions, strict=True))
    ]
    draws = torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1)
    terms, _ = method.loss(policy(batch.inputs), batch._replace(inputs={**batch.inputs, "uniforms": draws}), {})
    terms.sum().backward()

    logits, values = LOGITS.clone().requires_grad_(), critics.clone().requires_grad_()
    logprobs, expected = logits.log_softmax(-1), torch.zeros((), dtype=torch.float64)
    for i, (s, a) in enumerate(zip(states.tolist(), actions.tolist(), strict=True)):
        target = REWARDS[s, a].clone()
        if not terminals[i]:
            target += GAMMA * min(targets[NEXT[s, a], k, nexts[i]] for k in range(2))
        lower = torch.tensor([min(critics[s, k, b] for k in range(2)) for b in range(2)])
        expected = expected + sum(0.5 * (values[s, k, a] - target) ** 2 for k in range(2))
        weighed = [(int(b), lower[b]) for b in drawn[i, :sampled_actions]] or [(a, target)]
        for b, gain in weighed:
            less = (POLICY[s] * lower).sum() if baseline else 0.0
            expected = expected - logprobs[s, b] * (gain - less) / len(weighed)
        expected = expected + 0.3 * (logprobs[s].exp() * logprobs[s]).sum()
    of_logits, of_values = torch.autograd.grad(expected, (logits, values))
    torch.testing.assert_close(policy.actor.grad, of_logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(policy.critic.values.grad, of_values, rtol=0, atol=1e-9)


def test_more_sampled_actions_lower_the_variance_as_one_over_their_number() -> None:
    """Per state, over the actions drawn: the K-sample gradient has 1 / K of the variance, by enumeration."""
    values = action_values()
    scores = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), LOGITS[0])[a] for a in (0, 1)]
    )
    one = scores * values[0].unsqueeze(1)
    mean = (POLICY[0].unsqueeze(1) * one).sum(0)
    variances = []
    for count in (1, 2, 4):
        total = torch.zeros((), dtype=torch.float64)
        for chosen in itertools.product(range(2), repeat=count):
            probability = POLICY[0][list(chosen)].prod()
            policy = critic_of_actions()
            method = ReplayActorCritic(gamma=GAMMA, sampled_actions=count, baseline=False, entropy_coef=0.0)
            rollout = replayed(*(torch.tensor([x]) for x in (0, 0)), REWARDS[:1, 0], NEXT[:1, 0])
            batch, _ = method.estimate(rollout, {})
            draws = torch.tensor([[[0.5, *(middle(POLICY[0], a) for a in chosen)]]], dtype=torch.float64)
            batch = batch._replace(inputs={**batch.inputs, "uniforms": draws})
            method.loss(policy(batch.inputs), batch, {})[0].sum().backward()
            total += probability * (-policy.actor.grad[0] - mean).square().sum()
        variances.append(float(total))
    assert variances[1] == pytest.approx(variances[0] / 2, abs=1e-9)
    assert variances[2] == pytest.approx(variances[0] / 4, abs=1e-9)


def test_the_temperature_it_does_not_use_stays_in_the_graph() -> None:
    assert float(expected_gradient(critic_of_actions(), sampled_actions=1)["log_temperature"]) == 0.0


@pytest.mark.parametrize(("field", "value"), [("sampled_actions", -1), ("entropy_coef", -0.1), ("gamma", 2.0)])
def test_replay_actor_critic_refuses_settings_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        ReplayActorCritic(**{field: value})
