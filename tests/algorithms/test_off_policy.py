"""Importance-weighted policy gradients: expectations over every trajectory of another policy, by enumeration."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rlhf.algorithms.off_policy import OffPolicy
from rlhf.core import advantages, importance
from rlhf.errors import InputError
from rlhf.reduce import MetricSums
from rlhf.rollout import Rollout
from tests.algorithms.batches_of_episodes import CPU, gradient_of_return, returns_to_go
from tests.algorithms.test_action_averages import expected_over_batches, expected_quotient
from tests.algorithms.test_enumeration import TinyLm, TinyMdp, our_gradient, rollout_of
from tests.batches import make_rollout
from tests.tabular import TabularPolicy
from theory.mdp import Mdp, action_values, marginal_ratios, step_marginals, visits

PROBLEMS = pytest.mark.parametrize("problem", [TinyMdp(), TinyLm()], ids=["mdp", "lm"])


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def lagging(problem: TinyMdp | TinyLm) -> tuple[nn.Module, nn.Module, Rollout, Tensor]:
    """The learner, the actor, every trajectory as the learner scores it, and its probability under the actor."""
    learner, actor = problem.policy(), problem.policy(seed=7)
    rollout, probabilities = rollout_of(problem, actor, None)
    with torch.no_grad():
        output = learner(rollout.inputs)
    values = output.values.masked_fill(~rollout.mask, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1).masked_fill(rollout.dones, 0.0)
    return (
        learner,
        actor,
        replace(rollout, logprobs=output.logprobs, values=values, next_values=next_values),
        probabilities,
    )


def exact(learner: nn.Module, problem: TinyMdp | TinyLm) -> dict[str, Tensor]:
    """Of -J, the learner's own, for every parameter that it depends on."""
    inputs, mask, rewards = problem.trajectories()
    expected = (problem.trajectory_logprobs(learner, inputs, mask).sum(1).exp() * rewards.sum(1)).sum()
    learner.zero_grad()
    (-expected).backward()
    return {
        name: parameter.grad.clone() for name, parameter in learner.named_parameters() if parameter.grad is not None
    }


@PROBLEMS
@pytest.mark.parametrize("ratios", ["trajectory", "decision"])
@pytest.mark.parametrize("baseline", ["none", "value"])
def test_products_of_ratios_make_the_expected_gradient_exact(problem, ratios: str, baseline: str) -> None:
    learner, _, rollout, probabilities = lagging(problem)
    method = OffPolicy(ratios=ratios, baseline=baseline, value_coef=0.0)
    ours = our_gradient(learner, rollout, probabilities, method, 10_000)
    for name, gradient in exact(learner, problem).items():
        check(ours[name], gradient)


@PROBLEMS
@pytest.mark.parametrize("ratios", ["trajectory", "decision"])
@pytest.mark.parametrize("baseline", ["none", "value"])
def test_products_of_ratios_make_the_discounted_gradient_the_learners(problem, ratios: str, baseline: str) -> None:
    """E_pi[sum_t grad log pi(a_t | s_t) G_t], G_t = sum_k gamma^k r_{t+k}, the usual gradient without gamma^t."""
    learner, _, rollout, probabilities = lagging(problem)
    method = OffPolicy(gamma=0.6, ratios=ratios, baseline=baseline, value_coef=0.0)
    ours = our_gradient(learner, rollout, probabilities, method, 10_000)
    logprobs = problem.trajectory_logprobs(learner, rollout.inputs, rollout.mask)
    credits = logprobs.sum(1).exp().detach().unsqueeze(1) * returns_to_go(rollout.rewards, 0.6)
    learner.zero_grad()
    (-(credits * logprobs).sum()).backward()
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            check(ours[name], parameter.grad)


@PROBLEMS
@pytest.mark.parametrize("ratios", ["action", "trajectory", "decision"])
def test_without_lag_every_kind_is_exact(problem, ratios: str) -> None:
    learner = problem.policy()
    rollout, probabilities = rollout_of(problem, learner, None)
    method = OffPolicy(ratios=ratios, value_coef=0.0)
    ours = our_gradient(learner, rollout, probabilities, method, 10_000)
    for name, gradient in exact(learner, problem).items():
        check(ours[name], gradient)


class Unrolled:
    """TinyMdp with the time in the state, t * 3 + s, so that its horizon is part of it; and its tables of policies."""

    def __init__(self, problem: TinyMdp) -> None:
        num_states, num_steps = len(problem.reward), problem.num_steps
        transitions = torch.zeros(num_steps * num_states, 2, num_steps * num_states, dtype=torch.float64)
        for t in range(num_steps - 1):
            for state in range(num_states):
                for action in range(2):
                    if (state, action) != problem.terminal:
                        following = (t + 1) * num_states + problem.transition[state][action]
                        transitions[t * num_states + state, action, following] = 1.0
        start = torch.zeros(num_steps * num_states, dtype=torch.float64)
        start[0] = 1.0
        self.num_steps, self.num_states = num_steps, num_states
        rewards = torch.tensor(problem.reward, dtype=torch.float64).repeat(num_steps, 1)
        self.mdp = Mdp(transitions, rewards, start)

    def table(self, policy: nn.Module) -> Tensor:
        return policy.logits.softmax(-1).repeat(self.num_steps, 1)

    def gradient(self, learner: nn.Module, state_weights: Tensor, returns: Tensor) -> Tensor:
        """sum_s w(s) sum_a grad pi(a | s) q(s, a), uphill."""
        total = (state_weights.detach().unsqueeze(1) * self.table(learner) * returns.detach()).sum()
        return torch.autograd.grad(total, learner.logits)[0]

    def marginals(self, policy: nn.Module, states: Tensor) -> Tensor:
        """P(s_t) of the states that a rollout was in."""
        per_step = step_marginals(self.mdp, self.table(policy).detach(), num_steps=self.num_steps)
        columns = torch.arange(self.num_steps)
        return per_step[columns, columns * self.num_states + states]


def test_the_ratio_of_one_action_has_the_predicted_bias() -> None:
    """The actor's states and the actor's returns: sum_s d_b(s) sum_a grad pi(a | s) Q_b(s, a)."""
    problem = TinyMdp()
    learner, actor, rollout, probabilities = lagging(problem)
    method = OffPolicy(ratios="action", baseline="none")
    ours = -our_gradient(learner, rollout, probabilities, method, 10_000)["logits"]
    world = Unrolled(problem)
    acted = world.table(actor).detach()
    counts, returns = visits(world.mdp, acted, gamma=1.0), action_values(world.mdp, acted, gamma=1.0)
    check(ours, world.gradient(learner, counts, returns))
    assert float((ours - gradient_of_return(learner, problem, 1.0)).norm()) > 0.05


@pytest.mark.parametrize("corrected", [True, False])
def test_marginal_ratios_are_unbiased_with_corrected_returns(corrected: bool) -> None:
    """With the actor's own returns they leave the bias of Q_b in the place of Q_pi."""
    problem = TinyMdp()
    learner, actor, rollout, probabilities = lagging(problem)
    world, states = Unrolled(problem), rollout.inputs["states"]
    log_ratios = rollout.logprobs - rollout.behaviour_logprobs
    weights = marginal_ratios(log_ratios, world.marginals(learner, states), world.marginals(actor, states))
    discounts = importance.corrected_discounts(log_ratios, rollout.dones, gamma=1.0) if corrected else 1.0
    nothing = torch.zeros_like(rollout.rewards)
    returns = advantages.monte_carlo_returns(rollout.rewards, nothing, rollout.dones, gamma=discounts)
    credits = probabilities.unsqueeze(1) * weights * returns
    terms = torch.where(rollout.mask, credits * learner(rollout.inputs).logprobs, 0.0)
    ours = torch.autograd.grad(terms.sum(), learner.logits)[0]
    truth = gradient_of_return(learner, problem, 1.0)
    if corrected:
        check(ours, truth)
        return
    table = world.table(learner).detach()
    acted = action_values(world.mdp, world.table(actor).detach(), gamma=1.0)
    check(ours, world.gradient(learner, visits(world.mdp, table, gamma=1.0), acted))
    assert float((ours - truth).norm()) > 0.05


def test_a_later_step_weighs_by_the_policy_as_it_has_become() -> None:
    """grad of sum rho(theta) A with rho = pi_theta / b, though the batch holds pi_old / b."""
    learner, _, rollout, probabilities = lagging(TinyMdp())
    method = OffPolicy(baseline="none")
    with torch.no_grad():
        learner.logits.add_(torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).view(3, 2))
    ours = our_gradient(learner, rollout, probabilities, method, 10_000)["logits"]
    returns = rollout.rewards.flip(1).cumsum(1).flip(1)
    ratios = torch.exp(learner(rollout.inputs).logprobs - rollout.behaviour_logprobs)
    total = -(probabilities.unsqueeze(1) * ratios * returns).masked_fill(~rollout.mask, 0.0).sum()
    check(ours, torch.autograd.grad(total, learner.logits)[0])


def uneven(seed: int = 0) -> Rollout:
    rollout = make_rollout(TabularPolicy(4, 3), rows=6, steps=4, seed=seed)
    generator = torch.Generator().manual_seed(1)
    noise = 0.5 * torch.randn(rollout.mask.shape, generator=generator, dtype=torch.float64)
    return replace(rollout, behaviour_logprobs=rollout.logprobs + noise)


@pytest.mark.parametrize("units", ["episode", "action"])
@pytest.mark.parametrize("ratios", ["action", "trajectory", "decision"])
def test_self_normalised_weights_are_a_share_of_their_sum(ratios: str, units: str) -> None:
    """Scaling every ratio by one number, as an unnormalised density would, changes nothing."""
    rollout = uneven()
    method = OffPolicy(ratios=ratios, units=units, self_normalised=True, baseline="none")
    batch, _ = method.estimate(rollout, {})
    plain, _ = replace(method, self_normalised=False).estimate(rollout, {})
    check(batch.weights, plain.weights)
    if units == "action":
        check(batch.units, batch.weights)
        check(plain.units, rollout.mask.double())
    else:
        lengths = rollout.mask.sum(1, keepdim=True)
        check(batch.units, batch.weights / lengths)
        check(plain.units.sum(1), torch.ones(6, dtype=torch.float64))
    if ratios == "trajectory" and units == "episode":
        products = (rollout.logprobs - rollout.behaviour_logprobs).sum(1).exp()
        check(batch.units.sum(), products.sum())


def self_normalised(ratios: str, units: str, size: int) -> tuple[Tensor, Tensor]:
    """The expected gradient over all batches of an actor that lags, ours and by its definition E[sum w g / sum w].

    By episodes g = sum_t G_t grad log pi and w is the product of ratios; by actions g = G_t grad log pi, w the ratio of
    the action or, with G_t corrected, the product until it, and both sums go over all actions of the batch.
    """
    problem = TinyMdp()
    learner, actor, rollout, probabilities = lagging(problem)
    method = OffPolicy(ratios=ratios, units=units, self_normalised=True, baseline="none")
    ours = expected_over_batches(method, learner, rollout, probabilities, size)
    logs = torch.log(learner.logits.softmax(-1) / actor.logits.softmax(-1)).detach()
    single = logs[rollout.inputs["states"], rollout.inputs["actions"]].exp().masked_fill(~rollout.mask, 1.0)
    returns, mask = returns_to_go(rollout.rewards, 1.0), rollout.mask
    if ratios == "trajectory":
        weights = single.prod(1, keepdim=True).expand_as(single)
    elif ratios == "action":
        weights = single
    else:
        weights = single.cumprod(1)
        # sum_k (prod of the ratios after t until k) r_k
        returns = returns_to_go(weights * rollout.rewards, 1.0) / weights
    counts = weights[:, 0] if units == "episode" else (weights * mask).sum(1)
    weighed = weights * returns
    expected = expected_quotient(
        learner, problem, probabilities, size, credits=lambda rows: weighed[rows], counts=counts
    )
    return ours, expected


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("ratios", "units"),
    [("trajectory", "episode"), ("trajectory", "action"), ("action", "action"), ("decision", "action")],
)
def test_self_normalised_weights_have_the_predicted_bias(ratios: str, units: str, size: int) -> None:
    """E_b[sum w g / sum w] over all batches of N episodes."""
    ours, expected = self_normalised(ratios, units, size)
    check(ours, expected)


def test_self_normalised_alone_an_episode_tells_of_its_actor() -> None:
    """At N = 1 the weight cancels, E_b[g] = sum_s d_b(s) sum_a b(a | s) grad log pi(a | s) Q_b(s, a)."""
    problem = TinyMdp()
    learner, actor, _, _ = lagging(problem)
    world = Unrolled(problem)
    acted, table = world.table(actor).detach(), world.table(learner).detach()
    counts, returns = visits(world.mdp, acted, gamma=1.0), action_values(world.mdp, acted, gamma=1.0)
    # grad log pi = grad pi / pi
    check(self_normalised("trajectory", "episode", 1)[0], world.gradient(learner, counts, returns * acted / table))


def test_self_normalised_weights_lose_their_bias_with_more_episodes() -> None:
    """|E[sum w g / sum w] - grad J| falls with N = 1, 2, 3."""
    problem = TinyMdp()
    truth = gradient_of_return(problem.policy(), problem, 1.0)
    biases = [float((self_normalised("trajectory", "episode", size)[0] - truth).norm()) for size in (1, 2, 3)]
    assert biases[0] > biases[1] > biases[2] > 0.01


@pytest.mark.parametrize("ratios", ["action", "trajectory", "decision"])
def test_effective_sample_size_is_of_all_weights(ratios: str) -> None:
    rollout = uneven()
    method = OffPolicy(ratios=ratios)
    _, cells = method.estimate(rollout, {})
    sums = MetricSums()
    for rows in (slice(0, 2), slice(2, 6)):
        sums.add({name: x[rows] for name, x in cells.items()}, rollout.mask[rows], rollout.dones[rows])
    metrics = sums.reduce(CPU) | {"steps": int(rollout.mask.sum())}
    logs = rollout.logprobs - rollout.behaviour_logprobs
    weights = {
        "action": logs.exp()[rollout.mask],
        "trajectory": logs.sum(1).exp(),
        "decision": logs.cumsum(1).exp()[rollout.mask],
    }[ratios]
    state = method.adapt(method.initial_state(), metrics)
    expected = float(weights.sum() ** 2 / (weights**2).sum())
    assert float(state["effective_samples"]) == pytest.approx(expected, rel=1e-12)
    assert metrics["weight_max"] == pytest.approx(float(weights.max()), rel=1e-12)
    assert expected < len(weights) - 0.1


def test_without_lag_every_sample_counts_fully() -> None:
    rollout = make_rollout(TabularPolicy(4, 3), rows=6, steps=4)
    method = OffPolicy()
    _, cells = method.estimate(rollout, {})
    sums = MetricSums()
    sums.add(cells, rollout.mask, rollout.dones)
    steps = int(rollout.mask.sum())
    metrics = sums.reduce(CPU) | {"steps": steps}
    assert float(method.adapt({}, metrics)["effective_samples"]) == pytest.approx(steps)
    assert metrics["behaviour_kl_k3"] == 0.0


@pytest.mark.parametrize("baseline", ["none", "value"])
@pytest.mark.parametrize("ratios", ["action", "decision"])
def test_only_a_critic_says_what_a_cut_episode_would_have_earned(ratios: str, baseline: str) -> None:
    """Its value is the learner's own, so no ratio corrects it where the episode is cut."""
    rollout = uneven()
    cut = replace(rollout, next_values=rollout.next_values + 5.0 * rollout.dones)
    method = OffPolicy(ratios=ratios, baseline=baseline)
    returns, as_cut = (method.estimate(x, {})[0].returns for x in (rollout, cut))
    check((as_cut - returns)[rollout.dones], torch.full((6,), 5.0 * (baseline == "value"), dtype=torch.float64))


def test_the_critic_and_the_entropy_have_their_coefficients() -> None:
    policy = TabularPolicy(4, 3)
    rollout = uneven()
    method = OffPolicy(value_coef=0.7, entropy_coef=0.1)
    batch, _ = method.estimate(rollout, {})
    output = policy(rollout.inputs)
    moved = output._replace(values=output.values + 1.0, logprobs=output.logprobs + 0.2)
    terms, metrics = method.loss(moved, batch, {})
    expected = (
        -math.exp(0.2) * batch.advantages - 0.1 * output.entropy + 0.35 * (output.values + 1.0 - batch.returns) ** 2
    )
    check(terms[rollout.mask], expected[rollout.mask])
    without, _ = replace(method, baseline="none").loss(moved, batch, {})
    check((terms - without)[rollout.mask], 0.7 * metrics["value_loss"][rollout.mask])


def test_the_estimate_does_not_change_the_rollout() -> None:
    rollout = uneven()
    before = copy.deepcopy(rollout)
    rollout = replace(rollout, ref_logprobs=rollout.logprobs)
    OffPolicy(ratios="decision", kl_coef=0.1).estimate(rollout, {})
    assert torch.equal(rollout.rewards, before.rewards)
    assert torch.equal(rollout.behaviour_logprobs, before.behaviour_logprobs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -0.1}, "gamma is -0.1; it must lie in"),
        ({"value_coef": -1.0}, "value_coef is -1.0; it must not be negative"),
        ({"entropy_coef": math.nan}, "entropy_coef is nan; it must be finite"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        OffPolicy(**changes)
